"""Sandboxes that wait for the next call of their version, and which of them go first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from worker.sandbox.contract import SandboxSpec
from worker.sandbox.pooled import PooledSandbox


@dataclass(slots=True, kw_only=True)
class IdleSandboxes:
    """Holds idle sandboxes only, not those in use. ``destroy`` gets the sandboxes that it drops."""

    destroy: Callable[[PooledSandbox], object]
    _by_spec: dict[SandboxSpec, deque[PooledSandbox]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[PooledSandbox]:
        return iter([pooled for pooled_sandboxes in self._by_spec.values() for pooled in pooled_sandboxes])

    def count(self, spec: SandboxSpec) -> int:
        return len(self._by_spec.get(spec, ()))

    def put(self, pooled: PooledSandbox) -> None:
        """Add one that was in use just now, or one that is paused, which is to be used after all others."""
        pooled_sandboxes = self._by_spec.get(pooled.spec)
        if pooled_sandboxes is None:
            pooled_sandboxes = self._by_spec[pooled.spec] = deque()
        if pooled.paused:
            pooled_sandboxes.appendleft(pooled)
        else:
            pooled_sandboxes.append(pooled)

    def take(self, spec: SandboxSpec) -> PooledSandbox | None:
        """The one that was used last, so that the others may cool down. Dead ones are dropped."""
        pooled_sandboxes = self._by_spec.get(spec)
        while pooled_sandboxes:
            pooled = pooled_sandboxes.pop()
            if pooled.sandbox.reusable:
                return pooled
            self.destroy(pooled)
        return None

    def remove(self, pooled: PooledSandbox) -> bool:
        """Take out this one; False if it is not here any more."""
        pooled_sandboxes = self._by_spec.get(pooled.spec)
        if pooled_sandboxes is None or pooled not in pooled_sandboxes:
            return False
        pooled_sandboxes.remove(pooled)
        return True

    def drop(self, unwanted: Callable[[SandboxSpec], bool]) -> None:
        for spec in [spec for spec in self._by_spec if unwanted(spec)]:
            for pooled in self._by_spec.pop(spec):
                self.destroy(pooled)

    def reap(self, over: Callable[[PooledSandbox, int], bool]) -> int:
        """Drop those that are ``over``, which is told how many of their spec there are; how many went."""
        gone = 0
        for pooled in self:
            if over(pooled, self.count(pooled.spec)):
                self.remove(pooled)
                self.destroy(pooled)
                gone += 1
        for spec in [spec for spec, pooled_sandboxes in self._by_spec.items() if not pooled_sandboxes]:
            del self._by_spec[spec]  # not each time that the last one is taken: calls come and go
        return gone

    def evict(
        self, enough: Callable[[], bool], *, spared: Mapping[SandboxSpec, int], idle_before: float | None = None
    ) -> None:
        """Drop the least recently used until it is ``enough``, but so many of each spec as are ``spared``.

        :param idle_before: none that was in use after this time.
        """
        for pooled in sorted(self, key=lambda pooled: pooled.idle_since):
            if enough() or (idle_before is not None and pooled.idle_since > idle_before):
                return
            if self.count(pooled.spec) > spared.get(pooled.spec, 0):
                self.remove(pooled)
                self.destroy(pooled)
