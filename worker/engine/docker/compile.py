"""Compiling a version: its image's own tools run in a capped container without network, and send a tar."""

from __future__ import annotations

import asyncio
import tempfile
from typing import IO

from worker.build.build_log import BuildLog
from worker.build.layer import MAX_ENTRIES, Layer, UnsafeEntry, in_thread, installed_layer
from worker.build.plan import BuildPlan, BuildRejected
from worker.build.recipe import COMPILED, Recipe
from worker.config import EngineConfig
from worker.engine.docker.client import EngineClient
from worker.engine.docker.image import Image
from worker.engine.docker.tool import ToolLimits, Tools, TooMuchOutput


class Compiler:
    """Runs a recipe's compile script in an image that has the version's code."""

    def __init__(self, client: EngineClient, config: EngineConfig) -> None:
        self._tools = Tools(client, config)

    async def compile(self, plan: BuildPlan, recipe: Recipe, image: Image, log: BuildLog) -> Layer:
        """What the script wrote, as a layer under ``compiled/``; nothing of the container is left.

        :raises BuildRejected: ``build_failed``, with the last thing the script said.
        """
        assert recipe.compile is not None
        target = f"/{COMPILED}"
        limits = ToolLimits(
            memory_mb=plan.memory_mb,
            tmpfs={target: plan.max_unpacked_bytes},
            bind=None,
            max_stdout_bytes=plan.max_unpacked_bytes + MAX_ENTRIES * 1024,
            timeout_s=plan.timeout_s,
        )
        argv = recipe.compile.arguments(plan.handler or recipe.default_handler, target)
        spool: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed below, used by threads before
        try:
            log.line("compiling")
            ended = await self._tools.run(image, argv, limits, spool, log.feed)
            log.flush()
            if ended.killed:
                raise BuildRejected("build_failed", f"Compiling needed more than {plan.memory_mb} MB of memory.")
            if ended.exit_code != 0:
                detail = f": {log.last_line}" if log.last_line else ""
                raise BuildRejected("build_failed", f"Compiling failed with exit code {ended.exit_code}{detail}")
            await asyncio.to_thread(spool.seek, 0)
            return await in_thread(installed_layer, spool, COMPILED, plan.max_unpacked_bytes, log.line)
        except (TooMuchOutput, UnsafeEntry) as error:
            raise BuildRejected("build_failed", f"What was compiled cannot be used: {error}.") from error
        finally:
            await asyncio.to_thread(spool.close)
