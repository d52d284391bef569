"""The unprivileged account that servers run as when we are root.

PostgreSQL refuses to run as root, and ``initdb`` wants its user in the password database, so a bare number will not
do. Sandboxes run as ``nobody``: the servers must not share that account.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import Misconfigured

DISTRIBUTION_ACCOUNT = "postgres"
OWN_ACCOUNT = "containerpub"
CACHE_FOLDERS = (Path("/var/cache/containerpub"), Path("/opt/containerpub"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    uid: int
    gid: int

    def owns(self, path: Path) -> bool:
        return path.stat().st_uid == self.uid

    def take(self, folder: Path) -> None:
        """Make ``folder`` and everything in it ours; a no-op when it already is."""
        if self.owns(folder):
            return
        for inner, folders, files in os.walk(folder):
            for name in (*folders, *files):
                os.chown(Path(inner, name), self.uid, self.gid, follow_symlinks=False)
        os.chown(folder, self.uid, self.gid)  # last, so that an interrupted pass starts over


def server_account() -> Account | None:
    """The account to run servers as; ``None`` means this process's own. Makes a system account if root finds none.

    Blocks for as long as ``useradd`` takes. Raises :class:`Misconfigured`.
    """
    if os.geteuid() != 0:
        return None
    if sys.platform != "linux":
        raise Misconfigured("The embedded servers do not run as root here: start as an ordinary user.")
    found = _lookup(DISTRIBUTION_ACCOUNT) or _lookup(OWN_ACCOUNT) or _create(OWN_ACCOUNT)
    if found is None:
        raise Misconfigured(
            f"PostgreSQL does not run as root: add a system user named {OWN_ACCOUNT}, or start as an ordinary user."
        )
    return found


def reachable(root: Path, parts: Sequence[str], account: Account | None) -> Path:
    """``root``, or a copy of its folders ``parts``, side by side as they were, that ``account`` may run.

    Packages below a closed home, such as root's, are out of reach for every other account. Opening that home would
    be worse than one copy below the system's cache folder, made once for each installed version. Blocks.
    """
    if account is None or all(_open_to_all(root / part) for part in parts):
        return root
    newest = max(path.stat().st_mtime_ns for part in parts for path in (root / part).rglob("*"))
    digest = hashlib.sha256(f"{root} {parts} {newest}".encode()).hexdigest()[:16]
    for folder in CACHE_FOLDERS:
        copy = folder / digest
        if copy.is_dir():
            return copy
        try:
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)  # another process may be doing the same
                folder.chmod(0o755)  # whatever this process's umask is
            if not _open_to_all(folder):
                continue
            with tempfile.TemporaryDirectory(dir=folder) as fresh:
                made = Path(fresh, digest)
                for part in parts:
                    shutil.copytree(root / part, made / part, symlinks=True, ignore=shutil.ignore_patterns("*.a"))
                _open(made)
                try:
                    made.rename(copy)
                except OSError:
                    if not copy.is_dir():  # else another process was first with the same copy
                        raise
            return copy
        except OSError:
            continue
    raise Misconfigured(
        f"No other account may run the programs in {root}, and none of {', '.join(map(str, CACHE_FOLDERS))} could "
        "take a copy: install somewhere that is open to all users."
    )


def _lookup(name: str) -> Account | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(uid=entry.pw_uid, gid=entry.pw_gid)


def _create(name: str) -> Account | None:
    """Make the account with the system's tool, then look it up. If another process made it first, the tool fails, and
    the look-up finds the account."""
    for command in (
        ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", name],
        ["adduser", "-S", "-D", "-H", name],  # busybox
    ):
        if shutil.which(command[0]):
            subprocess.run(command, check=False, capture_output=True, timeout=30)
            if found := _lookup(name):
                return found
    return None


def _open_to_all(folder: Path) -> bool:
    real = folder.resolve()
    return all(path.stat().st_mode & stat.S_IXOTH for path in (real, *real.parents)) and all(
        path.stat().st_mode & stat.S_IROTH for path in real.iterdir() if not path.is_symlink()
    )


def _open(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            executable = path.is_dir() or mode & stat.S_IXUSR
            path.chmod(0o755 if executable else 0o644)
