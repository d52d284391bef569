"""The engine ``docker``."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from aiodocker import Docker
from aiodocker.types import JSONObject
from aiohttp import ClientTimeout

from shared.capping import is_rootless, uncapped
from worker.build.code_cache import CodeCache
from worker.build.plan import BuildPlan, BuiltImage
from worker.build.recipe import Contract, Recipe, load_recipe
from worker.config import EngineConfig
from worker.engine.contract import Standing
from worker.engine.docker.build import ImageBuilder
from worker.engine.docker.client import EngineClient
from worker.engine.docker.code import VersionCode
from worker.engine.docker.command import start_command
from worker.engine.docker.container import Container
from worker.engine.docker.egress_namespace import EgressNamespaces
from worker.engine.docker.generic import GenericFolders
from worker.engine.docker.hardening import (
    LABEL_FUNCTION,
    LABEL_INSTALLATION,
    LABEL_SANDBOX,
    LABEL_VERSION,
    LABEL_WORKER,
    container_config,
    seccomp_profile,
)
from worker.engine.docker.image import Images
from worker.engine.docker.image_gc import ImageCollector
from worker.engine.docker.libpod import in_libpods_words
from worker.engine.docker.sweep import remove_own, sweep
from worker.engine.image_use import ImageUse
from worker.errors import EngineUnavailable
from worker.sandbox.attach import SOCKET_NAME, Rendezvous, SocketFolders, remove_folder
from worker.sandbox.attached import AttachedSandbox
from worker.sandbox.command import CommandSandbox
from worker.sandbox.contract import GenericSpec, SandboxSpec
from worker.sandbox.environment import environment, generic_can_become, generic_environment
from worker.sandbox.generic import AttachedGeneric
from worker.sandbox.registry import SandboxRegistry
from worker.sandbox.start import start_attached

_log = logging.getLogger(__name__)
_MOUNT = "/run/containerpub"
_WORKING_DIR = "/function"
_ANSWER_TIMEOUT_S = 5.0


class DockerEngine:
    """Implements :class:`worker.engine.contract.Engine`."""

    name = "docker"

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._folders = SocketFolders.of(self.name, config)
        self._sandboxes = SandboxRegistry()
        self._generics = GenericFolders(self.name, config)
        self._cache = CodeCache(config.data_dir.absolute() / "code", config.worker_id, config.code_cache_bytes)
        self._use = ImageUse(config.data_dir)
        self._running: dict[str, str] = {}  # sandbox id to the id of its version's image
        self._code: VersionCode | None = None
        self._engine: EngineClient | None = None
        self._builder: ImageBuilder | None = None
        self._collector: ImageCollector | None = None
        self._namespaces: EgressNamespaces | None = None
        self._seccomp = ""
        self.on_podman = False  # known once it is open
        self._turns = asyncio.Semaphore(config.max_container_changes or 1)

    async def open(self) -> None:
        url = self._config.docker_host or await asyncio.to_thread(_local_socket)
        if url is None:
            raise EngineUnavailable("No container engine found: start Docker or Podman, or name its socket.")
        self._seccomp = await asyncio.to_thread(seccomp_profile)
        await asyncio.to_thread(self._folders.prepare)
        try:
            await asyncio.to_thread(self._generics.open)
            await asyncio.to_thread(self._cache.open)
        except OSError as error:
            raise EngineUnavailable(
                f"The data folder {self._config.data_dir} cannot be used: {error.strerror}."
            ) from error
        # Bounded call by call: a build may take minutes, a kill may not.
        client = EngineClient(Docker(url=url, timeout=ClientTimeout(total=None)), self._config.engine_call_timeout_s)
        try:
            await client.version()
            info = await client.info()
            libpod = await client.speaks_libpod()
            if (reason := uncapped(info)) is not None:
                raise EngineUnavailable(f"The container engine at {url} would not cap functions: {reason}.")
            if libpod:
                profile = self._folders.home / "seccomp.json"
                await asyncio.to_thread(profile.write_text, self._seccomp, "utf-8")
                client.containers.translate = partial(in_libpods_words, seccomp=profile, rootless=is_rootless(info))
        except BaseException:
            # Nothing of ours is on this engine yet, and one that does not answer is not asked again at the end.
            await client.close()
            raise
        if not self._config.max_container_changes:
            self._turns = asyncio.Semaphore(max(1, int(info.get("NCPU") or 1)))
        self._engine, self.on_podman = client, libpod
        self._builder = ImageBuilder(client, self._config)
        self._code = VersionCode(client, self._config, self._cache)
        self._collector = ImageCollector(client, self._config, self._use)
        self._namespaces = EgressNamespaces(client, self._config, podman=libpod)

    async def answers(self) -> bool:
        try:
            await self._client().version(timeout_s=_ANSWER_TIMEOUT_S)
        except EngineUnavailable:
            return False
        return True

    async def build(self, plan: BuildPlan, log: Callable[[str], None]) -> BuiltImage:
        if self._builder is None:
            raise RuntimeError("the engine is not open")
        return await self._builder.build(plan, log)

    async def start(self, spec: SandboxSpec) -> AttachedSandbox | CommandSandbox:
        recipe = await asyncio.to_thread(load_recipe, spec.runtime)
        if recipe.contract is Contract.COMMAND:
            # Its container comes with the call, and a missing image has to be noticed before.
            builder, _ = self._opened()
            image = await builder.find(spec.image)
            if image is None:
                raise EngineUnavailable(f"The image {spec.image} is not on this machine.")
            namespaces = self._opened_namespaces()
            command = await start_command(
                self._sandboxes,
                self._client(),
                self._config,
                self._folders,
                namespaces,
                self._turns,
                recipe,
                spec,
                image,
            )
            self._runs(command.id, spec.image)
            return command
        return await self._start(
            secrets.token_hex(8),
            recipe,
            spec,
            lambda attachment: environment(spec, **attachment),
            lambda sandbox: sandbox.imported(spec.timeout_ms / 1000),
            image=spec.image,
            labels={LABEL_VERSION: str(spec.version_id), LABEL_FUNCTION: str(spec.function_id)},
        )

    async def start_generic(self, spec: GenericSpec) -> AttachedGeneric | None:
        recipe = await asyncio.to_thread(load_recipe, spec.runtime)
        if not recipe.generics or not self._generics.possible:
            return None
        builder, code = self._opened()
        runtime = await builder.runtime_image(recipe)
        sandbox_id = secrets.token_hex(8)
        try:
            sandbox = await self._start(
                sandbox_id,
                recipe,
                spec,
                lambda attachment: generic_environment(spec, **attachment),
                partial(self._generics.check, recipe),
                image=runtime.id,
                labels={},
                folders=await asyncio.to_thread(self._generics.make, recipe, sandbox_id),
            )
        except EngineUnavailable as error:
            if self._generics.refuse(error):
                return None
            if spec.network == "none":
                raise
            # Whatever is wrong with the network, generic sandboxes without one must not wait for it.
            _log.warning("no generic sandbox with a network", extra={"error": error.message})
            return None

        async def outfit(of: SandboxSpec) -> Mapping[str, str]:
            self._runs(sandbox_id, of.image)
            return await self._generics.outfit(code, recipe, runtime, sandbox_id, of)

        return AttachedGeneric(sandbox, spec, outfit)

    async def prepare(self, spec: SandboxSpec) -> bool:
        recipe = await asyncio.to_thread(load_recipe, spec.runtime)
        if not recipe.generics or not self._generics.possible or not generic_can_become(spec, recipe):
            return False
        builder, code = self._opened()
        return await code.prepare(spec, recipe, await builder.runtime_image(recipe))

    async def has_image(self, image: str) -> bool:
        return await Images(self._client(), self._config).find(image) is not None

    async def remove_image(self, image: str) -> None:
        if self._code is not None:
            await self._code.forget(image)
        await Images(self._client(), self._config).remove(image, force=True)

    async def sweep(self, live_workers: frozenset[str]) -> int:
        folders = (self._folders, self._generics.folders)
        count = await self._sandboxes.sweep()
        count += await sweep(self._client().containers, self._config, folders, live_workers, self._sandboxes.ids)
        count += await self._opened_collector().sweep(live_workers)
        builder, _ = self._opened()
        count += await builder.sweep(live_workers)
        return count + await asyncio.to_thread(self._cache.sweep, live_workers)

    async def collect_garbage(self, standing: Standing) -> int:
        own = self._sandboxes.ids
        self._running = {sandbox: image for sandbox, image in self._running.items() if sandbox in own}
        return await self._opened_collector().collect_garbage(standing, set(self._running.values()))

    async def close(self) -> None:
        if self._engine is None:
            await asyncio.to_thread(self._close_folders)
            return
        try:
            if self._builder is not None:
                await self._builder.close()
            if self._code is not None:
                await self._code.close()
            with suppress(EngineUnavailable):
                await self._sandboxes.close()
            # What could not be destroyed one by one, or came into being behind the back of a cancelled start.
            await remove_own(self._engine.containers, self._config)
            if self._namespaces is not None:
                await self._namespaces.close()
            await asyncio.to_thread(self._close_folders)
        finally:
            client, self._engine = self._engine, None
            self._builder = self._code = self._collector = self._namespaces = None
            await client.close()

    def _close_folders(self) -> None:
        remove_folder(self._folders.home)
        self._generics.close()

    async def _start(
        self,
        sandbox_id: str,
        recipe: Recipe,
        size: SandboxSpec | GenericSpec,
        new_env: Callable[[Mapping[str, str]], Mapping[str, str]],
        settle: Callable[[AttachedSandbox], Awaitable[None]],
        *,
        image: str,
        labels: Mapping[str, str],
        folders: Mapping[str, str] | None = None,
    ) -> AttachedSandbox:
        """Start a container. ``new_env`` is given how to connect, ``folders`` are mounted beside the socket's."""
        folder = self._folders.folder(sandbox_id)
        labels = {
            LABEL_INSTALLATION: self._config.installation,
            LABEL_WORKER: self._config.worker_id,
            LABEL_SANDBOX: sandbox_id,
            **labels,
        }
        namespace = self._opened_namespaces().namespace(sandbox_id, labels) if size.network == "egress" else None

        def new_config(rendezvous: Rendezvous) -> JSONObject:
            return container_config(
                image=image,
                command=recipe.command,
                working_dir=_WORKING_DIR,
                env=new_env({"address": f"{_MOUNT}/{SOCKET_NAME}", "token": rendezvous.token}),
                labels=labels,
                binds=[f"{folder}:{_MOUNT}:ro"],
                memory_mb=size.memory_mb,
                cpus=size.cpus,
                seccomp=self._seccomp,
                oci_runtime=self._config.oci_runtime,
                folders=folders,
                network="none" if namespace is None else namespace.network,
            )

        def new_vessel() -> Container:
            owned = [folder] if folders is None else [folder, self._generics.home(sandbox_id)]
            name, turns = f"containerpub-{sandbox_id}", self._turns
            return Container(self._client().containers, name, owned, new_config, turns, namespace)

        self._runs(sandbox_id, image)
        sandbox = await start_attached(
            self._sandboxes,
            sandbox_id,
            new_vessel(),
            folder,
            settle,
            memory_mb=size.memory_mb,
            timeout_s=self._config.start_timeout_s,
        )
        sandbox.exhaustion = recipe.exhaustion
        return sandbox

    def _runs(self, sandbox_id: str, image: str) -> None:
        self._running[sandbox_id] = image
        self._use.note(image)

    def _opened_collector(self) -> ImageCollector:
        if self._collector is None:
            raise RuntimeError("the engine is not open")
        return self._collector

    def _opened(self) -> tuple[ImageBuilder, VersionCode]:
        if self._builder is None or self._code is None:
            raise RuntimeError("the engine is not open")
        return self._builder, self._code

    def _opened_namespaces(self) -> EgressNamespaces:
        if self._namespaces is None:
            raise RuntimeError("the engine is not open")
        return self._namespaces

    def _client(self) -> EngineClient:
        if self._engine is None:
            raise RuntimeError("the engine is not open")
        return self._engine


def _local_socket() -> str | None:
    """The first of the usual sockets that is there. Blocking."""
    usual = (
        "/run/docker.sock",
        "/var/run/docker.sock",
        "/run/podman/podman.sock",
        f"/run/user/{os.getuid()}/podman/podman.sock",
    )
    return next((f"unix://{path}" for path in usual if Path(path).is_socket()), None)
