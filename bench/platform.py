"""The real thing, for the time of one family of figures: every process, auth and all recording on.

Postgres and Redis are the embedded ones, on a data folder that is removed at the end; API, scheduler and workers are
the processes that an operator starts, with the settings that they have by default. They die with this process.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import asyncpg
import psutil

from bench import engine
from bench.caller import Caller
from bench.figure import WrongAnswer
from cli.supervisor.environment import PACKAGES, passing_environment
from cli.supervisor.launcher import Launcher, free_port
from shared.embedded.postgres import EmbeddedPostgres
from shared.embedded.redis import EmbeddedRedis
from shared.errors import Unavailable
from shared.postgres.migrate import migrate

__all__ = ["ROOT", "Platform", "free_port"]

ROOT = PACKAGES
READY_S = 30.0
STOP_S = 30.0


class Platform:
    """:param engine_name: ``docker`` or ``process``. :param workers: how many to start with."""

    def __init__(self, engine_name: str, *, workers: int = 1, env: Mapping[str, str] | None = None) -> None:
        self.installation = f"bench-{secrets.token_hex(4)}"
        self.engine_name = engine_name
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="cp-bench-"))
        # Sandboxes reach their sockets below it, under a user of their own.
        self.folder.chmod(0o711)
        self.postgres = EmbeddedPostgres(self.folder / "postgres")
        self.redis = EmbeddedRedis(self.folder / "redis")
        self._workers = workers
        self._given = dict(env or {})
        self._launcher = Launcher(self.folder, {})
        self._open = AsyncExitStack()
        self.database: Any

    async def __aenter__(self) -> Self:
        try:
            self._open.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self._open.push_async_callback(engine.remove_images, self.engine_name, self.installation)
            await self._open.enter_async_context(self.postgres)
            await self._open.enter_async_context(self.redis)
            await migrate(self.postgres.dsn)
            self.database = await asyncpg.connect(self.postgres.dsn)
            self._open.push_async_callback(self.database.close)
            self._launcher.environment = self._environment()
            self._open.push_async_callback(self._launcher.stop_all, STOP_S)
            for name in ("api", "scheduler", *(f"worker-{number}" for number in range(1, self._workers + 1))):
                self.start(name)
            await self._ready()
        except BaseException:
            await self._open.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            error.add_note(self.logs())  # the folder is about to go
        await self._open.aclose()

    async def image_of(self, function: str | None = None) -> str | None:
        """An image of what the function's version consists of, or the newest version of all, for baselines; None where
        there are no images."""
        if self.engine_name != "docker":
            return None
        version, base = await self.database.fetchrow(
            "SELECT v.id, v.base FROM versions v JOIN functions f ON f.id = v.function_id "
            "WHERE f.name = coalesce($1, f.name) AND v.status = 'active' ORDER BY v.created_at DESC LIMIT 1",
            function,
        )
        rows = await self.database.fetch(
            "SELECT l.digest FROM version_layers l JOIN blobs b ON b.digest = l.digest "
            "WHERE l.version_id = $1 AND b.kind NOT IN ('base', 'image') ORDER BY l.position",
            version,
        )
        if not rows:
            return str(base)  # its own Dockerfile's
        digests = [row["digest"] for row in rows]
        paths = [self.folder / "artifacts" / "layers" / digest[:2] / digest for digest in digests]
        return await engine.assemble(self.installation, base, paths)

    def start(self, name: str, env: Mapping[str, str] | None = None) -> None:
        """Start the process ``name``: ``api``, ``scheduler`` or ``worker-…``."""
        self._launcher.start(name, env)

    async def stop(self, name: str) -> int:
        """SIGTERM, and wait; its exit code, which is -9 if it had to be killed after :data:`STOP_S`."""
        return await self._launcher.stop(name, STOP_S)

    async def kill(self, name: str) -> int:
        """SIGKILL, to the process alone; its pid."""
        return await asyncio.to_thread(self._launcher.kill, name)

    def ended(self) -> dict[str, int]:
        """Processes that nobody told to end, and their exit codes; they are forgotten."""
        return self._launcher.ended()

    async def reconnect(self) -> None:
        """A new :attr:`database`, after Postgres was stopped."""
        self.database.terminate()
        self.database = await asyncpg.connect(self.postgres.dsn)
        self._open.push_async_callback(self.database.close)

    def caller(self) -> Caller:
        return Caller(self.port)

    def processes(self) -> dict[str, psutil.Process]:
        """The platform's own processes by name; not Postgres, Redis or sandboxes."""
        return {name: psutil.Process(process.pid) for name, process in self._launcher.processes.items()}

    async def unfinished(self) -> int:
        """Accepted jobs whose end is not in Postgres yet."""
        return int(
            await self.database.fetchval("SELECT count(*) FROM jobs WHERE status IN ('scheduled', 'queued', 'running')")
        )

    def logs(self) -> str:
        """The end of what every process logged, for an error's sentence."""
        return self._launcher.logs()

    async def _ready(self) -> None:
        try:
            await self._launcher.ready(f"http://127.0.0.1:{self.port}", READY_S)
        except Unavailable as error:
            raise WrongAnswer(error.message) from None

    def _environment(self) -> dict[str, str]:
        needed = passing_environment(
            os.environ,
            self.folder,
            installation_id=self.installation,
            port=self.port,
            engine=self.engine_name,
            database_url=self.postgres.dsn,
            redis_url=self.redis.url,
        )
        return needed | self._given
