"""Checking source files by the base image's own parser, in a capped container without network."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence

from worker.build.analysis import SOURCES, judge_check, read_sources
from worker.build.plan import BuildPlan
from worker.build.recipe import Recipe
from worker.config import EngineConfig
from worker.engine.docker.client import EngineClient
from worker.engine.docker.image import Image
from worker.engine.docker.tool import INSIDE, ToolLimits, Tools, TooMuchOutput, exchange_folder
from worker.sandbox.attach import SocketFolders

_MEMORY_MB = 512
_TIMEOUT_S = 30.0
_MAX_ANSWER_BYTES = 1024 * 1024


class Checker:
    """Runs a recipe's check script in its base image. It parses hostile source, and runs none of it."""

    def __init__(self, client: EngineClient, config: EngineConfig) -> None:
        self._tools = Tools(client, config)
        self._folders = SocketFolders.of("docker", config)

    async def check(self, plan: BuildPlan, recipe: Recipe, base: Image, entry: str) -> Sequence[str]:
        """The warnings of the check; none for recipes without one.

        :param entry: the file that the handler's module is.
        :raises BuildRejected: ``analysis_rejected``, with the first error as ``file:line: what``.
        """
        if recipe.check is None:
            return ()
        sources, left_out = await asyncio.to_thread(read_sources, plan.artifact, recipe)
        async with exchange_folder(self._folders, {SOURCES: sources}) as folder:
            limits = ToolLimits(
                memory_mb=_MEMORY_MB,
                tmpfs={},
                bind=folder,
                max_stdout_bytes=_MAX_ANSWER_BYTES,
                timeout_s=min(_TIMEOUT_S, plan.timeout_s),
            )
            with tempfile.SpooledTemporaryFile(max_size=_MAX_ANSWER_BYTES) as answer:
                argv = recipe.check.arguments(f"{INSIDE}/{SOURCES}", entry)
                try:
                    ended = await self._tools.run(base, argv, limits, answer, lambda _: None)
                except TooMuchOutput:
                    return judge_check(None, b"")
                answer.seek(0)
                return [*judge_check(ended.exit_code, answer.read()), *left_out]
