"""Callers that wait for a sandbox, and the starts that are begun for them.

A caller takes whichever comes first, a sandbox that another call leaves or a new one. A start may come too late for the
caller that it was begun for: then its sandbox waits for the next caller, or the start is withdrawn if it has no room
yet.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial

from worker.errors import EngineUnavailable
from worker.sandbox.contract import SandboxSpec
from worker.sandbox.making import Maker
from worker.sandbox.pooled import PooledSandbox
from worker.sandbox.start_decision import decide
from worker.sandbox.waiters import Line, Start

log = logging.getLogger(__name__)

_LOOK_SOONEST_S = 0.01
_LOOK_LATEST_S = 1.0
_NO_ROOM_S = 0.25
_WAIT_FOR_ROOM = 4
"""Starts of one version that wait for room at a time: more would only be begun and withdrawn as callers come and go."""
_FORGOTTEN_S = 600.0


@dataclass(slots=True, kw_only=True)
class Callers:
    """:param destroy: destroys a sandbox that no caller will get."""

    maker: Maker
    destroy: Callable[[PooledSandbox], object]
    closed: bool = False
    """Nothing stands idle any more, and no code is made ready for generic sandboxes."""
    _lines: dict[SandboxSpec, Line] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def line(self, spec: SandboxSpec) -> Line:
        line = self._lines.get(spec)
        if line is None:
            line = self._lines[spec] = Line(spec=spec, used_at=time.monotonic())
        return line

    async def wait(self, line: Line) -> PooledSandbox:
        """The first sandbox that another call leaves or that is started. Raises :class:`EngineUnavailable`."""
        spec, most_mb = line.spec, self.maker.budget.limit_mb
        if spec.memory_mb > most_mb:
            raise EngineUnavailable(
                f"A sandbox of {spec.memory_mb} MB never fits into this worker's {most_mb} MB of memory."
            )
        waiter = line.join(time.monotonic())
        # Under a steady flow of calls the next look is near, so no look is taken for each of them.
        if not line.looks_soon or not (line.held and line.shared):
            self.look(line)
        try:
            return await waiter.given
        except asyncio.CancelledError:
            given = waiter.given
            if given.done() and not given.cancelled() and given.exception() is None:
                line.drop(given.result())  # handed to this caller in the very moment in which it was cancelled
                self.offer(line, given.result(), time.monotonic())
            line.leave(waiter, time.monotonic())
            self._withdraw(line)
            raise

    def offer(self, line: Line, pooled: PooledSandbox, now: float) -> None:
        """Give a sandbox to the caller that has waited longest for its version; without one it stands idle."""
        if line.waiting and line.give(pooled, now):
            if line.starts:
                self._withdraw(line)
        elif self.closed:
            self.destroy(pooled)
        else:
            self.maker.idle.put(pooled)
            self.maker.budget.let_in()

    def gives_way(self, line: Line) -> bool:
        """Whether a sandbox that a call just left makes room for another version, although callers of its own version
        wait: the other's caller has waited longer, and has fewer sandboxes. One goes at a time until both have as many,
        so that no two versions take room from each other in turns; a version that has none gets one."""
        turn = self.maker.budget.first
        if turn is None or not line.waiting or turn.spec == line.spec or turn.since >= line.waiting[0].since:
            return False
        if self.maker.budget.fits(turn.spec.memory_mb):
            return False  # enough is leaving
        others = self.line(turn.spec).sandboxes
        return others == 0 or others < line.sandboxes

    def look(self, line: Line) -> None:
        """Begin the starts that are worth it for the callers in ``line``, and plan the next look."""
        if line.look_at is not None:
            line.look_at.cancel()
            line.look_at = None
            line.looks_soon = False
        now = time.monotonic()
        while line.waiting:
            verdict = decide(line.demand(now, self.maker.cost_s(line.spec)))
            due_s = verdict.in_s
            if not verdict.displaces:
                due_s = max(due_s, line.not_before - now)
            if due_s <= 0 and sum(not start.begun for start in line.starts) >= _WAIT_FOR_ROOM:
                due_s = _NO_ROOM_S if self.maker.budget.first is not None else _LOOK_SOONEST_S
            if due_s > 0:
                line.looks_soon = line.joined or due_s <= _LOOK_SOONEST_S
                line.joined = False
                in_s = _LOOK_SOONEST_S if line.looks_soon else min(due_s, _LOOK_LATEST_S)
                line.look_at = asyncio.get_running_loop().call_later(in_s, self.look, line)
                return
            covered = len(line.starts) + line.ahead
            start = Start(owner=line.waiting[min(covered, len(line.waiting) - 1)], displaces=verdict.displaces)
            line.begun_start(start)
            start.task = self.background(partial(self._serve, line, start))

    def _withdraw(self, line: Line) -> None:
        """Withdraw starts that wait for room and that no caller needs any more."""
        while line.starts and (start := line.surplus()) is not None:
            line.starts.remove(start)
            if start.task is not None:
                start.task.cancel()

    async def _serve(self, line: Line, start: Start) -> None:
        """Start a sandbox for the callers in ``line``. If that fails, the caller that it was begun for gets the
        error."""
        pooled: PooledSandbox | None = None
        try:
            pooled = await self.maker.make(line.spec, start)
            if pooled is None:
                line.not_before = time.monotonic() + _NO_ROOM_S
        except Exception as error:  # noqa: BLE001 - whatever it was, the caller is told
            if start.owner.given.done():
                log.warning("a sandbox could not be started", extra={"error": str(error)})
            else:
                line.leave(start.owner, time.monotonic())
                start.owner.given.set_exception(error)
        finally:
            if start in line.starts:
                line.starts.remove(start)
        if pooled is not None:
            self.offer(line, pooled, time.monotonic())
            self._prepare(line.spec)
        self.look(line)

    def _prepare(self, spec: SandboxSpec) -> None:
        """Have the next sandbox of ``spec`` made from a generic one."""
        if not self.closed and not self.maker.generics.knows(spec):
            self.background(partial(self.maker.generics.prepare, spec))

    def forget(self, now: float) -> None:
        """Drop what is known of versions that were not called for long."""
        for spec, line in list(self._lines.items()):
            if not line.in_use and now - line.used_at > _FORGOTTEN_S:
                del self._lines[spec]

    def background(self, work: Callable[[], Coroutine[None, None, None]]) -> asyncio.Task[None]:
        """Have ``work`` done; an engine that fails is logged. :meth:`close` waits for it."""
        task = asyncio.create_task(_quietly(work), name="pool")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Break off starts that no caller waits for, and wait for what is under way."""
        for line in self._lines.values():
            for start in line.starts:
                if start.task is not None and not line.waiting:
                    start.task.cancel()
        while self._tasks:
            await asyncio.wait(set(self._tasks))


async def _quietly(work: Callable[[], Coroutine[None, None, None]]) -> None:
    try:
        await work()
    except EngineUnavailable as error:
        log.warning("the container engine failed at what was to be made ready", extra={"error": str(error)})
