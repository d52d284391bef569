"""The engine ``docker``."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from aiodocker import Docker
from aiodocker.types import JSONObject
from aiohttp import ClientTimeout

from worker.engine.attach import SOCKET_NAME, Rendezvous, SocketFolders, remove_folder
from worker.engine.config import EngineConfig
from worker.engine.contract import Blank, BlankSpec, BuildPlan, BuiltImage, EngineUnavailable, SandboxSpec
from worker.engine.docker.build import ImageBuilder
from worker.engine.docker.container import Container, engine_call
from worker.engine.docker.hardening import (
    LABEL_FUNCTION,
    LABEL_INSTALLATION,
    LABEL_SANDBOX,
    LABEL_VERSION,
    LABEL_WORKER,
    container_config,
    seccomp_profile,
)
from worker.engine.docker.sweep import sweep
from worker.engine.environment import environment
from worker.engine.fleet import Fleet
from worker.engine.recipe import Contract, load_recipe
from worker.engine.sandbox import AttachedSandbox

_MOUNT = "/run/containerpub"
_WORKING_DIR = "/function"


class DockerEngine:
    """Implements :class:`worker.engine.contract.Engine`."""

    name = "docker"

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._folders = SocketFolders.of(self.name, config)
        self._fleet = Fleet(config.start_timeout_s)
        self._docker: Docker | None = None
        self._builder: ImageBuilder | None = None
        self._seccomp = ""

    async def open(self) -> None:
        url = self._config.docker_host or await asyncio.to_thread(_local_socket)
        if url is None:
            raise EngineUnavailable("No container engine found: start Docker or Podman, or name its socket.")
        self._seccomp = await asyncio.to_thread(seccomp_profile)
        await asyncio.to_thread(self._folders.prepare)
        # Bounded call by call: a build may take minutes, a kill may not.
        self._docker = Docker(url=url, timeout=ClientTimeout(total=None))
        try:
            async with engine_call(f"asking the engine at {url} for its version", self._config.engine_call_timeout_s):
                await self._docker.version()
        except EngineUnavailable:
            await self.close()
            raise
        self._builder = ImageBuilder(self._docker, self._config)

    async def build(self, plan: BuildPlan, log: Callable[[str], None]) -> BuiltImage:
        if self._builder is None:
            raise RuntimeError("the engine is not open")
        return await self._builder.build(plan, log)

    async def start(self, spec: SandboxSpec) -> AttachedSandbox:
        recipe = await asyncio.to_thread(load_recipe, spec.runtime)
        if recipe.contract is not Contract.HANDLER:
            raise EngineUnavailable(f"The docker engine does not run the runtime {spec.runtime!r}.")
        sandbox_id = secrets.token_hex(8)
        folder = self._folders.folder(sandbox_id)

        def new_config(rendezvous: Rendezvous) -> JSONObject:
            return container_config(
                image=spec.image,
                command=recipe.command,
                working_dir=_WORKING_DIR,
                env=environment(spec, address=f"{_MOUNT}/{SOCKET_NAME}", token=rendezvous.token),
                labels={
                    LABEL_INSTALLATION: self._config.installation,
                    LABEL_WORKER: self._config.worker_id,
                    LABEL_SANDBOX: sandbox_id,
                    LABEL_VERSION: str(spec.version_id),
                    LABEL_FUNCTION: str(spec.function_id),
                },
                binds=[f"{folder}:{_MOUNT}:ro"],
                memory_mb=spec.memory_mb,
                cpus=spec.cpus,
                seccomp=self._seccomp,
                oci_runtime=self._config.oci_runtime,
            )

        def new_vessel() -> Container:
            timeout_s = self._config.engine_call_timeout_s
            return Container(self._client(), f"containerpub-{sandbox_id}", folder, timeout_s, new_config)

        return await self._fleet.start(sandbox_id, spec, folder, new_vessel)

    async def prestart(self, spec: BlankSpec) -> Blank | None:
        return None

    async def prepare(self, spec: SandboxSpec) -> bool:
        return False

    async def has_image(self, image: str) -> bool:
        found: list[object] = []
        async with engine_call("looking for an image", self._config.engine_call_timeout_s, 404):
            found.append(await self._client().images.inspect(image))
        return bool(found)

    async def remove_image(self, image: str) -> None:
        async with engine_call("removing an image", self._config.engine_call_timeout_s, 404):
            await self._client().images.delete(image, force=True)

    async def sweep(self, live_workers: frozenset[str]) -> int:
        return await sweep(self._client(), self._config, self._folders, live_workers, self._fleet.ids)

    async def close(self) -> None:
        if self._docker is None:
            return
        try:
            if self._builder is not None:
                await self._builder.close()
            await self._fleet.close()
            await asyncio.to_thread(remove_folder, self._folders.home)
        finally:
            docker, self._docker, self._builder = self._docker, None, None
            await docker.close()

    def _client(self) -> Docker:
        if self._docker is None:
            raise RuntimeError("the engine is not open")
        return self._docker


def _local_socket() -> str | None:
    """The first of the usual sockets that is there. Blocking."""
    usual = (
        "/run/docker.sock",
        "/var/run/docker.sock",
        "/run/podman/podman.sock",
        f"/run/user/{os.getuid()}/podman/podman.sock",
    )
    return next((f"unix://{path}" for path in usual if Path(path).is_socket()), None)
