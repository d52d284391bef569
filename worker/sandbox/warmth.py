"""Keeps sandboxes ready of the functions that ask for it (``min_warm``)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from uuid import UUID

from shared.errors import ContainerPubError
from shared.functions import RunnableVersion
from shared.loop import Loop
from shared.postgres.versions import Versions
from worker.build.plan import BuildRejected
from worker.sandbox.contract import SandboxStarter
from worker.sandbox.pool import Pool
from worker.sandbox.versions import Specs

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 60.0


class Warmth:
    """Tells the pool which specs to keep, at first, whenever a function changed, and now and then.

    :param suited: builds a version again that this worker's engine cannot use as it is.
    """

    def __init__(
        self,
        pool: Pool,
        versions: Versions,
        specs: Specs,
        engine: SandboxStarter,
        suited: Callable[[RunnableVersion], Awaitable[RunnableVersion]],
    ) -> None:
        self._pool = pool
        self._versions = versions
        self._specs = specs
        self._engine = engine
        self._suited = suited
        self._changed = asyncio.Event()

    def changed(self) -> None:
        self._changed.set()

    @property
    def loop(self) -> Loop:
        return Loop(name="warmth", run_once=self.run_once, interval_s=_LOOK_EVERY_S, wake=self._changed)

    async def run_once(self) -> int:
        """Look once; how many sandboxes are to be kept."""
        versions = {version.id: version for version in await self._versions.kept_warm()}
        here = {id: version for id, version in versions.items() if await self._is_suited(version)}
        self._keep(here)
        for id, version in versions.items():
            if id not in here and (made := await self._make(version)) is not None:
                here[id] = made
                self._keep(here)
        return sum(version.settings.min_warm for version in here.values())

    def _keep(self, versions: dict[UUID, RunnableVersion]) -> None:
        self._pool.keep({self._specs.of(version): version.settings.min_warm for version in versions.values()})

    async def _is_suited(self, version: RunnableVersion) -> bool:
        return version.layers is not None and await self._engine.suits(version.settings.runtime, version.layers)

    async def _make(self, version: RunnableVersion) -> RunnableVersion | None:
        try:
            return await self._suited(version)
        except (ContainerPubError, BuildRejected) as error:
            log.warning("cannot build what is to be kept warm", extra={"version": str(version.id), "error": str(error)})
            return None
