"""Warm sandboxes: kept per function version, handed out one call at a time, gone when idle for long."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from uuid import UUID

from worker.engine.contract import Engine, Sandbox, SandboxSpec

log = logging.getLogger(__name__)

_REAP_EVERY_S = 1.0


@dataclass(slots=True, kw_only=True, eq=False)
class Lease:
    """A sandbox in use by one attempt."""

    sandbox: Sandbox
    spec: SandboxSpec
    warm: bool
    uses: int = 0
    idle_since: float = 0.0


@dataclass(slots=True, kw_only=True)
class Pool:
    """All sandboxes of one worker.

    Two attempts share a sandbox only one after the other, only if their specs are equal, and only while it reports
    itself reusable.

    :param most: sandboxes at a time, busy or idle; the least recently used idle one makes room.
    :param idle_s: idle time after which a sandbox goes.
    :param max_uses: calls after which a sandbox is replaced.
    """

    engine: Engine
    most: int
    idle_s: float
    max_uses: int
    _idle: dict[SandboxSpec, list[Lease]] = field(default_factory=dict)
    _count: int = 0
    _leaving: set[asyncio.Task[None]] = field(default_factory=set)

    async def acquire(self, spec: SandboxSpec) -> Lease:
        """An idle sandbox of ``spec``, else a new one. Raises :class:`EngineUnavailable`."""
        waiting = self._idle.get(spec)
        while waiting:
            lease = waiting.pop()  # the one used last: the others may cool down
            if lease.sandbox.reusable:
                lease.warm = True
                return lease
            self._destroy_later(lease)
        while self._count >= self.most and self._evict():
            pass
        self._count += 1
        try:
            sandbox = await self.engine.start(spec)
        except BaseException:
            self._count -= 1
            raise
        return Lease(sandbox=sandbox, spec=spec, warm=False)

    def release(self, lease: Lease) -> Awaitable[None] | None:
        """Take a sandbox back. Returns what must end before it is gone, if it cannot be used again."""
        lease.uses += 1
        if lease.sandbox.reusable and lease.uses < self.max_uses:
            lease.idle_since = asyncio.get_running_loop().time()
            self._idle.setdefault(lease.spec, []).append(lease)
            return None
        return asyncio.shield(self._destroy_later(lease))

    def drop(self, unwanted: Callable[[SandboxSpec], bool]) -> None:
        """Destroy the idle sandboxes whose spec is ``unwanted``."""
        for spec in [spec for spec in self._idle if unwanted(spec)]:
            for lease in self._idle.pop(spec):
                self._destroy_later(lease)

    def drop_function(self, function: UUID) -> None:
        self.drop(lambda spec: spec.function_id == function)

    async def reap(self) -> None:
        """Let idle sandboxes go when their time is over; runs until cancelled."""
        while True:
            await asyncio.sleep(_REAP_EVERY_S)
            self.reap_once(asyncio.get_running_loop().time())

    def reap_once(self, now: float) -> int:
        """Destroy what has been idle too long or died meanwhile; their count."""
        gone = 0
        for spec, leases in list(self._idle.items()):
            keep = []
            for lease in leases:
                if lease.sandbox.reusable and now - lease.idle_since < self.idle_s:
                    keep.append(lease)
                else:
                    self._destroy_later(lease)
                    gone += 1
            if keep:
                self._idle[spec] = keep
            else:
                del self._idle[spec]
        return gone

    async def close(self) -> None:
        """Destroy every idle sandbox and wait for those that are leaving."""
        self.drop(lambda _: True)
        if self._leaving:
            await asyncio.wait(self._leaving)

    def _evict(self) -> bool:
        oldest = min(
            (lease for leases in self._idle.values() for lease in leases),
            key=lambda lease: lease.idle_since,
            default=None,
        )
        if oldest is None:
            return False
        leases = self._idle[oldest.spec]
        leases.remove(oldest)
        if not leases:
            del self._idle[oldest.spec]
        self._destroy_later(oldest)
        return True

    def _destroy_later(self, lease: Lease) -> asyncio.Task[None]:
        self._count -= 1
        task = asyncio.create_task(self._destroy(lease), name=f"destroy-{lease.sandbox.id}")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        return task

    async def _destroy(self, lease: Lease) -> None:
        try:
            await lease.sandbox.destroy()
        except Exception as error:  # noqa: BLE001 - the sweep takes what could not be destroyed; the slot must go on
            log.warning("a sandbox could not be destroyed", extra={"sandbox": lease.sandbox.id, "error": str(error)})
