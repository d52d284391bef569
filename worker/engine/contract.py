"""What an execution engine must offer, and the data that crosses its boundary.

An *engine* builds versions and starts *sandboxes*. ``docker`` makes containers, ``process`` child processes; both
are held to ``tests/acceptance/test_engine_conformance.py``. Nothing outside ``worker/engine`` knows which one runs.

A sandbox serves one call at a time. After any outcome but ``succeeded``, ``handler_error``, ``invalid_result`` and
``result_too_large`` it reports ``reusable = False`` and must be destroyed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol
from uuid import UUID

from worker.build.plan import BuildPlan, BuiltVersion
from worker.sandbox.contract import SandboxStarter

Standing = Callable[[frozenset[UUID]], Awaitable[Mapping[UUID, str | None]]]
"""Which of these versions stand: they exist, their build did not fail, and their function was not deleted. Answers the
base of each, ``None`` while it is being built."""


class Engine(SandboxStarter, Protocol):
    name: str

    async def open(self) -> None:
        """Check that the engine answers; raises :class:`EngineUnavailable` with what to do."""

    async def answers(self) -> bool:
        """Whether the engine serves requests just now, by a request with a short time-out."""

    async def build(self, plan: BuildPlan, log: Callable[[str], None]) -> BuiltVersion:
        """Make the layers of ``plan`` and put them into the artifact store. ``log`` takes output line by line.

        Building the same plan twice yields an equal result, on whatever machine; what a Dockerfile makes is the
        exception. Raises :class:`BuildRejected`, :class:`EngineUnavailable`, or :class:`shared.errors.Unavailable` when
        the store is away."""

    async def sweep(self, live_workers: frozenset[str]) -> int:
        """Destroy sandboxes, and remove folders and half-made images, of this installation whose worker is not in
        ``live_workers``; their count. Raises :class:`EngineUnavailable`."""

    async def collect_garbage(self, standing: Standing) -> int:
        """Remove images of this installation's versions that do not stand; then, while the rest takes more disk than it
        may, the least recently used images: first of versions, then of runtimes. How many went.

        An image that a sandbox or a running build of any worker uses stays, and so do those of other installations. A
        removed image is fetched or put together again when it is needed. Raises :class:`EngineUnavailable`, and the
        errors of ``standing``."""

    async def close(self) -> None:
        """Destroy every sandbox of this worker and let go of the engine."""
