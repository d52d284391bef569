"""The room in the folders that a function may write to: what calls leave there is in the way of later ones."""

from __future__ import annotations

import os


class Folder:
    """Watches the room in one folder, in bytes and in files."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._first = self._room()

    def is_short(self) -> bool:
        """Whether less than half of what was free at first is left: a call that needs as much might find it full."""
        return any(now * 2 < first for now, first in zip(self._room(), self._first))  # noqa: B905 (Python 3.9)

    def _room(self) -> tuple[int, ...]:
        try:
            at = os.statvfs(self.path)
        except OSError:
            return ()
        return at.f_bavail * at.f_frsize, at.f_favail


def writable_folders() -> list[Folder]:
    """The folder of temporary files and that of shared memory, where they are limited in size."""
    paths = (os.environ.get("TMPDIR") or "/tmp", "/dev/shm")  # noqa: S108 (the sandbox's own)
    return [Folder(path) for path in paths if os.path.ismount(path)]
