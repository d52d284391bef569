"""The code of versions as plain files on this machine, from where sandboxes get theirs by hard links.

``<root>/<boot>/<name>`` holds one folder of a version: ``tree`` with its files, and ``size`` with what they take. Large
ones have ``spare`` too, a tree of links to the same files, which a few renames give to the next sandbox. An entry
appears when it is complete. None is used after a restart of the machine: its files were never synced, so a crash may
have left anything of them. Workers may share a root.

A name begins with its owner: hard links share the file itself, and a process that can open a file learns by inotify,
and by locks, when others do. So users share no files, even with equal contents.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

_SCRATCH = ".making-"
_TREE = "tree"
_SIZE = "size"
_SPARE = "spare"
_FEW_FILES = 64
"""An entry of up to so many files has no spare: linking them takes no longer than the renames would."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


_UNUSED_S = 86_400.0
"""An entry that was not used for so long goes even if there is room: its function may be gone."""


def entry_name(user_id: UUID, content: str) -> str:
    """The name of what a user's versions have in one folder, which ``content`` tells from everything else."""
    return f"{_short(str(user_id), 12)}-{_short(content, 40)}"


class CodeCache:
    """Every method blocks: call them in a thread."""

    def __init__(self, root: Path, worker_id: str, budget_bytes: int) -> None:
        """:param budget_bytes: of all entries; past it the least recently used go."""
        self._root = root
        self._folder = root
        self._prefix = _prefix(worker_id)
        self._budget_bytes = budget_bytes

    def open(self) -> None:
        """Make its folder, closed to other users of the machine, and drop the entries of earlier boots."""
        boot = _boot()
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = self._root / boot
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for other in self._root.iterdir():
            if other.name != boot:
                shutil.rmtree(other, ignore_errors=True)

    def has(self, name: str) -> bool:
        return (self._folder / name / _TREE).is_dir()

    def add(self, name: str, fill: Callable[[Path], int], beside: Collection[str] = ()) -> None:
        """Make an entry of what ``fill`` puts into the folder it is given; it returns the bytes that takes.

        :param beside: entries that are needed together with this one, and stay even past the budget.
        """
        scratch = self.scratch()
        try:
            tree = scratch / _TREE
            tree.mkdir(mode=0o755)
            size = fill(tree)
            (scratch / _SIZE).write_text(str(size), "ascii")
            try:
                scratch.rename(self._folder / name)
            except OSError:
                if not self.has(name):
                    raise
                return  # another worker was faster
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        self._evict({name, *beside})

    def link(self, name: str, target: Path) -> None:
        """Link every file of an entry into ``target``, an empty folder on the same file system.

        :raises FileNotFoundError: there is no such entry (any more).
        """
        entry = self._folder / name
        with _held(entry, fcntl.LOCK_SH):
            os.utime(entry)
            taken = target.with_name(f"{target.name}-taken")
            try:
                (entry / _SPARE).rename(taken)
            except FileNotFoundError:
                _link(f"{entry}/{_TREE}", str(target))
                return
            for inside in os.listdir(taken):
                os.rename(f"{taken}/{inside}", f"{target}/{inside}")
            taken.rmdir()

    def spare(self, name: str) -> None:
        """Make the spare of a large entry if it has none; an absent entry is fine."""
        entry = self._folder / name
        if (entry / _SPARE).exists():
            return
        scratch = self.scratch()
        try:
            with _held(entry, fcntl.LOCK_SH):
                if _link(f"{entry}/{_TREE}", str(scratch)) > _FEW_FILES:
                    scratch.rename(entry / _SPARE)
        except FileNotFoundError:
            return
        except OSError:
            # Another worker's is there, which is not empty.
            if not (entry / _SPARE).exists():
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def scratch(self) -> Path:
        """A new folder for files on their way into the cache; the caller removes it, or a sweep after a crash."""
        try:
            return Path(tempfile.mkdtemp(prefix=self._prefix, dir=self._folder))
        except FileNotFoundError:
            # The cache's folder was removed: make it again.
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(prefix=self._prefix, dir=self._folder))

    def sweep(self, live_workers: frozenset[str]) -> int:
        """Remove folders that dead workers left half made or half removed, and entries that were not used for a day;
        how many."""
        live = (*(_prefix(worker) for worker in live_workers), self._prefix)
        stale = [path for path in self._folder.glob(f"{_SCRATCH}*") if not path.name.startswith(live)]
        for path in stale:
            shutil.rmtree(path, ignore_errors=True)
        unused_since = time.time() - _UNUSED_S
        return len(stale) + sum(self._remove(entry) for used_at, _, entry in self._entries() if used_at < unused_since)

    def _entries(self) -> list[tuple[float, int, Path]]:
        """Last use, bytes and folder of each."""
        entries: list[tuple[float, int, Path]] = []
        for entry in self._folder.iterdir():
            try:
                if not entry.name.startswith(_SCRATCH):
                    entries.append((entry.stat().st_mtime, int((entry / _SIZE).read_text("ascii")), entry))
            except OSError:
                continue  # removed by another worker
        return entries

    def _evict(self, keep: Collection[str]) -> None:
        entries = self._entries()
        total = sum(size for _, size, _ in entries)
        for _, size, entry in sorted(entries):
            if total <= self._budget_bytes:
                return
            if entry.name not in keep and self._remove(entry):
                total -= size

    def _remove(self, entry: Path) -> bool:
        """Remove an entry that is not being linked from right now."""
        goner = self.scratch()
        try:
            with _held(entry, fcntl.LOCK_EX | fcntl.LOCK_NB):
                entry.rename(goner / _TREE)
        except (FileNotFoundError, BlockingIOError):
            return False
        finally:
            shutil.rmtree(goner, ignore_errors=True)
        return True


@contextmanager
def _held(entry: Path, lock: int) -> Iterator[None]:
    """Hold the lock of an entry's folder, which is still the one of that name."""
    descriptor = os.open(entry, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, lock)
        if not os.path.samestat(os.fstat(descriptor), os.stat(entry)):
            raise FileNotFoundError(entry)
        yield
    finally:
        os.close(descriptor)


def _link(source: str, target: str) -> int:
    """Link all files below ``source`` into ``target``; how many that were."""
    count = 0
    folders = [(source, target)]
    while folders:
        source, target = folders.pop()
        with os.scandir(source) as entries:
            for entry in entries:
                name = f"{target}/{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    os.mkdir(name)
                    os.chmod(name, 0o755)  # noqa: S103 (the sandbox has another user)
                    folders.append((entry.path, name))
                else:
                    os.link(entry.path, name)
                    count += 1
    return count


def _boot() -> str:
    """Names the time since this machine was started."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return "unknown"


def _prefix(worker_id: str) -> str:
    """How the names of a worker's unfinished folders begin."""
    return f"{_SCRATCH}{_short(worker_id, 12)}-"


def _short(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]
