"""The builds that run in one worker: each has a deadline, equal work is done once, all end with the worker."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

from worker.build.plan import BuildPlan, BuildRejected, BuiltVersion


class Builds:
    """Keeps track of running builds. For one event loop."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[object]] = set()
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    async def run(self, plan: BuildPlan, building: Awaitable[BuiltVersion]) -> BuiltVersion:
        """Await ``building`` for at most ``plan.timeout_s``.

        :raises BuildRejected: ``build_failed``, when the time is over.
        """
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        limit = asyncio.timeout(plan.timeout_s)
        try:
            async with limit:
                return await building
        except TimeoutError:
            if not limit.expired():
                raise
            raise BuildRejected("build_failed", f"The build took longer than {plan.timeout_s:g} s.") from None
        finally:
            self._running.discard(task)

    @asynccontextmanager
    async def single_flight(self, key: str) -> AsyncIterator[None]:
        """Let one task at a time in for a key; a lock lives as long as a task holds or awaits it."""
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[key]
            if users == 1:
                del self._locks[key]
            else:
                self._locks[key] = (lock, users - 1)

    async def close(self) -> None:
        """Cancel the builds that run, and return when they have cleaned up. Idempotent."""
        running = [task for task in self._running if task is not asyncio.current_task()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def content_key(*parts: str) -> str:
    """Names what is made of ``parts``, the same on every machine."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
