"""Generic sandboxes as containers: where their code will appear, and whether the engine can see it there at all."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from worker.build.recipe import Recipe
from worker.config import EngineConfig
from worker.engine.docker.code import VersionCode
from worker.engine.docker.image import Image
from worker.errors import EngineUnavailable
from worker.sandbox.attach import SocketFolders, remove_folder
from worker.sandbox.attached import AttachedSandbox
from worker.sandbox.contract import SandboxSpec
from worker.sandbox.environment import environment

_LOOK_TIMEOUT_S = 10.0
_log = logging.getLogger(__name__)


class Unseen(EngineUnavailable):
    """A generic sandbox does not see the files that are put into its folders."""


class GenericFolders:
    """The folders of one worker's generic sandboxes: each has one of its own for every folder of a version.

    They are on the file system of the code cache, since code gets there by hard links, and must have the same path
    for the container engine. Where they have not, or programs cannot be run from there, there are no generic sandboxes.
    """

    def __init__(self, engine: str, config: EngineConfig) -> None:
        root = config.data_dir.absolute() / "generics"
        self.folders = replace(SocketFolders.of(engine, config), root=root)
        self.possible = False

    def open(self) -> None:
        """Make the folder of this worker. Blocking."""
        self.folders.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folders.home.mkdir(mode=0o700, exist_ok=True)
        self.possible = not os.statvfs(self.folders.home).f_flag & os.ST_NOEXEC

    def home(self, sandbox_id: str) -> Path:
        return self.folders.folder(sandbox_id)

    def make(self, recipe: Recipe, sandbox_id: str) -> dict[str, str]:
        """Make a generic sandbox's folders: where each appears in it, and where it is. Blocking."""
        made = {}
        for name in recipe.code_folders:
            folder = self.home(sandbox_id) / name
            folder.mkdir(parents=True)
            folder.chmod(0o755)
            made[f"/{name}"] = str(folder)
        return made

    async def check(self, recipe: Recipe, sandbox: AttachedSandbox) -> None:
        """Raise :class:`Unseen` unless the generic sandbox sees what is put into its folders from now on."""
        marks = {f"/{name}/{secrets.token_hex(8)}": secrets.token_hex(16) for name in recipe.code_folders}
        try:
            await asyncio.to_thread(self._mark, sandbox.id, marks)
            seen = await sandbox.look(list(marks), _LOOK_TIMEOUT_S)
            await asyncio.to_thread(self._unmark, sandbox.id, marks)
        except OSError as error:
            raise _lost(sandbox.id, error) from error
        if seen != marks:
            raise Unseen(f"The generic sandbox {sandbox.id} does not see its folders in {self.folders.root}.")

    def refuse(self, error: EngineUnavailable) -> bool:
        """Whether ``error`` says that the engine does not have our folders; there are no generic sandboxes from then
        on."""
        if not isinstance(error, Unseen) and str(self.folders.root) not in error.message:
            return False
        self.possible = False
        _log.warning(
            "no generic sandboxes: the container engine does not have the data folder under the same path",
            extra={"folder": str(self.folders.root), "error": error.message},
        )
        return True

    async def outfit(
        self, code: VersionCode, recipe: Recipe, runtime: Image, sandbox_id: str, spec: SandboxSpec
    ) -> Mapping[str, str]:
        """See :class:`worker.sandbox.generic.AttachedGeneric`."""
        try:
            await code.place(spec, recipe, runtime, self.home(sandbox_id))
        except OSError as error:
            raise _lost(sandbox_id, error) from error
        return environment(spec)

    def close(self) -> None:
        """Remove the folder of this worker. Blocking."""
        remove_folder(self.folders.home)

    def _mark(self, sandbox_id: str, marks: Mapping[str, str]) -> None:
        for path, content in marks.items():
            mark = self.home(sandbox_id) / path.lstrip("/")
            mark.write_text(content, "ascii")
            mark.chmod(0o644)

    def _unmark(self, sandbox_id: str, marks: Mapping[str, str]) -> None:
        for path in marks:
            (self.home(sandbox_id) / path.lstrip("/")).unlink()


def _lost(sandbox_id: str, error: OSError) -> EngineUnavailable:
    return EngineUnavailable(f"The folder of the generic sandbox {sandbox_id} cannot be used: {error.strerror}")
