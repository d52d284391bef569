"""The folders of versions and of dependencies on this machine, and which of them go.

The time of change of a folder is when it was last used.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from uuid import UUID

from worker.build.builds import content_key
from worker.config import EngineConfig
from worker.engine.contract import Standing
from worker.engine.disk_budget import Kept, Kind, Layers, shrink

_SCRATCH = ".making-"


def mark_used(folder: Path) -> bool:
    """``folder`` is used now; False if it is not there. Blocking."""
    try:
        os.utime(folder)
    except FileNotFoundError:
        return False
    return True


def folder_bytes(folder: Path) -> int:
    """What the files below ``folder`` take. Blocking."""
    return sum(entry.stat().st_size for entry in folder.rglob("*") if entry.is_file())


def scratch_prefix(worker: str) -> str:
    """How the names of a worker's unfinished folders begin, and of those that it is removing."""
    return f"{_SCRATCH}{content_key(worker)[:12]}-"


class VersionCollector:
    """Sweeps what :class:`worker.engine.process.build.ProcessBuilder` made."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._versions = config.data_dir / "versions"
        self._dependencies = config.data_dir / "dependencies"
        self._bytes: dict[str, int] = {}  # by folder; a complete one never changes

    def sweep(self, live_workers: frozenset[str]) -> int:
        """Remove what workers that are not live left half made; how many folders that were. Blocking."""
        live = tuple(scratch_prefix(worker) for worker in live_workers | {self._config.worker_id})
        found = [path for root in (self._versions, self._dependencies) for path in root.glob(f"{_SCRATCH}*")]
        stale = [path for path in found if not path.name.startswith(live)]
        for path in stale:
            shutil.rmtree(path, ignore_errors=True)
        return len(stale)

    async def collect_garbage(self, standing: Standing, in_use: Iterable[str]) -> int:
        """See :meth:`worker.engine.contract.Engine.collect_garbage`. ``in_use`` are the versions' folders of our own
        sandboxes."""
        used = set(in_use)
        versions = await asyncio.to_thread(self._look, used)
        stands = await standing(frozenset(versions))
        gone = [name for version, name in versions.items() if version not in stands and name not in used]
        for name in gone:
            await asyncio.to_thread(self._remove, self._versions / name)
        return len(gone) + (await self._shrink() if self._config.image_disk_bytes else 0)

    def _look(self, used: set[str]) -> dict[UUID, str]:
        for name in used:
            mark_used(self._versions / name)
        found = {}
        for folder in _folders(self._versions):
            try:
                found[UUID(folder.name)] = folder.name
            except ValueError:
                continue  # not a version of ours
        return found

    async def _shrink(self) -> int:
        idle_since = time.time() - self._config.image_in_use_s
        kept, sizes = await asyncio.to_thread(self._weigh)

        async def remove(one: Kept) -> bool:
            return await asyncio.to_thread(self._remove, self._config.data_dir / one.name, idle_since)

        return await shrink(kept, sizes, self._config.image_disk_bytes, idle_since=idle_since, remove=remove)

    def _weigh(self) -> tuple[list[Kept], dict[Layers, int]]:
        """Everything that is there, and what it takes, a version with its dependencies."""
        kept: list[Kept] = []
        sizes: dict[Layers, int] = {}
        for root, kind in ((self._dependencies, Kind.DEPENDENCIES), (self._versions, Kind.VERSION)):
            for folder in _folders(root):
                name = f"{root.name}/{folder.name}"
                layers: Layers = (name,)
                size = self._bytes.get(name)
                try:
                    used_at = folder.stat().st_mtime
                    if size is None:
                        size = self._bytes[name] = folder_bytes(folder)
                    if kind is Kind.VERSION:
                        below = _dependencies_of(folder)
                        layers = (*((f"{self._dependencies.name}/{below}",) if below else ()), name)
                        size += sizes.get(layers[:1], 0) if below else 0
                except OSError:
                    continue  # removed by another worker
                kept.append(Kept(name=name, kind=kind, layers=layers, used_at=used_at))
                sizes[layers] = size
        return kept, sizes

    def _remove(self, folder: Path, idle_since: float | None = None) -> bool:
        """Remove a folder, at once for whoever looks; False if it was used after ``idle_since``."""
        goner = Path(tempfile.mkdtemp(prefix=scratch_prefix(self._config.worker_id), dir=folder.parent))
        try:
            if idle_since is not None and folder.stat().st_mtime > idle_since:
                return False
            folder.rename(goner / folder.name)
        except FileNotFoundError:
            pass  # another worker was faster
        finally:
            shutil.rmtree(goner, ignore_errors=True)
        return True


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return [folder for folder in root.iterdir() if not folder.name.startswith(_SCRATCH)]


def _dependencies_of(version: Path) -> str | None:
    """The key of the dependencies that a version's folder leads to."""
    for entry in version.iterdir():
        if entry.is_symlink():
            return Path(os.readlink(entry)).parent.name
    return None
