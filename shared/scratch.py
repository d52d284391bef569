"""Temporary folders that do not outlive their process for long.

Every process works in a folder of its own below ``DATA_DIR/scratch`` and holds a lock on it, which the kernel releases
however the process ends. A process that finds a folder which it can lock removes it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from shared.errors import Misconfigured
from shared.in_thread import temporary_folder

_LOCK = ".lock"


class Scratch:
    """:param data_dir: a folder on local disk, the same for all processes of this machine's installation."""

    def __init__(self, data_dir: Path) -> None:
        self._root = data_dir.absolute() / "scratch"
        self._own: Path | None = None
        self._lock = -1

    async def open(self) -> None:
        """Make this process's folder and remove those of processes that died.

        :raises Misconfigured: if the folder cannot be made.
        """
        try:
            await asyncio.to_thread(self._open)
        except OSError as error:
            raise Misconfigured(f"DATA_DIR cannot be written to: {error}") from error
        await self.sweep()

    async def sweep(self) -> int:
        """Remove the folders of processes that died; their count."""
        return await asyncio.to_thread(self._sweep)

    @asynccontextmanager
    async def folder(self) -> AsyncIterator[Path]:
        """A new folder that is removed at the end."""
        if self._own is None:
            raise RuntimeError("scratch is not open")
        own = self._own
        async with temporary_folder(lambda: Path(tempfile.mkdtemp(dir=own))) as made:
            yield made

    async def close(self) -> None:
        if self._own is not None:
            await asyncio.to_thread(shutil.rmtree, self._own, True)
            os.close(self._lock)
            self._own = None

    def _open(self) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Locked before it gets its final name: so a sweep never finds a live process's folder unlocked.
        made = Path(tempfile.mkdtemp(prefix=".new-", dir=self._root))
        self._lock = os.open(made / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._own = made.rename(self._root / made.name.removeprefix(".new-"))

    def _sweep(self) -> int:
        gone = 0
        for folder in self._root.iterdir():
            if folder == self._own or folder.name.startswith(".new-"):
                continue
            try:
                lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                lock = -1  # half removed
            try:
                if lock >= 0:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                gone += 1
            except BlockingIOError:
                continue
            finally:
                if lock >= 0:
                    os.close(lock)
        return gone
