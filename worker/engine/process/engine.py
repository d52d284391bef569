"""The engine ``process``: child processes with limits, for development only.

A function is separated from the machine only by means that need no privilege: resource limits, a session and an
environment of its own, and the namespaces that the kernel grants. Its code can read all that the worker's user can.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path

from shared.in_thread import finished_in_thread
from shared.layers import VersionLayers
from worker.build.code_cache import CodeCache
from worker.build.layer_store import LayerStore
from worker.build.plan import BuildPlan, BuiltVersion
from worker.build.recipe import FUNCTION, PLATFORM, Contract, Recipe, load_recipe
from worker.build.version_code import VersionCode
from worker.config import EngineConfig
from worker.engine.contract import Standing
from worker.engine.process.build import ProcessBuilder
from worker.engine.process.child import TEMP_FOLDER, Child, kill_recorded
from worker.engine.process.command import start_command
from worker.engine.process.namespaces import Namespaces, probe
from worker.engine.process.program import base_identity, local_argv
from worker.errors import EngineUnavailable, Unsuited
from worker.sandbox.attach import Rendezvous, SocketFolders, remove_folder
from worker.sandbox.attached import AttachedSandbox
from worker.sandbox.code_folders import CodeFolders
from worker.sandbox.command import CommandSandbox
from worker.sandbox.contract import GenericSpec, SandboxSpec
from worker.sandbox.environment import environment, generic_can_become, generic_environment
from worker.sandbox.generic import AttachedGeneric
from worker.sandbox.registry import SandboxRegistry
from worker.sandbox.start import start_attached

_IN_IMAGE = f"/{PLATFORM}/"
_FILE_BYTES = 32 * 1024**2
_CPU_S = 3600
"""A sandbox serves many calls; this only ends one that every other limit has missed."""

_log = logging.getLogger(__name__)


class ProcessEngine:
    """Implements :class:`worker.engine.contract.Engine`."""

    name = "process"

    def __init__(self, config: EngineConfig, layers: LayerStore, namespaces: Namespaces | None = None) -> None:
        """``namespaces``: those to use; without it :meth:`open` finds out the most that the kernel grants."""
        self._config = config
        self._folders = SocketFolders.of(self.name, config)
        self._sandboxes = SandboxRegistry()
        self._code_folders = CodeFolders.of(self.name, config)
        self._cache = CodeCache(config.data_dir.absolute() / "code", config.worker_id, config.code_cache_bytes)
        self._code = VersionCode(self._cache, layers, config.max_image_bytes)
        self._builder = ProcessBuilder(config, layers, self._cache, self._code)
        self._namespaces = namespaces

    async def open(self) -> None:
        await asyncio.to_thread(self._folders.prepare)
        try:
            await asyncio.to_thread(self._code_folders.open)
            await asyncio.to_thread(self._cache.open)
        except OSError as error:
            raise EngineUnavailable(
                f"The data folder {self._config.data_dir} cannot be used: {error.strerror}."
            ) from error
        if self._namespaces is None:
            self._namespaces = await probe()
        _log.warning(
            "functions run as processes of this machine: for development only",
            extra={"isolation": self._namespaces.description},
        )

    async def answers(self) -> bool:
        return True

    async def build(self, plan: BuildPlan, log: Callable[[str], None]) -> BuiltVersion:
        return await self._builder.build(plan, log)

    async def start(self, spec: SandboxSpec) -> AttachedSandbox | CommandSandbox:
        recipe = await asyncio.to_thread(load_recipe, spec.runtime)
        if spec.network != "none":
            raise EngineUnavailable(
                "The engine process cannot keep a function's network from this machine's: use the engine docker."
            )
        sandbox_id = secrets.token_hex(8)
        code = await self._with_code(sandbox_id, recipe, spec)
        if recipe.contract is Contract.COMMAND:
            if self._namespaces is None:
                raise RuntimeError("the engine is not open")
            try:
                return await start_command(
                    self._sandboxes, self._config, self._namespaces, self._folders, sandbox_id, code, recipe, spec
                )
            except BaseException:
                await asyncio.to_thread(remove_folder, code)
                raise
        return await self._start(
            sandbox_id,
            recipe,
            spec,
            code / FUNCTION,
            lambda attachment: _environment(code, spec, **attachment),
            lambda sandbox: sandbox.imported(spec.timeout_ms / 1000),
        )

    async def start_generic(self, spec: GenericSpec) -> AttachedGeneric | None:
        recipe = await asyncio.to_thread(load_recipe, spec.runtime)
        if not recipe.generics or spec.network != "none":
            return None

        async def settle(sandbox: AttachedSandbox) -> None:
            await sandbox.look((), self._config.start_timeout_s)

        sandbox_id = secrets.token_hex(8)
        temp = self._folders.folder(sandbox_id) / TEMP_FOLDER

        code = self._code_folders.home(sandbox_id)
        await finished_in_thread(partial(self._code_folders.make, recipe, sandbox_id), lambda _: remove_folder(code))

        async def outfit(of: SandboxSpec) -> Mapping[str, str]:
            await self._code.place(of.user_id, recipe, of.layers, code)
            return {**_environment(code, of), "HOME": str(temp), "TMPDIR": str(temp)}

        sandbox = await self._start(
            sandbox_id,
            recipe,
            spec,
            self._folders.home,
            lambda attachment: generic_environment(spec, **attachment),
            settle,
        )
        return AttachedGeneric(sandbox, spec, outfit)

    async def prepare(self, spec: SandboxSpec) -> bool:
        recipe = await asyncio.to_thread(load_recipe, spec.runtime)
        if not recipe.generics or not generic_can_become(spec, recipe):
            return False
        await self._check_suits(spec)
        await self._code.prepare(spec.user_id, recipe, spec.layers)
        return True

    async def suits(self, runtime: str, layers: VersionLayers) -> bool:
        """Also by the same programs: compiled packages are of one interpreter."""
        recipe = await asyncio.to_thread(load_recipe, runtime)
        return layers.base == await asyncio.to_thread(base_identity, recipe)

    async def has(self, spec: SandboxSpec) -> bool:
        return True

    async def sweep(self, live_workers: frozenset[str]) -> int:
        swept = await self._sandboxes.sweep() + await asyncio.to_thread(self._sweep, live_workers)
        return swept + await asyncio.to_thread(self._cache.sweep, live_workers)

    async def collect_garbage(self, standing: Standing) -> int:
        """There are no images."""
        return 0

    async def close(self) -> None:
        await self._builder.close()
        await self._code.close()
        await self._sandboxes.close()
        await asyncio.to_thread(remove_folder, self._folders.home)
        await asyncio.to_thread(self._code_folders.close)

    async def _with_code(self, sandbox_id: str, recipe: Recipe, spec: SandboxSpec) -> Path:
        """A sandbox's folder, in which the version's code is. Raises :class:`EngineUnavailable`."""
        await self._check_suits(spec)
        home = self._code_folders.home(sandbox_id)
        await self._code.prepare(spec.user_id, recipe, spec.layers)
        try:
            await finished_in_thread(partial(self._code_folders.make, recipe, sandbox_id))
            await self._code.place(spec.user_id, recipe, spec.layers, home)
        except BaseException as error:
            await asyncio.to_thread(remove_folder, home)
            if isinstance(error, OSError):
                raise EngineUnavailable(f"A sandbox's folder cannot be made: {error}") from error
            raise
        return home

    async def _check_suits(self, spec: SandboxSpec) -> None:
        if not await self.suits(spec.runtime, spec.layers):
            raise Unsuited("The version was built by another kind of engine, or with other programs than these.")

    async def _start(
        self,
        sandbox_id: str,
        recipe: Recipe,
        size: SandboxSpec | GenericSpec,
        working_dir: Path,
        new_env: Callable[[dict[str, str]], Mapping[str, str]],
        settle: Callable[[AttachedSandbox], Awaitable[None]],
    ) -> AttachedSandbox:
        """Start a process; ``new_env`` is given how to connect."""
        namespaces = self._namespaces
        if namespaces is None:
            raise RuntimeError("the engine is not open")
        folder = self._folders.folder(sandbox_id)
        temp = folder / TEMP_FOLDER
        argv = await asyncio.to_thread(_argv, recipe)

        limits = {
            "AS": (size.memory_mb + recipe.address_space_extra_mb) * 1024**2,
            "DATA": (size.memory_mb + recipe.data_extra_mb) * 1024**2,
            "NOFILE": self._config.open_files,
            "FSIZE": max(_FILE_BYTES, size.memory_mb * 1024**2),
            "CORE": 0,
            "CPU": _CPU_S,
        }

        def attached_env(rendezvous: Rendezvous) -> Mapping[str, str]:
            env = new_env({"address": str(rendezvous.address), "token": rendezvous.token})
            return {**env, "HOME": str(temp), "TMPDIR": str(temp)}

        def new_vessel() -> Child:
            code = self._code_folders.home(sandbox_id)
            return Child(folder, namespaces, argv, working_dir, limits, attached_env, code)

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

    def _sweep(self, live_workers: frozenset[str]) -> int:
        count = 0
        for home in self._folders.stale(live_workers):
            for folder in home.iterdir():
                kill_recorded(folder)
                count += 1
            remove_folder(home)
        for home in self._code_folders.folders.stale(live_workers):
            remove_folder(home)
        return count


def _environment(code: Path, spec: SandboxSpec, **attachment: str) -> dict[str, str]:
    recipe = load_recipe(spec.runtime)
    return environment(spec, folder=str(code / FUNCTION), dependencies=str(code / recipe.dependencies), **attachment)


def _argv(recipe: Recipe) -> tuple[str, ...]:
    """The recipe's argv on this machine: Python without the packages that are installed for us. Blocking."""
    runtime = Path(str(files("runtimes"))) / recipe.name
    local = [str(runtime / one.removeprefix(_IN_IMAGE)) if one.startswith(_IN_IMAGE) else one for one in recipe.argv]
    return local_argv(local, "-s", "-S", "-B")
