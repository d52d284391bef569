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
"""Which of these versions stand: they are known, their build did not fail, and their function was not deleted. Answers
what each stands on, ``None`` while it is being built."""


class Engine(SandboxStarter, Protocol):
    name: str

    async def open(self) -> None:
        """Check that the engine answers; raises :class:`EngineUnavailable` with what to do."""

    async def answers(self) -> bool:
        """Whether the engine serves requests just now; asked with a short bound."""

    async def build(self, plan: BuildPlan, log: Callable[[str], None]) -> BuiltVersion:
        """Make the layers of ``plan`` and put them into the artifact store. ``log`` takes output line by line.

        Building the same plan twice yields an equal result, on whatever machine; what a Dockerfile makes is the
        exception. Raises :class:`BuildRejected`, :class:`EngineUnavailable`, or :class:`shared.errors.Unavailable` when
        the store is away."""

    async def sweep(self, live_workers: frozenset[str]) -> int:
        """Destroy sandboxes, and remove folders and half-made images, of this installation whose worker is not in
        ``live_workers``; their count. Raises :class:`EngineUnavailable`."""

    async def collect_garbage(self, standing: Standing) -> int:
        """Remove images of this installation's versions that do not stand; then, while what is left takes more disk
        than it may, the images that were not used for longest: of versions, then of runtimes. How many went.

        What a sandbox or a running build uses stays, whoever's worker it is; another installation's too. What went is
        fetched or put together again when it is wanted. Raises :class:`EngineUnavailable`, and what ``standing``
        raises."""

    async def close(self) -> None:
        """Destroy every sandbox of this worker and let go of the engine."""
