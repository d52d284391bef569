"""Warm sandboxes of one worker: handed out one call at a time, frozen when idle, gone when idle for long.

Everything that has memory is counted against one budget from before it is started until nothing of it is left, so the
budget is never passed. Three kinds stand idle: used sandboxes, waiting for the next call of their spec; unused ones,
started ahead for functions that take a fresh one for every call, or that are kept warm; and generic sandboxes, which
have met no function yet and become a sandbox of any function of their runtime and size in little time.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from worker.errors import EngineUnavailable
from worker.sandbox.contract import GenericSandbox, GenericSpec, Sandbox, SandboxSpec, SandboxStarter, generic_spec
from worker.sandbox.memory_budget import Budget

log = logging.getLogger(__name__)

_REAP_EVERY_S = 0.5
_GENERICS_UNUSED_S = 600.0
_GENERICS_SHARE = 0.25
"""Of the memory; as far as this, idle sandboxes make room for generic sandboxes."""
_PREPARED_REMEMBERED = 10_000
_DESTROY_AGAIN_S = 2.0
_REPLACE_AFTER_S = 0.02
"""To start a container takes a core for a while: what was taken is replaced when the call that took it is under way."""


class StartKind(StrEnum):
    COLD = "cold"  # it had to be made, or a generic sandbox to be specialized
    PAUSED = "paused"  # an idle one was unpaused
    WARM = "warm"  # an idle one was running


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """:param memory_mb: of all sandboxes and generic sandboxes together, by their caps.
    :param pause_s: idle time after which a sandbox is paused. :param idle_s: … after which it goes.
    :param max_age_s: age after which it is replaced. :param max_uses: calls after which it is replaced.
    :param ahead: fresh sandboxes kept ready of a function that takes a new one for every call.
    :param generic sandboxes: generic sandboxes kept ready of every runtime and size in use; 0 for none.
    """

    memory_mb: int
    pause_s: float
    idle_s: float
    max_age_s: float
    max_uses: int
    ahead: int
    generics: int


@dataclass(slots=True, kw_only=True, eq=False)
class PooledSandbox:
    """A sandbox on its way through the pool; in use between ``acquire`` and ``release``."""

    sandbox: Sandbox
    spec: SandboxSpec
    born: float
    idle_since: float
    start_kind: StartKind = StartKind.COLD
    paused: bool = False
    uses: int = 0


@dataclass(slots=True, kw_only=True)
class Pool:
    engine: SandboxStarter
    limits: PoolLimits
    _idle: dict[SandboxSpec, deque[PooledSandbox]] = field(default_factory=dict)
    _generics: dict[GenericSpec, deque[GenericSandbox]] = field(default_factory=dict)
    _prepared: dict[SandboxSpec, bool] = field(
        default_factory=dict
    )  # whether generic sandboxes can become it; absent: unknown
    _generic_wanted_at: dict[GenericSpec, float] = field(default_factory=dict)
    _kept: Mapping[SandboxSpec, int] = field(default_factory=dict)
    _starting: dict[SandboxSpec | GenericSpec, int] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _closed: bool = False
    _budget: Budget = field(init=False)
    _generics_short: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._budget = Budget(limit_mb=self.limits.memory_mb)

    async def acquire(self, spec: SandboxSpec, *, fresh: bool = False) -> PooledSandbox:
        """An idle sandbox of ``spec``, else a new one, made from a generic sandbox where there is one.

        Waits while the budget is in use by other calls. ``fresh`` takes only one that served nobody.

        :raises EngineUnavailable: if none can be started, or it could never fit into the budget.
        """
        if fresh:
            self._background(self._replace(spec))
        while (idle := self._take_idle(spec)) is not None:
            if await self._awake(idle):
                return idle
        return await self._make(spec)

    def release(self, pooled: PooledSandbox, *, fresh: bool = False) -> Awaitable[None] | None:
        """Take a sandbox back. Returns what must end before it is gone, if it is not used again."""
        pooled.uses += 1
        now = asyncio.get_running_loop().time()
        if (
            fresh
            or self._closed
            or not pooled.sandbox.reusable
            or pooled.uses >= self.limits.max_uses
            or now - pooled.born >= self.limits.max_age_s
        ):
            return asyncio.shield(self._destroy_later(pooled))
        self._put_idle(pooled, now)
        return None

    async def prewarm(self, spec: SandboxSpec) -> None:
        """Start one sandbox of a version that was just built, and see to generic sandboxes of its runtime and size, as
        far as there is room without taking it from others. What fails here is not told: the first call will try
        again."""
        try:
            await self._prepare(spec)
            await self._start_ahead(spec, 1)
        except EngineUnavailable as error:
            log.info("not started ahead", extra={"function": spec.function_name, "error": str(error)})

    def keep(self, wanted: Mapping[SandboxSpec, int]) -> None:
        """From now on keep so many idle sandboxes of these specs, and none of others longer than usual."""
        self._kept = dict(wanted)

    def drop(self, unwanted: Callable[[SandboxSpec], bool]) -> None:
        """Destroy the idle sandboxes whose spec is ``unwanted``."""
        for spec in [spec for spec in self._idle if unwanted(spec)]:
            for pooled in self._idle.pop(spec):
                self._destroy_later(pooled)

    def state(self) -> dict[str, int]:
        """Figures for metrics: sandboxes by state, generic sandboxes, memory in use and allowed."""
        idle = [pooled for pooled_sandboxes in self._idle.values() for pooled in pooled_sandboxes]
        paused = sum(pooled.paused for pooled in idle)
        generics = sum(len(generics) for generics in self._generics.values())
        return {
            "busy": self._budget.count - len(idle) - generics,
            "idle": len(idle) - paused,
            "paused": paused,
            "generic": generics,
            "memory_mb": self._budget.used_mb,
            "memory_limit_mb": self.limits.memory_mb,
        }

    async def maintain(self) -> None:
        """Pause, reap and start ahead as time passes; runs until cancelled."""
        while True:
            try:
                async with asyncio.timeout(_REAP_EVERY_S):
                    await self._generics_short.wait()
                await asyncio.sleep(_REPLACE_AFTER_S)
            except TimeoutError:
                pass
            self._generics_short.clear()
            now = asyncio.get_running_loop().time()
            self.reap_once(now)
            await self._pause_idle(now)
            # One that cannot be started must not keep the others from it.
            failed = [await _failure(self._start_ahead(spec, count)) for spec, count in list(self._kept.items())]
            failed.append(await _failure(self._fill_generics(now)))
            if any(failed):
                log.warning("sandboxes are not started ahead", extra={"error": next(filter(None, failed))})
                await asyncio.sleep(_REAP_EVERY_S * 4)

    def reap_once(self, now: float) -> int:
        """Destroy what has been idle too long, is too old or died meanwhile; their count."""
        gone = 0
        for spec, pooled_sandboxes in list(self._idle.items()):
            spared = self._kept.get(spec, 0)
            for pooled in list(pooled_sandboxes):
                over = now - pooled.idle_since >= self.limits.idle_s and len(pooled_sandboxes) > spared
                if over or not pooled.sandbox.reusable or now - pooled.born >= self.limits.max_age_s:
                    pooled_sandboxes.remove(pooled)
                    self._destroy_later(pooled)
                    gone += 1
            if not pooled_sandboxes:
                del self._idle[spec]
        return gone

    def drain(self) -> None:
        """Begin to destroy everything idle, keep nothing for later, and start nothing ahead. Who acquires is served."""
        self._closed = True
        self.drop(lambda _: True)
        while self._generics:
            _, generics = self._generics.popitem()
            for generic in generics:
                self._destroy_generic_later(generic)

    async def close(self) -> None:
        """As :meth:`drain`, and wait for what is leaving."""
        self.drain()
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    # Idle ones

    def _take_idle(self, spec: SandboxSpec) -> PooledSandbox | None:
        pooled_sandboxes = self._idle.get(spec)
        while pooled_sandboxes:
            pooled = pooled_sandboxes.pop()  # the one used last: the others may cool down
            if not pooled_sandboxes:
                del self._idle[spec]
            if pooled.sandbox.reusable:
                return pooled
            self._destroy_later(pooled)
        return None

    async def _awake(self, pooled: PooledSandbox) -> bool:
        pooled.start_kind = StartKind.WARM
        if pooled.paused:
            pooled.start_kind = StartKind.PAUSED
            try:
                await pooled.sandbox.unpause()
            except EngineUnavailable:
                self._destroy_later(pooled)
                return False
            except BaseException:
                self._destroy_later(pooled)
                raise
            pooled.paused = False
        return True

    def _put_idle(self, pooled: PooledSandbox, now: float) -> None:
        if self._closed:
            self._destroy_later(pooled)
            return
        pooled.idle_since = now
        self._idle.setdefault(pooled.spec, deque()).append(pooled)
        self._budget.let_in()

    async def _pause_idle(self, now: float) -> None:
        for pooled_sandboxes in list(self._idle.values()):
            for pooled in list(pooled_sandboxes):
                if pooled.paused or now - pooled.idle_since < self.limits.pause_s or pooled not in pooled_sandboxes:
                    continue
                # Taken out meanwhile: a call must not get one that is about to freeze.
                pooled_sandboxes.remove(pooled)
                try:
                    await pooled.sandbox.pause()
                    pooled.paused = True
                except EngineUnavailable:
                    self._destroy_later(pooled)
                    continue
                if self._closed:
                    self._destroy_later(pooled)
                    continue
                self._idle.setdefault(pooled.spec, deque()).appendleft(pooled)
                self._budget.let_in()

    # New ones

    async def _make(self, spec: SandboxSpec) -> PooledSandbox:
        generic = self._take_generic(spec)
        if generic is not None:
            try:
                return self._born(spec, await generic.specialize(spec))
            except EngineUnavailable as error:
                self._budget.free(spec.memory_mb)
                log.warning("a generic sandbox could not be used", extra={"error": str(error)})
            except BaseException:
                self._budget.free(spec.memory_mb)
                raise
        await self._room(spec.memory_mb)
        pooled = await self._start(spec)
        if spec not in self._prepared and not self._closed:
            self._background(self._prepare(spec))  # so that the next one can be made from a generic sandbox
        return pooled

    async def _start(self, spec: SandboxSpec) -> PooledSandbox:
        """Start a sandbox whose room was taken already."""
        try:
            return self._born(spec, await self.engine.start(spec))
        except BaseException:
            self._budget.free(spec.memory_mb)
            raise

    def _born(self, spec: SandboxSpec, sandbox: Sandbox) -> PooledSandbox:
        now = asyncio.get_running_loop().time()
        return PooledSandbox(sandbox=sandbox, spec=spec, born=now, idle_since=now)

    async def _replace(self, spec: SandboxSpec) -> None:
        await asyncio.sleep(_REPLACE_AFTER_S)
        await self._start_ahead(spec, self.limits.ahead)

    async def _start_ahead(self, spec: SandboxSpec, count: int) -> None:
        """Start idle sandboxes until there are ``count``, as long as there is room to spare."""
        while not self._closed and len(self._idle.get(spec, ())) + self._starting.get(spec, 0) < count:
            if not self._budget.take_spare(spec.memory_mb):
                return
            self._starting[spec] = self._starting.get(spec, 0) + 1
            try:
                generic = self._take_generic(spec)
                if generic is not None:
                    self._budget.free(spec.memory_mb)  # counted twice: as a generic sandbox, and as the room just taken
                    try:
                        pooled = self._born(spec, await generic.specialize(spec))
                    except BaseException:
                        self._budget.free(spec.memory_mb)
                        raise
                else:
                    pooled = await self._start(spec)
            finally:
                self._starting[spec] -= 1
                if not self._starting[spec]:
                    del self._starting[spec]
            self._put_idle(pooled, pooled.born)

    # Generic sandboxes

    async def _prepare(self, spec: SandboxSpec) -> None:
        if len(self._prepared) >= _PREPARED_REMEMBERED:
            self._prepared.clear()
        self._prepared[spec] = False
        try:
            self._prepared[spec] = await self.engine.prepare(spec)
        except BaseException:
            self._prepared.pop(spec, None)  # the next cold start tries again
            raise
        self._want_generics(spec)

    def _take_generic(self, spec: SandboxSpec) -> GenericSandbox | None:
        """A generic sandbox for ``spec``, if its code is on this machine: a generic sandbox that waits for code is
        lost."""
        wanted = self._want_generics(spec)
        generics = self._generics.get(wanted) if wanted is not None else None
        while generics:
            generic = generics.popleft()
            if generic.usable:
                self._generics_short.set()
                return generic
            self._destroy_generic_later(generic)
        return None

    def _want_generics(self, spec: SandboxSpec) -> GenericSpec | None:
        if not self.limits.generics or not self._prepared.get(spec):
            return None
        wanted = generic_spec(spec)
        self._generic_wanted_at[wanted] = asyncio.get_running_loop().time()
        return wanted

    async def _fill_generics(self, now: float) -> None:
        for spec, wanted_at in list(self._generic_wanted_at.items()):
            generics = self._generics.setdefault(spec, deque())
            for generic in [generic for generic in generics if not generic.usable]:
                generics.remove(generic)
                self._destroy_generic_later(generic)
            if now - wanted_at > _GENERICS_UNUSED_S:
                del self._generic_wanted_at[spec]
                for generic in self._generics.pop(spec):
                    self._destroy_generic_later(generic)
                continue
            if not self._closed and len(generics) < self.limits.generics:
                await self._add_generic(spec)

    async def _add_generic(self, spec: GenericSpec) -> None:
        """Make a generic sandbox, if there is room. Else the idle sandbox that was used longest ago makes some: the
        next function that is called is rather one of those that have none at all."""
        if not self._budget.take_spare(spec.memory_mb):
            generics_mb = sum(len(generics) * of.memory_mb for of, generics in self._generics.items())
            if not self._budget.wanted and generics_mb + spec.memory_mb <= _GENERICS_SHARE * self.limits.memory_mb:
                self._evict_idle(spec.memory_mb, spared=self._kept)
            return
        try:
            made = await self.engine.start_generic(spec)
        except BaseException:
            self._budget.free(spec.memory_mb)
            raise
        if made is None:
            self._budget.free(spec.memory_mb)
            del self._generic_wanted_at[spec]
        else:
            self._put_generic(made)
            if len(self._generics.get(spec, ())) < self.limits.generics:
                self._generics_short.set()

    def _put_generic(self, generic: GenericSandbox) -> None:
        if self._closed:
            self._destroy_generic_later(generic)
        else:
            self._generics.setdefault(generic.spec, deque()).append(generic)

    # The budget

    async def _room(self, memory_mb: int) -> None:
        """Take ``memory_mb`` of the budget: what stands idle makes room, the least recently used first."""
        if memory_mb > self.limits.memory_mb:
            most = self.limits.memory_mb
            raise EngineUnavailable(f"A sandbox of {memory_mb} MB never fits into this worker's {most} MB of memory.")
        await self._budget.take(memory_mb, lambda: self._evict(memory_mb))

    def _evict(self, memory_mb: int) -> None:
        """Begin to destroy idle sandboxes, the least recently used first, then generic sandboxes, until enough will be
        free."""
        self._evict_idle(memory_mb, spared={})
        for generics in self._generics.values():
            while generics and not self._budget.fits(memory_mb):
                self._destroy_generic_later(generics.popleft())

    def _evict_idle(self, memory_mb: int, spared: Mapping[SandboxSpec, int]) -> None:
        idle = (pooled for pooled_sandboxes in self._idle.values() for pooled in pooled_sandboxes)
        for pooled in sorted(idle, key=lambda pooled: pooled.idle_since):
            if self._budget.fits(memory_mb):
                return
            pooled_sandboxes = self._idle[pooled.spec]
            if len(pooled_sandboxes) <= spared.get(pooled.spec, 0):
                continue
            pooled_sandboxes.remove(pooled)
            if not pooled_sandboxes:
                del self._idle[pooled.spec]
            self._destroy_later(pooled)

    # The end

    def _destroy_later(self, pooled: PooledSandbox) -> asyncio.Task[None]:
        self._budget.leaves(pooled.spec.memory_mb)
        return self._background(self._destroy(pooled.sandbox, pooled.spec.memory_mb))

    def _destroy_generic_later(self, generic: GenericSandbox) -> asyncio.Task[None]:
        self._budget.leaves(generic.spec.memory_mb)
        return self._background(self._destroy(generic, generic.spec.memory_mb))

    async def _destroy(self, sandbox: Sandbox | GenericSandbox, memory_mb: int) -> None:
        """Whoever waits for this waits for one try. Its room is free when it is gone, however many that takes."""
        try:
            await sandbox.destroy()
        except Exception as error:  # noqa: BLE001 - whatever it was, it is tried again
            log.warning("a sandbox could not be destroyed", extra={"sandbox": sandbox.id, "error": str(error)})
            self._background(self._destroy_at_last(sandbox, memory_mb))
        else:
            self._budget.left(memory_mb)

    async def _destroy_at_last(self, sandbox: Sandbox | GenericSandbox, memory_mb: int) -> None:
        while not self._closed:  # what is left then is the business of others' sweeps
            await asyncio.sleep(_DESTROY_AGAIN_S)
            try:
                await sandbox.destroy()
            except Exception as error:  # noqa: BLE001 - as above
                log.warning("a sandbox could not be destroyed", extra={"sandbox": sandbox.id, "error": str(error)})
            else:
                break
        self._budget.left(memory_mb)

    def _background(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(_quietly(work), name="pool")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _failure(work: Coroutine[None, None, None]) -> str | None:
    """What the engine said if it did not do ``work``."""
    try:
        await work
    except EngineUnavailable as error:
        return str(error)
    return None


async def _quietly(work: Coroutine[None, None, None]) -> None:
    try:
        await work
    except EngineUnavailable as error:
        log.warning("the engine does not follow", extra={"error": str(error)})
