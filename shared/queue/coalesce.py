"""Many callers, one round trip: items that arrive while a call is in flight go out together as the next call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Coalescer(Generic[Item, Answer]):
    """Batches ``submit`` calls for ``flush``, which takes a list and returns one answer an item, in order.

    An exception of ``flush`` reaches every caller of that batch. At most one flush is in flight.

    :param most: items of one batch.
    """

    def __init__(self, flush: Callable[[list[Item]], Awaitable[Sequence[Answer]]], *, most: int, name: str) -> None:
        self._flush = flush
        self._most = most
        self._name = name
        self._waiting: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._task: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Answer:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"coalesce-{self._name}")
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                try:
                    answers = await self._flush([item for item, _ in batch])
                    if len(answers) != len(batch):
                        raise RuntimeError(f"{self._name}: {len(answers)} answers to {len(batch)} items")
                except BaseException as error:
                    _fail([future for _, future in batch], error)
                    if not isinstance(error, Exception):
                        waiting, self._waiting = self._waiting, []
                        _fail([future for _, future in waiting], error)
                        raise
                    continue
                for (_, future), answer in zip(batch, answers, strict=True):
                    if not future.done():
                        future.set_result(answer)
        finally:
            self._task = None

    async def close(self) -> None:
        """Wait until all submitted items are answered."""
        if self._task is not None:
            await asyncio.wait([self._task])


def _fail(futures: list[asyncio.Future[Answer]], error: BaseException) -> None:
    for future in futures:
        if future.done():
            continue
        if isinstance(error, asyncio.CancelledError):
            future.cancel()
        else:
            future.set_exception(error)
