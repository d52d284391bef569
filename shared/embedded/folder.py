"""The folder of an embedded server: the lock on it, its socket, and processes left in it by an earlier holder."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil

from shared.embedded.account import Account
from shared.errors import Misconfigured

MAX_SOCKET_PATH_BYTES = 103
"""What every system allows (Linux: 107)."""


class FolderLock:
    """Holds a folder for this process. The kernel lets go of it when the process dies, however it dies."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock"
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take it; a no-op when held. Raises :class:`Misconfigured` (``folder_in_use``) with the holder's pid."""
        if self._descriptor is not None:
            return
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise Misconfigured(
                f"{self._path.parent} is in use by the process {holder}: stop it, or choose another folder.",
                code="folder_in_use",
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def private_folder(path: Path, mode: int = 0o700) -> Path:
    """Make ``path``, or make sure that the existing one is a folder of ours, with exactly ``mode``."""
    path.mkdir(parents=True, exist_ok=True, mode=mode)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or (os.geteuid() != 0 and found.st_uid != os.geteuid()):
        raise Misconfigured(f"{path} is not a folder of yours: remove it, or choose another one.")
    path.chmod(mode)
    return path


def _64_digits() -> str:
    return secrets.token_hex(32)


def kept_secret(path: Path, owner: Account | None = None, *, draw: Callable[[], str] = _64_digits) -> str:
    """The secret in the file ``path``, which only its owner can read. The first call draws it: by default 64
    hexadecimal digits."""
    if not path.exists():
        fresh = path.with_name(path.name + ".new")
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(draw())
            file.flush()
            os.fsync(descriptor)
            if owner:
                os.fchown(descriptor, owner.uid, owner.gid)
        fresh.rename(path)
    return path.read_text(encoding="ascii").strip()


def short_folder(name: str, mode: int = 0o700, owner: Account | None = None) -> Path:
    """A folder below the temp folder that is ours (or ``owner``'s) for certain; others may write there too."""
    path = Path(tempfile.gettempdir(), name)
    try:
        path.mkdir(mode=mode)
    except FileExistsError:
        pass
    found = path.lstat()
    ours = {os.geteuid(), owner.uid} if owner else {os.geteuid()}
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in ours:
        raise Misconfigured(f"{path} belongs to someone else: remove it, or set TMPDIR to another folder.")
    path.chmod(mode)
    return path


def socket_folder(folder: Path, socket_name: str, owner: Account | None) -> Path:
    """``folder/run`` if a socket in it can be connected to by its path, else a short one below the temp folder."""
    path = folder / "run"
    if _fits(path / socket_name):
        private_folder(path)
    else:
        path = short_folder(f"containerpub-run-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}", owner=owner)
        if not _fits(path / socket_name):
            raise Misconfigured(f"{path} is too long for the name of a Unix socket: set TMPDIR to a shorter one.")
    if owner:
        os.chown(path, owner.uid, owner.gid)
    return path


def kill_those_in(folder: Path, program: str) -> int:
    """SIGKILL every ``program`` whose working folder is ``folder``, wait until they are gone; their count.

    Call it only while holding the folder's lock: then those processes belonged to a holder that was killed. Blocks.
    """
    if not folder.is_dir():
        return 0
    here = folder.stat()
    found = []
    for process in psutil.process_iter(["name"]):
        try:
            if process.info["name"] == program and os.path.samestat(os.stat(process.cwd()), here):
                process.kill()
                found.append(process)
        except (psutil.Error, OSError):
            continue
    psutil.wait_procs(found, timeout=10)
    return len(found)


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES
