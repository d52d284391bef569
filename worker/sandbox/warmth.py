"""Keeps sandboxes ready of the functions that ask for it (``min_warm``), and their images on this machine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from uuid import UUID

from shared.errors import ContainerPubError
from shared.functions import RunnableVersion
from shared.loop import Loop
from shared.postgres.functions import Functions
from worker.build.plan import BuildRejected
from worker.sandbox.contract import SandboxStarter
from worker.sandbox.pool import Pool
from worker.sandbox.versions import Specs

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 60.0


class Warmth:
    """Tells the pool which specs to keep, at first, whenever a function changed, and now and then.

    :param rebuild: makes the image of a version that this machine lost, or never had.
    """

    def __init__(
        self,
        pool: Pool,
        functions: Functions,
        specs: Specs,
        engine: SandboxStarter,
        rebuild: Callable[[RunnableVersion], Awaitable[RunnableVersion]],
    ) -> None:
        self._pool = pool
        self._functions = functions
        self._specs = specs
        self._engine = engine
        self._rebuild = rebuild
        self._rebuilt: dict[UUID, RunnableVersion] = {}  # made here: machines may differ in what they build on
        self._changed = asyncio.Event()

    def changed(self) -> None:
        self._changed.set()

    @property
    def loop(self) -> Loop:
        return Loop(name="warmth", run_once=self.run_once, interval_s=_LOOK_EVERY_S, wake=self._changed)

    async def run_once(self) -> int:
        """Look once; how many sandboxes are to be kept."""
        versions = {version.id: version for version in await self._functions.kept_warm()}
        self._rebuilt = {id: version for id, version in self._rebuilt.items() if id in versions}
        versions |= self._rebuilt
        here = {id: version for id, version in versions.items() if await self._is_here(version)}
        self._keep(here)
        for id, version in versions.items():
            if id not in here and (made := await self._make(version)) is not None:
                here[id] = self._rebuilt[id] = made
                self._keep(here)
        return sum(version.settings.min_warm for version in here.values())

    def _keep(self, versions: dict[UUID, RunnableVersion]) -> None:
        self._pool.keep({self._specs.of(version): version.settings.min_warm for version in versions.values()})

    async def _is_here(self, version: RunnableVersion) -> bool:
        return version.image is not None and await self._engine.has_image(version.image)

    async def _make(self, version: RunnableVersion) -> RunnableVersion | None:
        try:
            return await self._rebuild(version)
        except (ContainerPubError, BuildRejected) as error:
            log.warning("cannot build what is to be kept warm", extra={"version": str(version.id), "error": str(error)})
            return None
