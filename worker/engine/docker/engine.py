"""The engine ``docker``."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from aiodocker import Docker
from aiodocker.types import JSONObject
from aiohttp import ClientTimeout

from shared.capping import is_rootless, uncapped
from shared.in_thread import finished_in_thread
from shared.layers import LayerKind, VersionLayers
from worker.build.code_cache import CodeCache
from worker.build.layer_store import LayerStore
from worker.build.plan import BuildPlan, BuiltVersion
from worker.build.recipe import Contract, Recipe, load_recipe
from worker.build.version_code import NotHere, VersionCode
from worker.config import EngineConfig
from worker.engine.contract import Standing
from worker.engine.docker.build import VersionBuilder
from worker.engine.docker.client import EngineClient
from worker.engine.docker.command import start_command
from worker.engine.docker.container import Container
from worker.engine.docker.egress_namespace import EgressNamespaces
from worker.engine.docker.hardening import (
    LABEL_FUNCTION,
    LABEL_INSTALLATION,
    LABEL_SANDBOX,
    LABEL_VERSION,
    LABEL_WORKER,
    container_config,
    mounts,
    seccomp_profile,
)
from worker.engine.docker.identity import SandboxUsers, etc_binds
from worker.engine.docker.image import Image, Images
from worker.engine.docker.image_gc import FUNCTION, ImageCollector
from worker.engine.docker.libpod import in_libpods_words
from worker.engine.docker.runtime_images import IMAGE_ID, RuntimeImages
from worker.engine.docker.saved_images import SavedImages
from worker.engine.docker.sweep import remove_own, sweep
from worker.engine.docker.visibility import is_unseen, look, unseen
from worker.engine.image_use import ImageUse
from worker.errors import EngineUnavailable, Unsuited
from worker.sandbox.attach import SOCKET_NAME, Rendezvous, SocketFolders, remove_folder
from worker.sandbox.attached import AttachedSandbox
from worker.sandbox.code_folders import CodeFolders
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
_TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """What there is while the engine is open."""

    client: EngineClient
    runtimes: RuntimeImages
    saved: SavedImages
    builder: VersionBuilder
    collector: ImageCollector
    namespaces: EgressNamespaces


class DockerEngine:
    """Implements :class:`worker.engine.contract.Engine`."""

    name = "docker"

    def __init__(self, config: EngineConfig, layers: LayerStore) -> None:
        self._config = config
        self._layers = layers
        self._folders = SocketFolders.of(self.name, config)
        self._code_folders = CodeFolders.of(self.name, config)
        self._sandboxes = SandboxRegistry()
        self._cache = CodeCache(config.data_dir.absolute() / "code", config.worker_id, config.code_cache_bytes)
        self._code = VersionCode(self._cache, layers, config.max_image_bytes)
        self._use = ImageUse(config.data_dir)
        self._users = SandboxUsers(config.sandbox_users)
        self._running: dict[str, str] = {}  # sandbox id to the id of its image
        self._opened: _Opened | None = None
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
            await asyncio.to_thread(self._code_folders.open)
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
            # This worker has nothing on the engine yet, so there is nothing to clean up.
            await client.close()
            raise
        if not self._config.max_container_changes:
            self._turns = asyncio.Semaphore(max(1, int(info.get("NCPU") or 1)))
        self.on_podman = libpod
        runtimes = RuntimeImages(client, self._config, self._layers, self._cache)
        self._opened = _Opened(
            client=client,
            runtimes=runtimes,
            saved=SavedImages(client, self._config, self._layers, self._cache),
            builder=VersionBuilder(client, self._config, self._layers, self._cache, self._code, runtimes),
            collector=ImageCollector(client, self._config, self._use),
            namespaces=EgressNamespaces(client, self._config, podman=libpod),
        )

    async def answers(self) -> bool:
        try:
            await self._client().version(timeout_s=_ANSWER_TIMEOUT_S)
        except EngineUnavailable:
            return False
        return True

    async def build(self, plan: BuildPlan, log: Callable[[str], None]) -> BuiltVersion:
        return await self._parts.builder.build(plan, log)

    async def start(self, spec: SandboxSpec) -> AttachedSandbox | CommandSandbox:
        recipe = await asyncio.to_thread(load_recipe, spec.runtime)
        sandbox_id = self._users.new_id(self._sandboxes.ids)
        if recipe.contract is Contract.COMMAND:
            return await self._start_command(sandbox_id, recipe, spec)
        image = await self._parts.runtimes.of(recipe, spec.layers.foundation)
        return await self._start(
            sandbox_id,
            recipe,
            spec,
            lambda attachment: environment(spec, **attachment),
            lambda sandbox: sandbox.imported(spec.timeout_ms / 1000),
            image=image.id,
            labels={LABEL_VERSION: str(spec.version_id), LABEL_FUNCTION: str(spec.function_id)},
            folders=await self._with_code(sandbox_id, recipe, spec),
        )

    async def start_generic(self, spec: GenericSpec) -> AttachedGeneric | None:
        recipe = await asyncio.to_thread(load_recipe, spec.runtime)
        if not recipe.generics:
            return None
        image = await self._parts.runtimes.of(recipe, spec.foundation)
        sandbox_id = self._users.new_id(self._sandboxes.ids)
        try:
            sandbox = await self._start(
                sandbox_id,
                recipe,
                spec,
                lambda attachment: generic_environment(spec, **attachment),
                partial(look, self._code_folders, recipe),
                image=image.id,
                labels={},
                folders=await finished_in_thread(
                    partial(self._code_folders.make, recipe, sandbox_id),
                    lambda _: remove_folder(self._code_folders.home(sandbox_id)),
                ),
            )
        except EngineUnavailable as error:
            if spec.network == "none":
                raise
            # A failing network must not hold up generic sandboxes that need none.
            _log.warning("no generic sandbox with a network", extra={"error": error.message})
            return None

        async def outfit(of: SandboxSpec) -> Mapping[str, str]:
            await self._code.place(of.user_id, recipe, of.layers, self._code_folders.home(sandbox_id))
            return environment(of)

        return AttachedGeneric(sandbox, spec, outfit)

    async def prepare(self, spec: SandboxSpec) -> bool:
        recipe = await asyncio.to_thread(load_recipe, spec.runtime)
        if not recipe.generics or not generic_can_become(spec, recipe):
            return False
        await self._code.prepare(spec.user_id, recipe, spec.layers)
        return True

    async def suits(self, runtime: str, layers: VersionLayers) -> bool:
        return layers.base.startswith(IMAGE_ID)

    async def has(self, spec: SandboxSpec) -> bool:
        recipe = await asyncio.to_thread(load_recipe, spec.runtime)
        if recipe.dockerfile:
            return await Images(self._client(), self._config).find(spec.layers.base) is not None
        return await self._parts.runtimes.has(recipe, spec.layers.foundation)

    async def sweep(self, live_workers: frozenset[str]) -> int:
        folders = (self._folders, self._code_folders.folders)
        count = await self._sandboxes.sweep()
        count += await sweep(self._client().containers, self._config, folders, live_workers, self._sandboxes.ids)
        count += await self._parts.collector.sweep(live_workers)
        count += await self._parts.builder.sweep(live_workers)
        return count + await asyncio.to_thread(self._cache.sweep, live_workers)

    async def collect_garbage(self, standing: Standing) -> int:
        own = self._sandboxes.ids
        self._running = {sandbox: image for sandbox, image in self._running.items() if sandbox in own}
        return await self._parts.collector.collect_garbage(standing, set(self._running.values()))

    async def close(self) -> None:
        opened = self._opened
        if opened is None:
            await asyncio.to_thread(self._close_folders)
            return
        try:
            await opened.builder.close()
            await self._code.close()
            with suppress(EngineUnavailable):
                await self._sandboxes.close()
            # Containers that could not be destroyed one by one, or that the engine made after their start was
            # cancelled.
            await remove_own(opened.client.containers, self._config)
            await opened.namespaces.close()
            await asyncio.to_thread(self._close_folders)
        finally:
            self._opened = None
            await opened.client.close()

    def _close_folders(self) -> None:
        remove_folder(self._folders.home)
        self._code_folders.close()

    async def _start_command(self, sandbox_id: str, recipe: Recipe, spec: SandboxSpec) -> CommandSandbox:
        """A sandbox whose container is made at the call; its image and code are brought to this machine before."""
        image = await self._image(recipe, spec)
        folders = {} if recipe.dockerfile else await self._with_code(sandbox_id, recipe, spec)
        try:
            command = await start_command(
                self._sandboxes,
                self._client(),
                self._config,
                self._folders,
                self._parts.namespaces,
                self._turns,
                recipe,
                spec,
                image,
                sandbox_id,
                self._users.of(sandbox_id),
                folders,
            )
        except BaseException:
            await asyncio.to_thread(remove_folder, self._code_folders.home(sandbox_id))
            raise
        self._runs(command.id, image.id)
        return command

    async def _image(self, recipe: Recipe, spec: SandboxSpec) -> Image:
        if not recipe.dockerfile:
            return await self._parts.runtimes.of(recipe, spec.layers.foundation)
        if not await self.suits(spec.runtime, spec.layers):
            raise Unsuited("The version was built by another kind of engine.")
        saved = spec.layers.of(LayerKind.IMAGE)
        return await self._parts.saved.found(spec.layers.base, saved, FUNCTION, str(spec.version_id))

    async def _with_code(self, sandbox_id: str, recipe: Recipe, spec: SandboxSpec) -> Mapping[str, Path]:
        """A sandbox's folders, in which the version's code is. Raises :class:`EngineUnavailable`."""
        home = self._code_folders.home(sandbox_id)
        try:
            for _ in range(_TRIES):
                await self._code.prepare(spec.user_id, recipe, spec.layers)
                folders = await finished_in_thread(partial(self._code_folders.make, recipe, sandbox_id))
                try:
                    await self._code.place(spec.user_id, recipe, spec.layers, home)
                except NotHere:
                    # The cache is small and evicted the code between prepare and place.
                    await asyncio.to_thread(remove_folder, home)
                    continue
                return folders
        except BaseException as error:
            await asyncio.to_thread(remove_folder, home)
            if isinstance(error, OSError):
                raise EngineUnavailable(f"A sandbox's folder cannot be made: {error}") from error
            raise
        raise EngineUnavailable("The cache for code is too small for what is started: raise CODE_CACHE_BYTES.")

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
        folders: Mapping[str, Path],
    ) -> AttachedSandbox:
        """Start a container. ``new_env`` is given how to connect, ``folders`` are mounted at the root."""
        folder, uid = self._folders.folder(sandbox_id), self._users.of(sandbox_id)
        home = self._code_folders.home(sandbox_id)
        labels = {
            LABEL_INSTALLATION: self._config.installation,
            LABEL_WORKER: self._config.worker_id,
            LABEL_SANDBOX: sandbox_id,
            **labels,
        }
        namespace = self._parts.namespaces.namespace(sandbox_id, labels) if size.network == "egress" else None

        def new_config(rendezvous: Rendezvous) -> JSONObject:
            return container_config(
                image=image,
                uid=uid,
                argv=recipe.argv,
                working_dir=_WORKING_DIR,
                env=new_env({"address": f"{_MOUNT}/{SOCKET_NAME}", "token": rendezvous.token}),
                labels=labels,
                binds=[f"{folder}:{_MOUNT}:ro", *etc_binds(home, uid, hosts=namespace is None)],
                memory_mb=size.memory_mb,
                tmp_mb=size.tmp_mb,
                cpus=size.cpus,
                seccomp=self._seccomp,
                oci_runtime=self._config.oci_runtime,
                folders=mounts(folders),
                network="none" if namespace is None else namespace.network,
                open_files=self._config.open_files,
            )

        def new_vessel() -> Container:
            name, turns = f"containerpub-{sandbox_id}", self._turns
            return Container(self._client().containers, name, [folder, home], new_config, turns, namespace)

        self._runs(sandbox_id, image)
        try:
            sandbox = await start_attached(
                self._sandboxes,
                sandbox_id,
                new_vessel(),
                folder,
                settle,
                memory_mb=size.memory_mb,
                timeout_s=self._config.start_timeout_s,
            )
        except EngineUnavailable as error:
            if is_unseen(self._code_folders, error):
                raise unseen(self._code_folders, error.message) from error
            raise
        sandbox.exhaustion = recipe.exhaustion
        sandbox.network = namespace is not None
        return sandbox

    def _runs(self, sandbox_id: str, image: str) -> None:
        self._running[sandbox_id] = image
        self._use.note(image)

    @property
    def _parts(self) -> _Opened:
        if self._opened is None:
            raise RuntimeError("the engine is not open")
        return self._opened

    def _client(self) -> EngineClient:
        return self._parts.client


def _local_socket() -> str | None:
    """The first of the usual sockets that is there. Blocking."""
    usual = (
        "/run/docker.sock",
        "/var/run/docker.sock",
        "/run/podman/podman.sock",
        f"/run/user/{os.getuid()}/podman/podman.sock",
    )
    return next((f"unix://{path}" for path in usual if Path(path).is_socket()), None)
