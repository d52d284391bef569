"""Installing dependencies: a capped container without network runs foreign build scripts, and sends a tar."""

from __future__ import annotations

import asyncio
import tempfile
from typing import IO

from worker.build.build_log import BuildLog
from worker.build.dependency_manifest import DependencyManifest
from worker.build.index_proxy import EgressProxy
from worker.build.layer import MAX_ENTRIES, Layer, UnsafeEntry, in_thread, installed_layer
from worker.build.plan import BuildPlan, BuildRejected
from worker.build.recipe import Recipe
from worker.config import EngineConfig
from worker.engine.docker.client import EngineClient
from worker.engine.docker.image import Image
from worker.engine.docker.tool import INSIDE, Ended, ToolLimits, Tools, TooMuchOutput, exchange_folder
from worker.errors import EngineUnavailable
from worker.sandbox.attach import SOCKET_NAME, SocketFolders

_MEBIBYTE = 1024 * 1024
_ASK_TIMEOUT_S = 30.0
_MOST_ANSWER_BYTES = 4096


class Installer:
    """Runs a recipe's install script in its base image."""

    def __init__(self, client: EngineClient, config: EngineConfig) -> None:
        self._config = config
        self._tools = Tools(client, config)
        self._folders = SocketFolders.of("docker", config)
        self._index_hosts: dict[str, tuple[str, ...]] = {}

    async def install(
        self, plan: BuildPlan, recipe: Recipe, base: Image, manifest: DependencyManifest, log: BuildLog
    ) -> Layer:
        """The installed dependencies as a layer under the recipe's folder for them; nothing of the container is left.

        :raises BuildRejected: ``build_failed``, with the last thing the installation said.
        """
        assert recipe.install is not None
        hosts = self._config.index_hosts
        if hosts is None:
            hosts = await self._ask_index_hosts(recipe, base)
        first, target = next(iter(manifest.files)), f"/{recipe.dependencies}"
        spool: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed below, used by threads before
        try:
            async with (
                exchange_folder(self._folders, manifest.files) as folder,
                EgressProxy(folder / SOCKET_NAME, hosts, log.line),
            ):
                ended = await self._tools.run(
                    base,
                    recipe.install.arguments(f"{INSIDE}/{first}", target, f"{INSIDE}/{SOCKET_NAME}"),
                    ToolLimits(
                        memory_mb=plan.memory_mb,
                        # the unpacked packages, and at first the archives that they come from
                        tmpfs={target: 2 * plan.max_unpacked_bytes},
                        bind=folder,
                        # every entry may take a block for its header and part of one at its end
                        max_stdout_bytes=plan.max_unpacked_bytes + MAX_ENTRIES * 1024,
                        timeout_s=plan.timeout_s,
                    ),
                    spool,
                    log.feed,
                )
            log.flush()
            self._judge(plan, ended, log)
            await asyncio.to_thread(spool.seek, 0)
            return await in_thread(installed_layer, spool, recipe.dependencies, plan.max_unpacked_bytes, log.line)
        except TooMuchOutput:
            raise BuildRejected(
                "build_failed",
                f"The installed dependencies take more than {plan.max_unpacked_bytes // _MEBIBYTE} MB.",
            ) from None
        except UnsafeEntry as error:
            raise BuildRejected("build_failed", f"The installed dependencies cannot be used: {error}.") from error
        finally:
            await asyncio.to_thread(spool.close)

    @staticmethod
    def _judge(plan: BuildPlan, ended: Ended, log: BuildLog) -> None:
        if ended.killed:
            raise BuildRejected(
                "build_failed",
                f"Installing the dependencies needed more than {plan.memory_mb} MB of memory, "
                "in which the installed files count too.",
            )
        if ended.exit_code != 0:
            detail = f": {log.last_line}" if log.last_line else ""
            raise BuildRejected(
                "build_failed", f"Installing the dependencies failed with exit code {ended.exit_code}{detail}"
            )

    async def _ask_index_hosts(self, recipe: Recipe, base: Image) -> tuple[str, ...]:
        """The hosts that the base image's own package manager takes packages from; asked once an image."""
        assert recipe.install is not None
        if base.id not in self._index_hosts:
            with tempfile.SpooledTemporaryFile(max_size=_MOST_ANSWER_BYTES) as answer:
                ended = await self._tools.run(
                    base,
                    recipe.install.arguments("--hosts"),
                    ToolLimits(
                        memory_mb=256,
                        tmpfs={},
                        bind=None,
                        max_stdout_bytes=_MOST_ANSWER_BYTES,
                        timeout_s=_ASK_TIMEOUT_S,
                    ),
                    answer,
                    lambda _: None,
                )
                answer.seek(0)
                hosts = tuple(answer.read().decode("ascii", "replace").split())
            if ended.exit_code != 0 or not hosts:
                raise EngineUnavailable("The base image does not say where its package manager takes packages from.")
            self._index_hosts[base.id] = hosts
        return self._index_hosts[base.id]
