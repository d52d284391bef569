"""Making sandboxes: from a generic one where one stands ready, else from the version's image, and the room for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from worker.errors import EngineUnavailable
from worker.sandbox.contract import GenericSandbox, GenericSpec, Sandbox, SandboxSpec, SandboxStarter
from worker.sandbox.generics import GenericSandboxes
from worker.sandbox.idle import IdleSandboxes
from worker.sandbox.memory_budget import Budget, Turn
from worker.sandbox.pooled import PooledSandbox
from worker.sandbox.start_costs import StartCosts
from worker.sandbox.waiters import Start

log = logging.getLogger(__name__)

_RESTED_S = 1.0
"""How long a sandbox must have been idle before a version that has sandboxes already may take its room."""
_GENERICS_SHARE = 0.25
"""The share of the memory up to which idle sandboxes make room for generic ones."""


@dataclass(slots=True, kw_only=True)
class Maker:
    """:param destroy: destroys a generic sandbox that failed; it counts in the budget until it is gone."""

    engine: SandboxStarter
    budget: Budget
    idle: IdleSandboxes
    generics: GenericSandboxes
    destroy: Callable[[GenericSandbox], object]
    costs: StartCosts = field(default_factory=StartCosts)

    def cost_s(self, spec: SandboxSpec) -> float:
        """What the next start of ``spec`` will take."""
        return self.costs.of_start(from_generic=self.generics.stands_for(spec))

    async def make(self, spec: SandboxSpec, start: Start) -> PooledSandbox | None:
        """A new sandbox for ``start``; ``None`` if it may displace nothing and there is no room."""
        if self.generics.might_stand_for(spec):
            # Another worker built this version. Its code has to come here for a start from the image too.
            await self.generics.prepare(spec)
        if self.generics.stands_for(spec):
            start.begun = True
            pooled = await self.from_generic(spec)
            if pooled is not None:
                return pooled
            start.begun = False
        if start.displaces or not self.budget.take_spare(spec.memory_mb):
            if not start.displaces and not self._rested_make_room(spec.memory_mb):
                return None
            await self.budget.take(Turn(spec=spec, since=start.owner.since), self._evict)
        start.begun = True
        return await self.from_image(spec)

    async def from_image(self, spec: SandboxSpec) -> PooledSandbox:
        """Start a sandbox whose room was taken already."""
        began = time.monotonic()
        try:
            sandbox = await self.engine.start(spec)
        except BaseException:
            self.budget.free(spec.memory_mb)
            raise
        self.costs.from_image(time.monotonic() - began)
        return _born(spec, sandbox)

    async def from_generic(self, spec: SandboxSpec) -> PooledSandbox | None:
        """A sandbox made of a generic one, with the room that this one had; ``None`` if there is none that can be
        used."""
        generic = self.generics.take(spec)
        if generic is None:
            return None
        began = time.monotonic()
        try:
            sandbox = await generic.specialize(spec)
        except BaseException as error:
            self.destroy(generic)
            if not isinstance(error, EngineUnavailable):
                raise
            log.warning("a generic sandbox could not be used", extra={"error": str(error)})
            return None
        self.costs.specialized(time.monotonic() - began)
        return _born(spec, sandbox)

    async def add_generic(self, spec: GenericSpec, kept: Mapping[SandboxSpec, int]) -> GenericSandbox | None:
        """Start a generic sandbox if there is room. If not, begin to destroy the least recently used idle sandboxes,
        except ``kept`` ones, so that a later call finds room: the next call is more likely of a function without
        any."""
        if not self.budget.take_spare(spec.memory_mb):
            share_mb = _GENERICS_SHARE * self.budget.limit_mb
            if self.budget.first is None and self.generics.memory_mb + spec.memory_mb <= share_mb:
                self.idle.evict(lambda: self.budget.fits(spec.memory_mb), spared=kept)
            return None
        began = time.monotonic()
        try:
            made = await self.engine.start_generic(spec)
        except BaseException:
            self.budget.free(spec.memory_mb)
            raise
        if made is None:
            self.budget.free(spec.memory_mb)
            self.generics.give_up(spec)
        else:
            self.costs.generic(time.monotonic() - began)
        return made

    def _evict(self, memory_mb: int) -> None:
        """Begin to destroy idle sandboxes, the least recently used first, then generic ones, until so much will be
        free."""
        self.idle.evict(lambda: self.budget.fits(memory_mb), spared={})
        self.generics.evict(lambda: self.budget.fits(memory_mb))

    def _rested_make_room(self, memory_mb: int) -> bool:
        """Whether so much will be free without destroying a sandbox that was in use a moment ago."""
        if self.budget.first is not None:
            return False
        rested = time.monotonic() - _RESTED_S
        self.idle.evict(lambda: self.budget.fits(memory_mb), spared={}, idle_before=rested)
        return self.budget.fits(memory_mb)


def _born(spec: SandboxSpec, sandbox: Sandbox) -> PooledSandbox:
    now = time.monotonic()
    return PooledSandbox(sandbox=sandbox, spec=spec, born=now, idle_since=now)
