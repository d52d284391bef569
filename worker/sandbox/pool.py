"""Warm sandboxes of one worker: handed out one call at a time, frozen when idle, gone when idle for long.

A sandbox that a call leaves goes to the caller that has waited longest for its version; whether another one is started
is decided in :mod:`worker.sandbox.start_decision`. Everything that has memory is counted against one budget from before
it is started until nothing of it is left, so the budget is never passed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial

from shared.loop import Loop
from worker.errors import EngineUnavailable
from worker.sandbox.callers import Callers
from worker.sandbox.contract import GenericSandbox, SandboxSpec, SandboxStarter
from worker.sandbox.generics import GenericSandboxes
from worker.sandbox.idle import IdleSandboxes
from worker.sandbox.making import Maker
from worker.sandbox.memory_budget import Budget
from worker.sandbox.pooled import PooledSandbox, StartKind
from worker.sandbox.removal import Removal
from worker.sandbox.waiters import Line

log = logging.getLogger(__name__)

_REAP_EVERY_S = 0.5
_REPLACE_AFTER_S = 0.02
"""To start a container takes a core for a while: what was taken is replaced when the call that took it is under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """:param memory_mb: of all sandboxes, generic ones too, by their caps.
    :param pause_s: idle time after which a sandbox is paused. :param idle_s: … after which it goes.
    :param max_age_s: age after which it is replaced. :param max_uses: calls after which it is replaced.
    :param ahead: fresh sandboxes kept ready of a function that takes a new one for every call.
    :param generics: generic sandboxes kept ready of every runtime and size in use; 0 for none.
    """

    memory_mb: int
    pause_s: float
    idle_s: float
    max_age_s: float
    max_uses: int
    ahead: int
    generics: int


