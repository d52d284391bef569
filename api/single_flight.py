"""One look-up at a time: a caller that needs a look-up which is under way already waits for its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

Answer = TypeVar("Answer")


class SingleFlight(Generic[Answer]):
    """When a cached entry expires under load, one request looks it up anew and the others wait for that answer."""

    def __init__(self) -> None:
        self._asking: dict[Hashable, asyncio.Task[Answer]] = {}

    async def ask(self, key: Hashable, question: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        """The answer to ``question``, or its exception. If one caller is cancelled, the others still get the answer."""
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.create_task(question(), name="once")
            task.add_done_callback(lambda done: self._done(key, done))
        return await asyncio.shield(task)

    def _done(self, key: Hashable, task: asyncio.Task[Answer]) -> None:
        del self._asking[key]
        if not task.cancelled():
            task.exception()  # marks it as read: all callers may be gone
