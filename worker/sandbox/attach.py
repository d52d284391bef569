"""How a fresh sandbox and its worker find each other.

The worker listens on a Unix socket in a folder of that sandbox's own. The sandbox connects three times, each time
naming the connection's role and the token from its environment; then the listener is gone, before any function code
has run, and nothing else can ever reach the worker through it.

Folders are ``<socket_dir>/<engine>-<installation>-<worker>/<sandbox id>``: with names of a fixed length, because the
address of a Unix socket ends at 107 bytes, and made from the ids, so that a sweep knows whose they are.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import secrets
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from worker.config import EngineConfig
from worker.errors import EngineUnavailable

SOCKET_NAME = "s"
_LONGEST_ADDRESS_BYTES = 100
_ROLES = ("control", "stdout", "stderr")
_GREETING_BYTES = 40
"""Fixed, so that reading it takes nothing of the output that may already stand behind it: the role padded to seven
characters, a space, the token's 32."""


def _short(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketFolders:
    """The folders of one worker's sandboxes, and the stale ones of other workers."""

    root: Path
    prefix: str
    own: str

    @classmethod
    def of(cls, engine: str, config: EngineConfig) -> SocketFolders:
        prefix = f"{engine[0]}-{_short(config.installation, 8)}-"
        return cls(root=config.socket_dir, prefix=prefix, own=prefix + _short(config.worker_id, 12))

    def prepare(self) -> None:
        """Make this worker's folder, closed to other users of the machine. Blocking."""
        longest = self.folder("0" * 16) / SOCKET_NAME
        if len(os.fsencode(longest)) > _LONGEST_ADDRESS_BYTES:
            raise EngineUnavailable(
                f"The socket folder {self.root} is too long for the address of a Unix socket: choose a shorter path."
            )
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self.home.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise EngineUnavailable(f"The socket folder {self.root} cannot be used: {error.strerror}.") from error

    @property
    def home(self) -> Path:
        """The folder of this worker."""
        return self.root / self.own

    def folder(self, sandbox_id: str) -> Path:
        return self.home / sandbox_id

    def stale(self, live_workers: frozenset[str]) -> list[Path]:
        """Folders of sandboxes, and of workers, of this installation whose worker is not live. Blocking."""
        live = {self.prefix + _short(worker, 12) for worker in live_workers} | {self.own}
        try:
            names = os.listdir(self.root)
        except FileNotFoundError:
            return []
        return [self.root / name for name in names if name.startswith(self.prefix) and name not in live]


def remove_folder(folder: Path) -> None:
    """Remove ``folder`` and what is in it; absent is fine, another sweep being faster too. Blocking."""
    shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Connections:
    """The three connections of one sandbox, non-blocking."""

    control: socket.socket
    stdout: socket.socket
    stderr: socket.socket

    def close(self) -> None:
        for connection in (self.control, self.stdout, self.stderr):
            connection.close()


class Rendezvous:
    """The listening socket in a sandbox's folder, for the moment of its start."""

    def __init__(self, folder: Path) -> None:
        """Make the folder and listen in it. Blocking.

        The sandbox runs as a user of its own, so folder and socket are open to all; the folder around is not.
        """
        self.folder = folder
        self.token = secrets.token_hex(16)
        self.address = folder / SOCKET_NAME
        folder.mkdir(parents=True)
        folder.chmod(0o755)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(os.fspath(self.address))
            self.address.chmod(0o666)
            self._listener.listen(len(_ROLES))
            self._listener.setblocking(False)
        except OSError:
            self._listener.close()
            raise

    async def meet(self) -> Connections:
        """Accept until all three roles are connected. Unbounded: the caller sets the limit."""
        loop = asyncio.get_running_loop()
        found: dict[str, socket.socket] = {}
        connection: socket.socket | None = None
        try:
            while len(found) < len(_ROLES):
                connection = await self._accept(loop)
                role = await self._greeting(loop, connection)
                if role is None or role in found:
                    connection.close()
                else:
                    found[role] = connection
                connection = None
        except BaseException:
            for one in (*found.values(), connection):
                if one is not None:
                    one.close()
            raise
        return Connections(control=found["control"], stdout=found["stdout"], stderr=found["stderr"])

    def close(self) -> None:
        """Stop listening and take the socket away; idempotent. Blocking."""
        self._listener.close()
        self.address.unlink(missing_ok=True)

    async def _accept(self, loop: asyncio.AbstractEventLoop) -> socket.socket:
        """As ``loop.sock_accept``, which loses a connection when it is cancelled in the turn that accepted one."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                await _readable(loop, self._listener)
            else:
                connection.setblocking(False)
                return connection

    async def _greeting(self, loop: asyncio.AbstractEventLoop, connection: socket.socket) -> str | None:
        """The role that the peer names, or ``None`` if it does not know the sandbox's token."""
        greeting = b""
        while len(greeting) < _GREETING_BYTES:
            data = await loop.sock_recv(connection, _GREETING_BYTES - len(greeting))
            if not data:
                return None
            greeting += data
        role = greeting[:7].decode("ascii", "replace").rstrip()
        if role not in _ROLES or not hmac.compare_digest(greeting[8:], self.token.encode()):
            return None
        return role


async def _readable(loop: asyncio.AbstractEventLoop, listener: socket.socket) -> None:
    """Return once a connection waits to be accepted. It is not accepted here."""
    ready: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(listener, tell)
    try:
        await ready
    finally:
        loop.remove_reader(listener)
