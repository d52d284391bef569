"""The end of sandboxes: each counts in the budget until it is gone, however many tries that takes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, field

from worker.sandbox.contract import GenericSandbox, Sandbox
from worker.sandbox.memory_budget import Budget

log = logging.getLogger(__name__)

_AGAIN_S = 2.0


@dataclass(slots=True, kw_only=True)
class Removal:
    budget: Budget
    _closing: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def begin(self, sandbox: Sandbox | GenericSandbox, memory_mb: int) -> asyncio.Task[None]:
        """Destroy ``sandbox``. The returned task ends after one try; further tries go on until the sandbox is gone."""
        self.budget.leaves(memory_mb)
        return self._task(self._first(sandbox, memory_mb))

    async def close(self) -> None:
        """Wait for the sandboxes that are being destroyed. The engine removes the remaining ones when it closes, or
        another worker's sweep does; they still count here."""
        self._closing.set()
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _first(self, sandbox: Sandbox | GenericSandbox, memory_mb: int) -> None:
        if await self._gone(sandbox):
            self.budget.left(memory_mb)
        else:
            self._task(self._again(sandbox, memory_mb))

    async def _again(self, sandbox: Sandbox | GenericSandbox, memory_mb: int) -> None:
        while not self._closing.is_set():
            try:
                async with asyncio.timeout(_AGAIN_S):
                    await self._closing.wait()
            except TimeoutError:
                pass
            if await self._gone(sandbox):
                self.budget.left(memory_mb)
                return

    async def _gone(self, sandbox: Sandbox | GenericSandbox) -> bool:
        try:
            await sandbox.destroy()
        except Exception as error:  # noqa: BLE001 - whatever it was, it is tried again
            log.warning("a sandbox could not be destroyed", extra={"sandbox": sandbox.id, "error": str(error)})
            return False
        return True

    def _task(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name="removal")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
