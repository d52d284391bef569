"""Keeps sandboxes ready of the functions that ask for it (``min_warm``)."""

from __future__ import annotations

import asyncio
import logging

from shared.errors import Unavailable
from shared.postgres.functions import Functions
from worker.pool import Pool
from worker.versions import Specs

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 60.0


class Warmth:
    """Tells the pool which specs to keep, at first, whenever a function changed, and now and then."""

    def __init__(self, pool: Pool, functions: Functions, specs: Specs) -> None:
        self._pool = pool
        self._functions = functions
        self._specs = specs
        self._changed = asyncio.Event()

    def changed(self) -> None:
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._changed.clear()
            try:
                await self.run_once()
            except Unavailable as error:
                log.warning("cannot see what to keep warm", extra={"error": error.message})
            try:
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def run_once(self) -> int:
        """Look once; how many sandboxes are to be kept."""
        versions = await self._functions.kept_warm()
        wanted = {self._specs.of(version): version.settings.min_warm for version in versions}
        self._pool.keep(wanted)
        return sum(wanted.values())
