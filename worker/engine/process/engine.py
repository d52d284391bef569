"""The engine ``process``: child processes with limits, for development only.

What separates a function from the machine here is what an unprivileged process can be denied: resource limits, a
session and an environment of its own, and those namespaces that the kernel grants. Its code reads what the worker's
user may read.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files
from pathlib import Path

from worker.build.plan import BuildPlan, BuiltImage
from worker.build.recipe import PLATFORM, Contract, Recipe, load_recipe
from worker.config import EngineConfig
from worker.engine.contract import Standing
from worker.engine.process.build import ProcessBuilder
from worker.engine.process.child import TEMP_FOLDER, Child, kill_recorded
from worker.engine.process.command import start_command
from worker.engine.process.namespaces import Namespaces, probe
from worker.engine.process.program import local_command
from worker.engine.process.version_gc import VersionCollector, mark_used
from worker.errors import EngineUnavailable
from worker.sandbox.attach import Rendezvous, SocketFolders, remove_folder
from worker.sandbox.attached import AttachedSandbox
from worker.sandbox.command import CommandSandbox
from worker.sandbox.contract import GenericSpec, SandboxSpec
from worker.sandbox.environment import environment, generic_can_become, generic_environment
from worker.sandbox.generic import AttachedGeneric
from worker.sandbox.registry import SandboxRegistry
from worker.sandbox.start import start_attached

_IN_IMAGE = f"/{PLATFORM}/"
_OPEN_FILES = 256
_FILE_BYTES = 32 * 1024**2
_CPU_S = 3600
"""A sandbox serves many calls; this only ends one that every other limit has missed."""

_log = logging.getLogger(__name__)


class ProcessEngine:
    """Implements :class:`worker.engine.contract.Engine`."""

    name = "process"

    def __init__(self, config: EngineConfig, namespaces: Namespaces | None = None) -> None:
        """``namespaces`` overrides the most that the kernel grants, which :meth:`open` finds out otherwise."""
        self._config = config
        self._folders = SocketFolders.of(self.name, config)
        self._sandboxes = SandboxRegistry()
        self._versions = config.data_dir / "versions"
        self._builder = ProcessBuilder(config)
        self._collector = VersionCollector(config)
        self._running: dict[str, str] = {}  # sandbox id to the folder of its version
        self._namespaces = namespaces

    async def open(self) -> None:
        await asyncio.to_thread(self._folders.prepare)
        if self._namespaces is None:
            self._namespaces = await probe()
        _log.warning(
            "functions run as processes of this machine: for development only",
            extra={"isolation": self._namespaces.description},
        )

    async def answers(self) -> bool:
        return True

    async def build(self, plan: BuildPlan, log: Callable[[str], None]) -> BuiltImage:
        return await self._builder.build(plan, log)

    async def start(self, spec: SandboxSpec) -> AttachedSandbox | CommandSandbox:
        recipe = await asyncio.to_thread(load_recipe, spec.runtime)
        if spec.network != "none":
            raise EngineUnavailable(
                "The engine process cannot keep a function's network from this machine's: use the engine docker."
            )
        await self._use(spec.image)
        if recipe.contract is Contract.COMMAND:
            if self._namespaces is None:
                raise RuntimeError("the engine is not open")
            function = self._versions / spec.image / "function"
            command = await start_command(self._sandboxes, self._namespaces, self._folders, function, recipe, spec)
            self._running[command.id] = spec.image
            return command
        sandbox_id = secrets.token_hex(8)
        self._running[sandbox_id] = spec.image
        return await self._start(
            sandbox_id,
            recipe,
            spec,
            self._versions / spec.image / "function",
            lambda attachment: self._environment(spec, **attachment),
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

        async def outfit(of: SandboxSpec) -> Mapping[str, str]:
            await self._use(of.image)
            self._running[sandbox_id] = of.image
            return {**self._environment(of), "HOME": str(temp), "TMPDIR": str(temp)}

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
        await self._use(spec.image)
        return True

    async def has_image(self, image: str) -> bool:
        return await asyncio.to_thread((self._versions / image / "function").is_dir)

    async def remove_image(self, image: str) -> None:
        if image not in self._images_in_use():
            await asyncio.to_thread(shutil.rmtree, self._versions / image, ignore_errors=True)

    async def sweep(self, live_workers: frozenset[str]) -> int:
        swept = await self._sandboxes.sweep() + await asyncio.to_thread(self._sweep, live_workers)
        return swept + await asyncio.to_thread(self._collector.sweep, live_workers)

    async def collect_garbage(self, standing: Standing) -> int:
        return await self._collector.collect_garbage(standing, self._images_in_use())

    async def close(self) -> None:
        await self._builder.close()
        await self._sandboxes.close()
        await asyncio.to_thread(remove_folder, self._folders.home)

    async def _use(self, image: str) -> None:
        """A version's folder is used from now on. Raises :class:`EngineUnavailable` if it is not there."""
        if not await asyncio.to_thread(mark_used, self._versions / image) or not await self.has_image(image):
            raise EngineUnavailable(f"The version's folder {image!r} is not on this machine.")

    def _images_in_use(self) -> set[str]:
        own = self._sandboxes.ids
        self._running = {sandbox: image for sandbox, image in self._running.items() if sandbox in own}
        return set(self._running.values())

    def _environment(self, spec: SandboxSpec, **attachment: str) -> dict[str, str]:
        version, recipe = self._versions / spec.image, load_recipe(spec.runtime)
        return environment(
            spec, folder=str(version / "function"), dependencies=str(version / recipe.dependencies), **attachment
        )

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

        limits = {
            "AS": (size.memory_mb + recipe.address_space_extra_mb) * 1024**2,
            "DATA": (size.memory_mb + recipe.data_extra_mb) * 1024**2,
            "NOFILE": _OPEN_FILES,
            "FSIZE": _FILE_BYTES,
            "CORE": 0,
            "CPU": _CPU_S,
        }

        def attached_env(rendezvous: Rendezvous) -> Mapping[str, str]:
            env = new_env({"address": str(rendezvous.address), "token": rendezvous.token})
            return {**env, "HOME": str(temp), "TMPDIR": str(temp)}

        def new_vessel() -> Child:
            return Child(folder, namespaces, _command(recipe), working_dir, limits, attached_env)

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
        return count


def _command(recipe: Recipe) -> tuple[str, ...]:
    """The recipe's command on this machine: Python without the packages that are installed for us."""
    runtime = Path(str(files("runtimes"))) / recipe.name
    local = [str(runtime / one.removeprefix(_IN_IMAGE)) if one.startswith(_IN_IMAGE) else one for one in recipe.command]
    return local_command(local, "-s", "-S", "-B")
