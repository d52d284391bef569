"""What an execution engine must offer, and the data that crosses its boundary.

An *engine* builds versions and starts *sandboxes*. ``docker`` makes containers, ``process`` child processes; both
are held to ``tests/acceptance/test_engine_conformance.py``. No other module knows which one runs.

What goes into a sandbox and out of it: ``worker/sandbox/contract.py``; of a build: ``worker/build/plan.py``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol
from uuid import UUID

from worker.build.plan import BuildPlan, BuiltImage
from worker.sandbox.contract import SandboxStarter

Standing = Callable[[frozenset[UUID]], Awaitable[Mapping[UUID, str | None]]]
"""Which of these versions stand: they are known, their build did not fail, and their function was not deleted. Answers
the image of each, ``None`` while it is being built."""


class Engine(SandboxStarter, Protocol):
    name: str

    async def open(self) -> None:
        """Check that the engine answers; raises :class:`EngineUnavailable` with what to do."""

    async def answers(self) -> bool:
        """Whether the engine serves requests just now; asked with a short bound."""

    async def build(self, plan: BuildPlan, log: Callable[[str], None]) -> BuiltImage:
        """Make ``plan`` startable. ``log`` takes output line by line. Raises :class:`BuildRejected` or
        :class:`EngineUnavailable`. Building the same plan twice yields an equal result; where a Dockerfile is built,
        on one machine only."""

    async def remove_image(self, image: str) -> None:
        """Drop a version's image; absent is fine. One that a sandbox still uses is left to :meth:`collect_garbage`."""

    async def sweep(self, live_workers: frozenset[str]) -> int:
        """Destroy sandboxes, and remove folders and half-made images, of this installation whose worker is not in
        ``live_workers``; their count. Raises :class:`EngineUnavailable`."""

    async def collect_garbage(self, standing: Standing) -> int:
        """Remove the images of this installation's versions that do not stand; then, while what is left takes more
        disk than it may, the images of versions that were not used for longest, dependencies that no version stands
        on, and runtimes at last. How many went.

        What a sandbox or a running build uses stays, whoever's worker it is; another installation's too. A version
        whose image went is built again at its next call. Raises :class:`EngineUnavailable`, and what ``standing``
        raises."""

    async def close(self) -> None:
        """Destroy every sandbox of this worker and let go of the engine."""
