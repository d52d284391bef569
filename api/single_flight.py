"""One question at a time: a caller that asks what another is asking already waits for that answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

Answer = TypeVar("Answer")


class SingleFlight(Generic[Answer]):
    """When an entry that is remembered for a while runs out under load, one request asks anew and not all of them."""

    def __init__(self) -> None:
        self._asking: dict[Hashable, asyncio.Task[Answer]] = {}

    async def ask(self, key: Hashable, question: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        """The answer to ``question``, or its exception. A caller that goes away does not take it from the others."""
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.create_task(question(), name="once")
            task.add_done_callback(lambda done: self._done(key, done))
        return await asyncio.shield(task)

    def _done(self, key: Hashable, task: asyncio.Task[Answer]) -> None:
        del self._asking[key]
        if not task.cancelled():
            task.exception()  # all who asked may be gone