@dataclass(slots=True, kw_only=True)
class Pool:
    engine: SandboxStarter
    limits: PoolLimits
    _budget: Budget = field(init=False)
    _removal: Removal = field(init=False)
    _idle: IdleSandboxes = field(init=False)
    _generics: GenericSandboxes = field(init=False)
    _maker: Maker = field(init=False)
    _callers: Callers = field(init=False)
    _kept: Mapping[SandboxSpec, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._budget = Budget(limit_mb=self.limits.memory_mb)
        self._removal = Removal(budget=self._budget)
        self._idle = IdleSandboxes(destroy=self._destroy)
        self._generics = GenericSandboxes(engine=self.engine, ready=self.limits.generics, destroy=self._destroy_generic)
        self._maker = Maker(
            engine=self.engine,
            budget=self._budget,
            idle=self._idle,
            generics=self._generics,
            destroy=self._destroy_generic,
        )
        self._callers = Callers(maker=self._maker, destroy=self._destroy)

    async def acquire(self, spec: SandboxSpec, *, fresh: bool = False) -> PooledSandbox:
        """An idle sandbox of ``spec``, else the first that is left by another call or is started.

        Waits while the budget is in use by other calls. ``fresh`` takes only one that served no call.

        :raises EngineUnavailable: if none can be started, or it could never fit into the budget.
        """
        line = self._callers.line(spec)
        line.shared = not fresh
        if fresh:
            self._callers.background(partial(self._replace, spec))
        while True:
            pooled = self._idle.take(spec)
            if pooled is None:
                pooled = await self._callers.wait(line)
            else:
                pooled.start_kind = StartKind.WARM
                line.hand_out(pooled, time.monotonic())
            if not pooled.paused or await self._awake(line, pooled):
                return pooled

    def release(self, pooled: PooledSandbox, *, fresh: bool = False) -> Awaitable[None] | None:
        """Take a sandbox back. Returns what must end before it is gone, if it is not used again."""
        pooled.uses += 1
        now = time.monotonic()
        line = self._callers.line(pooled.spec)
        line.took_back(pooled, now)
        if (
            fresh
            or (self._callers.closed and not line.waiting)
            or not pooled.sandbox.reusable
            or pooled.uses >= self.limits.max_uses
            or now - pooled.born >= self.limits.max_age_s
        ):
            gone = self._destroy(pooled)
            self._callers.look(line)
            return asyncio.shield(gone)
        if self._callers.gives_way(line):
            self._destroy(pooled)
            self._callers.look(line)
            return None
        pooled.start_kind = StartKind.WARM
        pooled.idle_since = now
        self._callers.offer(line, pooled, now)
        return None

    async def prewarm(self, spec: SandboxSpec) -> None:
        """Start one sandbox of a version that was just built, and see to generic ones of its runtime and size, as far
        as there is room without taking it from others. What fails here is not told: the first call will try again."""
        try:
            await self._generics.prepare(spec)
            await self._start_ahead(spec, 1)
        except EngineUnavailable as error:
            log.info("not started ahead", extra={"function": spec.function_name, "error": str(error)})

    def keep(self, wanted: Mapping[SandboxSpec, int]) -> None:
        """From now on keep so many idle sandboxes of these specs, and none of others longer than usual."""
        self._kept = dict(wanted)

    def drop(self, unwanted: Callable[[SandboxSpec], bool]) -> None:
        """Destroy the idle sandboxes whose spec is ``unwanted``."""
        self._idle.drop(unwanted)

    def state(self) -> dict[str, int]:
        """Figures for metrics: sandboxes by state, generic ones, memory in use and allowed."""
        idle = list(self._idle)
        paused = sum(pooled.paused for pooled in idle)
        generics = self._generics.count
        return {
            "busy": self._budget.count - len(idle) - generics,
            "idle": len(idle) - paused,
            "paused": paused,
            "generic": generics,
            "memory_mb": self._budget.used_mb,
            "memory_limit_mb": self.limits.memory_mb,
        }

    @property
    def loop(self) -> Loop:
        """Maintains the pool, at once where a generic sandbox was taken."""
        return Loop(
            name="sandboxes",
            run_once=self.maintain,
            interval_s=_REAP_EVERY_S,
            retry_s=_REAP_EVERY_S * 4,
            wake=self._generics.short,
        )

    async def maintain(self) -> None:
        """Pause, reap and start ahead what is due now.

        :raises EngineUnavailable: something could not be started ahead; all else was done.
        """
        await asyncio.sleep(_REPLACE_AFTER_S)
        now = time.monotonic()
        self.reap_once(now)
        await self._pause_idle(now)
        # One that cannot be started must not keep the others from it.
        failed = [await _failure(self._start_ahead(spec, count)) for spec, count in list(self._kept.items())]
        failed.append(await _failure(self._fill_generics(now)))
        if (error := next(filter(None, failed), None)) is not None:
            raise error

    def reap_once(self, now: float) -> int:
        """Destroy what has been idle too long, is too old or died meanwhile; their count."""

        def over(pooled: PooledSandbox, count: int) -> bool:
            unused = now - pooled.idle_since >= self.limits.idle_s and count > self._kept.get(pooled.spec, 0)
            return unused or not pooled.sandbox.reusable or now - pooled.born >= self.limits.max_age_s

        self._callers.forget(now)
        return self._idle.reap(over)

    def drain(self) -> None:
        """Begin to destroy everything idle, keep nothing for later, and start nothing ahead. Callers are still
        served."""
        self._callers.closed = True
        self._idle.drop(lambda _: True)
        self._generics.drop_all()

    async def close(self) -> None:
        """As :meth:`drain`, break off starts that no caller waits for, and wait for what is leaving."""
        self.drain()
        await self._callers.close()
        await self._removal.close()

    async def _awake(self, line: Line, pooled: PooledSandbox) -> bool:
        pooled.start_kind = StartKind.PAUSED
        try:
            await pooled.sandbox.unpause()
        except BaseException as error:
            line.drop(pooled)
            self._destroy(pooled)
            self._callers.look(line)
            if not isinstance(error, EngineUnavailable):
                raise
            return False
        pooled.paused = False
        return True

    async def _pause_idle(self, now: float) -> None:
        for pooled in self._idle:
            if pooled.paused or now - pooled.idle_since < self.limits.pause_s:
                continue
            # Taken out meanwhile: a call must not get one that is about to freeze.
            if not self._idle.remove(pooled):
                continue
            try:
                await pooled.sandbox.pause()
            except EngineUnavailable:
                self._destroy(pooled)
                continue
            pooled.paused = True
            self._callers.offer(self._callers.line(pooled.spec), pooled, time.monotonic())

    # New ones

    async def _replace(self, spec: SandboxSpec) -> None:
        await asyncio.sleep(_REPLACE_AFTER_S)
        await self._start_ahead(spec, self.limits.ahead)

    async def _start_ahead(self, spec: SandboxSpec, count: int) -> None:
        """Start idle sandboxes until there are ``count``, as long as there is room to spare."""
        line = self._callers.line(spec)
        while not self._callers.closed and self._idle.count(spec) + line.ahead < count:
            if not self._budget.take_spare(spec.memory_mb):
                return
            line.ahead += 1
            pooled: PooledSandbox | None = None
            try:
                if self._generics.stands_for(spec):
                    self._budget.free(spec.memory_mb)  # a generic one has its own
                    pooled = await self._maker.from_generic(spec)
                else:
                    pooled = await self._maker.from_image(spec)
            finally:
                line.ahead -= 1
                if pooled is None:
                    self._callers.look(line)
            if pooled is not None:
                self._callers.offer(line, pooled, time.monotonic())

    async def _fill_generics(self, now: float) -> None:
        for spec in self._generics.missing(now):
            if self._callers.closed:
                return
            made = await self._maker.add_generic(spec, self._kept)
            if made is not None:
                self._put_generic(made)

    def _put_generic(self, generic: GenericSandbox) -> None:
        if self._callers.closed:
            self._destroy_generic(generic)
        else:
            self._generics.put(generic)

    def _destroy(self, pooled: PooledSandbox) -> asyncio.Task[None]:
        return self._removal.begin(pooled.sandbox, pooled.spec.memory_mb)

    def _destroy_generic(self, generic: GenericSandbox) -> asyncio.Task[None]:
        return self._removal.begin(generic, generic.spec.memory_mb)


async def _failure(work: Coroutine[None, None, None]) -> EngineUnavailable | None:
    """Why the engine did not do ``work``; None if it did."""
    try:
        await work
    except EngineUnavailable as error:
        return error
    return None
