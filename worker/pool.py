"""Warm sandboxes of one worker: handed out one call at a time, frozen when idle, gone when idle for long.

Everything that has memory is counted against one budget from before it is started until nothing of it is left, so the
budget is never passed. Three kinds stand idle: used sandboxes, waiting for the next call of their spec; unused ones,
started ahead for functions that take a fresh one for every call, or that are kept warm; and blanks, which have met no
function yet and become a sandbox of any function of their runtime and size in little time.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from worker.budget import Budget
from worker.engine.contract import Blank, BlankSpec, Engine, EngineUnavailable, Sandbox, SandboxSpec, blank_spec

log = logging.getLogger(__name__)

_REAP_EVERY_S = 0.5
_BLANKS_UNUSED_S = 600.0
_BLANKS_SHARE = 0.25
"""Of the memory; as far as this, idle sandboxes make room for blanks."""
_PREPARED_REMEMBERED = 10_000
_DESTROY_AGAIN_S = 2.0
_REPLACE_AFTER_S = 0.02
"""To start a container takes a core for a while: what was taken is replaced when the call that took it is under way."""


class StartKind(StrEnum):
    COLD = "cold"  # it had to be made, or a blank to be specialised
    PAUSED = "paused"  # an idle one was unpaused
    WARM = "warm"  # an idle one was running


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """:param memory_mb: of all sandboxes and blanks together, by their caps.
    :param pause_s: idle time after which a sandbox is paused. :param idle_s: … after which it goes.
    :param max_age_s: age after which it is replaced. :param max_uses: calls after which it is replaced.
    :param ahead: fresh sandboxes kept ready of a function that takes a new one for every call.
    :param blanks: blanks kept ready of every runtime and size in use; 0 for none.
    """

    memory_mb: int
    pause_s: float
    idle_s: float
    max_age_s: float
    max_uses: int
    ahead: int
    blanks: int


@dataclass(slots=True, kw_only=True, eq=False)
class Lease:
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
    engine: Engine
    limits: PoolLimits
    _idle: dict[SandboxSpec, deque[Lease]] = field(default_factory=dict)
    _blanks: dict[BlankSpec, deque[Blank]] = field(default_factory=dict)
    _prepared: dict[SandboxSpec, bool] = field(default_factory=dict)  # whether blanks can become it; absent: unknown
    _blank_wanted_at: dict[BlankSpec, float] = field(default_factory=dict)
    _kept: Mapping[SandboxSpec, int] = field(default_factory=dict)
    _starting: dict[SandboxSpec | BlankSpec, int] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _closed: bool = False
    _budget: Budget = field(init=False)
    _blanks_short: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._budget = Budget(limit_mb=self.limits.memory_mb)

    async def acquire(self, spec: SandboxSpec, *, fresh: bool = False) -> Lease:
        """An idle sandbox of ``spec``, else a new one, made from a blank where there is one.

        Waits while the budget is in use by other calls. ``fresh`` takes only one that served nobody.

        :raises EngineUnavailable: if none can be started, or it could never fit into the budget.
        """
        if fresh:
            self._background(self._replace(spec))
        while (idle := self._take_idle(spec)) is not None:
            if await self._awake(idle):
                return idle
        return await self._make(spec)

    def release(self, lease: Lease, *, fresh: bool = False) -> Awaitable[None] | None:
        """Take a sandbox back. Returns what must end before it is gone, if it is not used again."""
        lease.uses += 1
        now = asyncio.get_running_loop().time()
        if (
            fresh
            or self._closed
            or not lease.sandbox.reusable
            or lease.uses >= self.limits.max_uses
            or now - lease.born >= self.limits.max_age_s
        ):
            return asyncio.shield(self._destroy_later(lease))
        self._put_idle(lease, now)
        return None

    async def prestart(self, spec: SandboxSpec) -> None:
        """Start one sandbox of a version that was just built, and see to blanks of its runtime and size, as far as
        there is room without taking it from others. What fails here is not told: the first call will try again."""
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
            for lease in self._idle.pop(spec):
                self._destroy_later(lease)

    def state(self) -> dict[str, int]:
        """Figures for metrics: sandboxes by state, blanks, memory in use and allowed."""
        idle = [lease for leases in self._idle.values() for lease in leases]
        paused = sum(lease.paused for lease in idle)
        blanks = sum(len(blanks) for blanks in self._blanks.values())
        return {
            "busy": self._budget.count - len(idle) - blanks,
            "idle": len(idle) - paused,
            "paused": paused,
            "blank": blanks,
            "memory_mb": self._budget.used_mb,
            "memory_limit_mb": self.limits.memory_mb,
        }

    async def maintain(self) -> None:
        """Pause, reap and start ahead as time passes; runs until cancelled."""
        while True:
            try:
                async with asyncio.timeout(_REAP_EVERY_S):
                    await self._blanks_short.wait()
                await asyncio.sleep(_REPLACE_AFTER_S)
            except TimeoutError:
                pass
            self._blanks_short.clear()
            now = asyncio.get_running_loop().time()
            self.reap_once(now)
            await self._pause_idle(now)
            # One that cannot be started must not keep the others from it.
            failed = [await _failure(self._start_ahead(spec, count)) for spec, count in list(self._kept.items())]
            failed.append(await _failure(self._fill_blanks(now)))
            if any(failed):
                log.warning("sandboxes are not started ahead", extra={"error": next(filter(None, failed))})
                await asyncio.sleep(_REAP_EVERY_S * 4)

    def reap_once(self, now: float) -> int:
        """Destroy what has been idle too long, is too old or died meanwhile; their count."""
        gone = 0
        for spec, leases in list(self._idle.items()):
            spared = self._kept.get(spec, 0)
            for lease in list(leases):
                over = now - lease.idle_since >= self.limits.idle_s and len(leases) > spared
                if over or not lease.sandbox.reusable or now - lease.born >= self.limits.max_age_s:
                    leases.remove(lease)
                    self._destroy_later(lease)
                    gone += 1
            if not leases:
                del self._idle[spec]
        return gone

    def drain(self) -> None:
        """Begin to destroy everything idle, keep nothing for later, and start nothing ahead. Who acquires is served."""
        self._closed = True
        self.drop(lambda _: True)
        while self._blanks:
            _, blanks = self._blanks.popitem()
            for blank in blanks:
                self._destroy_blank_later(blank)

    async def close(self) -> None:
        """As :meth:`drain`, and wait for what is leaving."""
        self.drain()
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    # Idle ones

    def _take_idle(self, spec: SandboxSpec) -> Lease | None:
        leases = self._idle.get(spec)
        while leases:
            lease = leases.pop()  # the one used last: the others may cool down
            if not leases:
                del self._idle[spec]
            if lease.sandbox.reusable:
                return lease
            self._destroy_later(lease)
        return None

    async def _awake(self, lease: Lease) -> bool:
        lease.start_kind = StartKind.WARM
        if lease.paused:
            lease.start_kind = StartKind.PAUSED
            try:
                await lease.sandbox.unpause()
            except EngineUnavailable:
                self._destroy_later(lease)
                return False
            except BaseException:
                self._destroy_later(lease)
                raise
            lease.paused = False
        return True

    def _put_idle(self, lease: Lease, now: float) -> None:
        if self._closed:
            self._destroy_later(lease)
            return
        lease.idle_since = now
        self._idle.setdefault(lease.spec, deque()).append(lease)
        self._budget.let_in()

    async def _pause_idle(self, now: float) -> None:
        for leases in list(self._idle.values()):
            for lease in list(leases):
                if lease.paused or now - lease.idle_since < self.limits.pause_s or lease not in leases:
                    continue
                # Taken out meanwhile: a call must not get one that is about to freeze.
                leases.remove(lease)
                try:
                    await lease.sandbox.pause()
                    lease.paused = True
                except EngineUnavailable:
                    self._destroy_later(lease)
                    continue
                if self._closed:
                    self._destroy_later(lease)
                    continue
                self._idle.setdefault(lease.spec, deque()).appendleft(lease)
                self._budget.let_in()

    # New ones

    async def _make(self, spec: SandboxSpec) -> Lease:
        blank = self._take_blank(spec)
        if blank is not None:
            try:
                return self._born(spec, await blank.specialise(spec))
            except EngineUnavailable as error:
                self._budget.free(spec.memory_mb)
                log.warning("a blank could not be used", extra={"error": str(error)})
            except BaseException:
                self._budget.free(spec.memory_mb)
                raise
        await self._room(spec.memory_mb)
        lease = await self._start(spec)
        if spec not in self._prepared and not self._closed:
            self._background(self._prepare(spec))  # so that the next one can be made from a blank
        return lease

    async def _start(self, spec: SandboxSpec) -> Lease:
        """Start a sandbox whose room was taken already."""
        try:
            return self._born(spec, await self.engine.start(spec))
        except BaseException:
            self._budget.free(spec.memory_mb)
            raise

    def _born(self, spec: SandboxSpec, sandbox: Sandbox) -> Lease:
        now = asyncio.get_running_loop().time()
        return Lease(sandbox=sandbox, spec=spec, born=now, idle_since=now)

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
                blank = self._take_blank(spec)
                if blank is not None:
                    self._budget.free(spec.memory_mb)  # counted twice: as a blank, and as the room just taken
                    try:
                        lease = self._born(spec, await blank.specialise(spec))
                    except BaseException:
                        self._budget.free(spec.memory_mb)
                        raise
                else:
                    lease = await self._start(spec)
            finally:
                self._starting[spec] -= 1
                if not self._starting[spec]:
                    del self._starting[spec]
            self._put_idle(lease, lease.born)

    # Blanks

    async def _prepare(self, spec: SandboxSpec) -> None:
        if len(self._prepared) >= _PREPARED_REMEMBERED:
            self._prepared.clear()
        self._prepared[spec] = False
        try:
            self._prepared[spec] = await self.engine.prepare(spec)
        except BaseException:
            self._prepared.pop(spec, None)  # the next cold start tries again
            raise
        self._want_blanks(spec)

    def _take_blank(self, spec: SandboxSpec) -> Blank | None:
        """A blank for ``spec``, if its code is on this machine: a blank that waits for code is lost."""
        wanted = self._want_blanks(spec)
        blanks = self._blanks.get(wanted) if wanted is not None else None
        while blanks:
            blank = blanks.popleft()
            if blank.usable:
                self._blanks_short.set()
                return blank
            self._destroy_blank_later(blank)
        return None

    def _want_blanks(self, spec: SandboxSpec) -> BlankSpec | None:
        if not self.limits.blanks or not self._prepared.get(spec):
            return None
        wanted = blank_spec(spec)
        self._blank_wanted_at[wanted] = asyncio.get_running_loop().time()
        return wanted

    async def _fill_blanks(self, now: float) -> None:
        for spec, wanted_at in list(self._blank_wanted_at.items()):
            blanks = self._blanks.setdefault(spec, deque())
            for blank in [blank for blank in blanks if not blank.usable]:
                blanks.remove(blank)
                self._destroy_blank_later(blank)
            if now - wanted_at > _BLANKS_UNUSED_S:
                del self._blank_wanted_at[spec]
                for blank in self._blanks.pop(spec):
                    self._destroy_blank_later(blank)
                continue
            if not self._closed and len(blanks) < self.limits.blanks:
                await self._add_blank(spec)

    async def _add_blank(self, spec: BlankSpec) -> None:
        """Make a blank, if there is room. Else the idle sandbox that was used longest ago makes some: the next function
        that is called is rather one of those that have none at all."""
        if not self._budget.take_spare(spec.memory_mb):
            blanks_mb = sum(len(blanks) * of.memory_mb for of, blanks in self._blanks.items())
            if not self._budget.wanted and blanks_mb + spec.memory_mb <= _BLANKS_SHARE * self.limits.memory_mb:
                self._evict_idle(spec.memory_mb, spared=self._kept)
            return
        try:
            made = await self.engine.prestart(spec)
        except BaseException:
            self._budget.free(spec.memory_mb)
            raise
        if made is None:
            self._budget.free(spec.memory_mb)
            del self._blank_wanted_at[spec]
        else:
            self._put_blank(made)
            if len(self._blanks.get(spec, ())) < self.limits.blanks:
                self._blanks_short.set()

    def _put_blank(self, blank: Blank) -> None:
        if self._closed:
            self._destroy_blank_later(blank)
        else:
            self._blanks.setdefault(blank.spec, deque()).append(blank)

    # The budget

    async def _room(self, memory_mb: int) -> None:
        """Take ``memory_mb`` of the budget: what stands idle makes room, the least recently used first."""
        if memory_mb > self.limits.memory_mb:
            most = self.limits.memory_mb
            raise EngineUnavailable(f"A sandbox of {memory_mb} MB never fits into this worker's {most} MB of memory.")
        await self._budget.take(memory_mb, lambda: self._evict(memory_mb))

    def _evict(self, memory_mb: int) -> None:
        """Begin to destroy idle sandboxes, the least recently used first, then blanks, until enough will be free."""
        self._evict_idle(memory_mb, spared={})
        for blanks in self._blanks.values():
            while blanks and not self._budget.fits(memory_mb):
                self._destroy_blank_later(blanks.popleft())

    def _evict_idle(self, memory_mb: int, spared: Mapping[SandboxSpec, int]) -> None:
        idle = (lease for leases in self._idle.values() for lease in leases)
        for lease in sorted(idle, key=lambda lease: lease.idle_since):
            if self._budget.fits(memory_mb):
                return
            leases = self._idle[lease.spec]
            if len(leases) <= spared.get(lease.spec, 0):
                continue
            leases.remove(lease)
            if not leases:
                del self._idle[lease.spec]
            self._destroy_later(lease)

    # The end

    def _destroy_later(self, lease: Lease) -> asyncio.Task[None]:
        self._budget.leaves(lease.spec.memory_mb)
        return self._background(self._destroy(lease.sandbox, lease.spec.memory_mb))

    def _destroy_blank_later(self, blank: Blank) -> asyncio.Task[None]:
        self._budget.leaves(blank.spec.memory_mb)
        return self._background(self._destroy(blank, blank.spec.memory_mb))

    async def _destroy(self, sandbox: Sandbox | Blank, memory_mb: int) -> None:
        """Whoever waits for this waits for one try. Its room is free when it is gone, however many that takes."""
        try:
            await sandbox.destroy()
        except Exception as error:  # noqa: BLE001 - whatever it was, it is tried again
            log.warning("a sandbox could not be destroyed", extra={"sandbox": sandbox.id, "error": str(error)})
            self._background(self._destroy_at_last(sandbox, memory_mb))
        else:
            self._budget.left(memory_mb)

    async def _destroy_at_last(self, sandbox: Sandbox | Blank, memory_mb: int) -> None:
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
