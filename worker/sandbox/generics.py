"""Generic sandboxes: they have no function's code yet, and quickly become a sandbox of any function of their runtime
and size."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from worker.sandbox.contract import GenericSandbox, GenericSpec, SandboxSpec, SandboxStarter, generic_spec

_UNUSED_S = 600.0
_PREPARED_REMEMBERED = 10_000


@dataclass(slots=True, kw_only=True)
class GenericSandboxes:
    """The generic sandboxes that stand ready, of every runtime and size in use.

    :param ready: how many of each; 0 for none. :param destroy: destroys a dropped one.
    """

    engine: SandboxStarter
    ready: int
    destroy: Callable[[GenericSandbox], object]
    short: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when one was taken, or is still missing."""
    _standing: dict[GenericSpec, deque[GenericSandbox]] = field(default_factory=dict)
    _wanted_at: dict[GenericSpec, float] = field(default_factory=dict)
    _prepared: dict[SandboxSpec, bool] = field(default_factory=dict)  # whether one can become it; absent: unknown
    _preparing: dict[SandboxSpec, asyncio.Task[None]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return sum(len(standing) for standing in self._standing.values())

    @property
    def memory_mb(self) -> int:
        return sum(len(standing) * of.memory_mb for of, standing in self._standing.items())

    def knows(self, spec: SandboxSpec) -> bool:
        """Whether :meth:`prepare` was asked about ``spec``."""
        return spec in self._prepared

    def stands_for(self, spec: SandboxSpec) -> bool:
        """Whether one could become a sandbox of ``spec`` now."""
        return bool(self._prepared.get(spec)) and bool(self._standing.get(generic_spec(spec)))

    def might_stand_for(self, spec: SandboxSpec) -> bool:
        """Whether one stands ready that could become a sandbox of ``spec``, as far as is known before
        :meth:`prepare`."""
        return spec not in self._prepared and bool(self._standing.get(generic_spec(spec)))

    async def prepare(self, spec: SandboxSpec) -> None:
        """Bring the code of ``spec`` to this machine, so that one can be made of it; once for all who ask meanwhile.
        Raises :class:`worker.errors.EngineUnavailable`."""
        preparing = self._preparing.get(spec)
        if preparing is None:
            preparing = self._preparing[spec] = asyncio.create_task(self._prepare(spec), name="prepare")
            preparing.add_done_callback(partial(self._was_prepared, spec))
        # A caller that goes away leaves the others theirs.
        await asyncio.wait((preparing,))
        preparing.result()

    def _was_prepared(self, spec: SandboxSpec, preparing: asyncio.Task[None]) -> None:
        del self._preparing[spec]
        if not preparing.cancelled():
            preparing.exception()  # its callers may all have gone away

    async def _prepare(self, spec: SandboxSpec) -> None:
        can_become = await self.engine.prepare(spec)  # if it fails, the next cold start tries again
        if len(self._prepared) >= _PREPARED_REMEMBERED:
            self._prepared.clear()
        self._prepared[spec] = can_become
        self._want(spec)

    def take(self, spec: SandboxSpec) -> GenericSandbox | None:
        """A generic sandbox for ``spec``; None if there is none, or the version's code is not on this machine: a
        generic sandbox must not wait for code."""
        wanted = self._want(spec)
        standing = self._standing.get(wanted) if wanted is not None else None
        while standing:
            generic = standing.popleft()
            if generic.usable:
                self.short.set()
                return generic
            self.destroy(generic)
        return None

    def put(self, generic: GenericSandbox) -> None:
        standing = self._standing.setdefault(generic.spec, deque())
        standing.append(generic)
        if len(standing) < self.ready:
            self.short.set()

    def missing(self, now: float) -> list[GenericSpec]:
        """Drop dead ones, and specs that no version has asked for in ten minutes; the specs with too few ready."""
        for spec, wanted_at in list(self._wanted_at.items()):
            standing = self._standing.setdefault(spec, deque())
            for generic in [generic for generic in standing if not generic.usable]:
                standing.remove(generic)
                self.destroy(generic)
            if now - wanted_at > _UNUSED_S:
                self.give_up(spec)
        return [spec for spec in self._wanted_at if len(self._standing[spec]) < self.ready]

    def give_up(self, spec: GenericSpec) -> None:
        """Keep none of this spec ready until a version asks for it again."""
        self._wanted_at.pop(spec, None)
        for generic in self._standing.pop(spec, ()):
            self.destroy(generic)

    def evict(self, enough: Callable[[], bool]) -> None:
        for standing in self._standing.values():
            while standing and not enough():
                self.destroy(standing.popleft())

    def drop_all(self) -> None:
        while self._standing:
            _, standing = self._standing.popitem()
            for generic in standing:
                self.destroy(generic)

    def _want(self, spec: SandboxSpec) -> GenericSpec | None:
        if not self.ready or not self._prepared.get(spec):
            return None
        wanted = generic_spec(spec)
        self._wanted_at[wanted] = time.monotonic()
        return wanted
