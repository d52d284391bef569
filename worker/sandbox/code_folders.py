"""Where the code of one worker's sandboxes appears: each sandbox has a folder of its own for every folder of a version.

They are on the file system of the code cache, since code gets there by hard links.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from worker.build.recipe import Recipe
from worker.config import EngineConfig
from worker.errors import EngineUnavailable
from worker.sandbox.attach import SocketFolders, remove_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeFolders:
    """``folders`` names those of this worker, and finds those of dead ones."""

    folders: SocketFolders

    @classmethod
    def of(cls, engine: str, config: EngineConfig) -> CodeFolders:
        root = config.data_dir.absolute() / "sandboxes"
        return cls(folders=replace(SocketFolders.of(engine, config), root=root))

    def open(self) -> None:
        """Make the folder of this worker. Blocking.

        :raises EngineUnavailable: programs cannot be run from there, compiled packages among them.
        """
        self.folders.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folders.home.mkdir(mode=0o700, exist_ok=True)
        if os.statvfs(self.folders.home).f_flag & os.ST_NOEXEC:
            raise EngineUnavailable(
                f"The data folder around {self.folders.root} is mounted noexec, so compiled packages of functions "
                "cannot be loaded from there: mount it without that option, or set DATA_DIR to another folder."
            )

    def home(self, sandbox_id: str) -> Path:
        return self.folders.folder(sandbox_id)

    def make(self, recipe: Recipe, sandbox_id: str) -> dict[str, Path]:
        """Make a sandbox's folders, empty; each by its name at the root. Blocking."""
        made = {}
        home = self.home(sandbox_id)
        home.mkdir(parents=True)
        for name in recipe.code_folders:
            folder = home / name
            folder.mkdir()
            # The sandbox has another user; the folder around is closed to all but us.
            folder.chmod(0o755)
            made[name] = folder
        return made

    def close(self) -> None:
        """Remove the folder of this worker. Blocking."""
        remove_folder(self.folders.home)
