"""One shape for all that a process does again and again, and the end of the process when such a loop dies.

A loop has a name, a step that returns what it did, and a pause. If a step fails because a dependency is away, the
loop logs it and tries again. Any other exception ends the loop and with it the process, which its supervisor starts
anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from shared.errors import Unavailable
from shared.process import ended
from shared.queue.scripts import QueueClosed

log = logging.getLogger(__name__)

IDLE_S = 0.5


class LoopEnded(Exception):
    """A loop returned, which is a mistake in this program."""


def _always() -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """One loop.

    :param run_once: one step, which ends by itself; the loop ignores what it returns.
    :param interval_s: seconds between two steps, or a function that says them; None: only ``wake`` begins the next.
    :param retry_s: seconds after a step that failed; the interval if None.
    :param wake: when it is set, the next step begins before the interval is over.
    :param active: while it is False no step begins, and it is looked at again every half second.
    """

    name: str
    run_once: Callable[[], Awaitable[object]]
    interval_s: float | Callable[[], float] | None
    retry_s: float | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    active: Callable[[], bool] = _always

    async def run(self) -> None:
        """Repeat the step until cancelled, or until it raises an error that is not tried again."""
        while True:
            pause_s = self.interval_s() if callable(self.interval_s) else self.interval_s
            if self.active():
                self.wake.clear()
                try:
                    await self.run_once()
                    pause_s = self.interval_s() if callable(self.interval_s) else self.interval_s
                except (Unavailable, QueueClosed) as error:
                    log.warning("put off", extra={"loop": self.name, "error": str(error)})
                    pause_s = pause_s if self.retry_s is None else self.retry_s
            else:
                pause_s = IDLE_S if pause_s is None else min(pause_s, IDLE_S)
            await self._pause(pause_s)

    async def _pause(self, pause_s: float | None) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self.wake.wait()
        except TimeoutError:
            pass


class Loops:
    """The loops of a process, side by side."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, *loops: Loop) -> None:
        """Start ``loops`` beside those that run already."""
        self._tasks += [asyncio.create_task(loop.run(), name=loop.name) for loop in loops]

    async def failed(self) -> None:
        """Wait until a started loop dies, and raise its exception.

        :raises LoopEnded: if it just returned.
        """
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            log.error("a loop ended", extra={"loop": task.get_name()})
            if not task.cancelled():
                task.result()
        raise LoopEnded(", ".join(task.get_name() for task in done))

    async def until(self, stop: asyncio.Event) -> None:
        """Wait for ``stop``; raises as :meth:`failed` if a loop dies before."""
        stopping = asyncio.create_task(stop.wait(), name="stopping")
        failing = asyncio.create_task(self.failed(), name="failing")
        try:
            await asyncio.wait([stopping, failing], return_when=asyncio.FIRST_COMPLETED)
            if failing.done():
                failing.result()
        finally:
            await ended([stopping, failing])

    async def stop(self) -> None:
        """End them all. Idempotent."""
        await ended(self._tasks)
