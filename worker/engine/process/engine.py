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
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path

from worker.engine.attach import Rendezvous, SocketFolders, remove_folder
from worker.engine.config import EngineConfig
from worker.engine.contract import Blank, BlankSpec, BuildPlan, BuiltImage, EngineUnavailable, SandboxSpec
from worker.engine.environment import environment
from worker.engine.fleet import Fleet
from worker.engine.process.build import ProcessBuilder
from worker.engine.process.child import TEMP_FOLDER, Child, kill_recorded
from worker.engine.process.namespaces import Namespaces, probe
from worker.engine.process.program import local_command
from worker.engine.recipe import PLATFORM, Contract, Recipe, load_recipe
from worker.engine.sandbox import AttachedSandbox

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
        self._fleet = Fleet(config.start_timeout_s)
        self._versions = config.data_dir / "versions"
        self._builder = ProcessBuilder(config)
        self._namespaces = namespaces

    async def open(self) -> None:
        await asyncio.to_thread(self._folders.prepare)
        if self._namespaces is None:
            self._namespaces = await probe()
        _log.warning(
            "functions run as processes of this machine: for development only",
            extra={"isolation": self._namespaces.description},
        )

    async def build(self, plan: BuildPlan, log: Callable[[str], None]) -> BuiltImage:
        return await self._builder.build(plan, log)

    async def start(self, spec: SandboxSpec) -> AttachedSandbox:
        recipe = await asyncio.to_thread(load_recipe, spec.runtime)
        if recipe.contract is not Contract.HANDLER:
            raise EngineUnavailable(f"The process engine does not run the runtime {spec.runtime!r}.")
        if not await self.has_image(spec.image):
            raise EngineUnavailable(f"The version's folder {spec.image!r} is not on this machine.")
        namespaces = self._namespaces
        if namespaces is None:
            raise RuntimeError("the engine is not open")
        sandbox_id = secrets.token_hex(8)
        folder = self._folders.folder(sandbox_id)
        version = self._versions / spec.image
        temp = folder / TEMP_FOLDER

        def new_env(rendezvous: Rendezvous) -> Mapping[str, str]:
            env = environment(
                spec,
                address=str(rendezvous.address),
                token=rendezvous.token,
                folder=str(version / "function"),
                dependencies=str(version / recipe.dependencies),
            )
            return {**env, "HOME": str(temp), "TMPDIR": str(temp)}

        limits = {
            "AS": (spec.memory_mb + recipe.address_space_extra_mb) * 1024**2,
            "DATA": (spec.memory_mb + recipe.data_extra_mb) * 1024**2,
            "NOFILE": _OPEN_FILES,
            "FSIZE": _FILE_BYTES,
            "CORE": 0,
            "CPU": _CPU_S,
        }

        def new_vessel() -> Child:
            return Child(folder, namespaces, _command(recipe), version / "function", limits, new_env)

        return await self._fleet.start(sandbox_id, spec, folder, new_vessel)

    async def prestart(self, spec: BlankSpec) -> Blank | None:
        return None

    async def prepare(self, spec: SandboxSpec) -> bool:
        return False

    async def has_image(self, image: str) -> bool:
        return await asyncio.to_thread((self._versions / image / "function").is_dir)

    async def remove_image(self, image: str) -> None:
        await asyncio.to_thread(shutil.rmtree, self._versions / image, ignore_errors=True)

    async def sweep(self, live_workers: frozenset[str]) -> int:
        return await asyncio.to_thread(self._sweep, live_workers) + await self._builder.sweep(live_workers)

    async def close(self) -> None:
        await self._builder.close()
        await self._fleet.close()
        await asyncio.to_thread(remove_folder, self._folders.home)

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
