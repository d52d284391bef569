"""One data folder: the lock on it, its identity and its secrets."""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from shared.embedded.folder import FolderLock, kept_secret, private_folder, short_folder
from shared.errors import Misconfigured
from shared.sealing import Keyring, new_key


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """A data folder that this process holds. Everything in it is readable for its owner only."""

    folder: Path
    id: str  # 16 hexadecimal digits, drawn once
    socket_dir: Path  # short, and open for other accounts to walk through, as sandboxes have their own
    lock: FolderLock

    @property
    def jwt_secret_file(self) -> Path:
        return self.folder / "jwt_secret"

    @property
    def encryption_keys_file(self) -> Path:
        return self.folder / "encryption_keys"

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    @property
    def postgres(self) -> Path:
        return self.folder / "postgres"

    @property
    def redis(self) -> Path:
        return self.folder / "redis"

    @property
    def processes(self) -> Path:
        return self.folder / "processes.json"

    @property
    def url_file(self) -> Path:
        """Holds the API's URL while it is ready."""
        return self.folder / "api.url"

    def release(self) -> None:
        """Remove files that only a running process needs, and release the folder's lock. Blocks."""
        self.url_file.unlink(missing_ok=True)
        shutil.rmtree(self.socket_dir, ignore_errors=True)  # what is left in it is in use, or the next start's to find
        self.lock.release()


def open_installation(folder: Path) -> Installation:
    """Lock ``folder``, made when absent. Raises :class:`Misconfigured` with the pid of another holder. Blocks."""
    try:
        folder = private_folder(folder.absolute())
        lock = FolderLock(folder)
        lock.acquire()
    except OSError as error:
        raise Misconfigured(
            f"{folder} cannot be the data folder: {error.strerror}. Choose another with --data."
        ) from error
    try:
        identity = _identity(folder / "installation_id")
        kept_secret(folder / "jwt_secret")
        _check_keys(folder / "encryption_keys")
        installation = Installation(
            folder=folder, id=identity, socket_dir=short_folder(f"containerpub-{identity[:8]}", 0o711), lock=lock
        )
        private_folder(installation.artifacts)
        installation.url_file.unlink(missing_ok=True)  # a killed process's
    except BaseException:
        lock.release()
        raise
    return installation


def _check_keys(file: Path) -> None:
    try:
        Keyring.parse(kept_secret(file, draw=new_key))
    except ValueError as error:
        raise Misconfigured(f"{file}: {error}.") from None


def _identity(file: Path) -> str:
    if not file.exists():
        fresh = file.with_name(file.name + ".new")
        fresh.write_text(secrets.token_hex(8), encoding="ascii")
        fresh.chmod(0o600)
        fresh.rename(file)
    return file.read_text(encoding="ascii").strip()
