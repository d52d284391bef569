"""The real thing, for the time of one family of figures: every process, auth and all recording on.

Postgres and Redis are the embedded ones, on a data folder that is removed at the end; API, scheduler and workers are
the processes that an operator starts, with the settings that they have by default. They die with this process.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import asyncpg
import psutil

from bench import engine
from bench.caller import Caller
from bench.figure import WrongAnswer
from shared.embedded.postgres import EmbeddedPostgres
from shared.embedded.process import OwnedProcess
from shared.embedded.redis import EmbeddedRedis
from shared.postgres.migrate import migrate
from shared.sealing import new_key

ROOT = Path(__file__).resolve().parents[1]
READY_S = 30.0
STOP_S = 30.0
_PASSED_ON = ("PATH", "HOME", "LANG", "DOCKER_HOST", "DOCKER_BASE_IMAGE", "TMPDIR")


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
        self._env: dict[str, str] = {}
        self._processes: dict[str, OwnedProcess] = {}
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
            self._env = self._environment()
            self._open.push_async_callback(self._stop_all)
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

    def start(self, name: str, env: Mapping[str, str] | None = None) -> None:
        """Start the process ``name``: ``api``, ``scheduler`` or ``worker-…``."""
        module = name.partition("-")[0]
        log = os.open(self._log(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._processes[name] = OwnedProcess.spawn(
                [sys.executable, "-m", module], env={**self._env, **(env or {})}, output=log, cwd=self.folder
            )
        finally:
            os.close(log)

    async def stop(self, name: str) -> int:
        """SIGTERM, and wait; its exit code, which is -9 if it had to be killed after :data:`STOP_S`."""
        return await self._processes.pop(name).stop(signal.SIGTERM, STOP_S)

    async def kill(self, name: str) -> int:
        """SIGKILL, to the process alone; its pid."""
        process = self._processes.pop(name)
        process.send(signal.SIGKILL)
        await process.wait()
        return process.pid

    def ended(self) -> dict[str, int]:
        """Processes that nobody told to end, and their exit codes; they are forgotten."""
        found = {name: process.returncode for name, process in self._processes.items()}
        codes = {name: code for name, code in found.items() if code is not None}
        for name in codes:
            del self._processes[name]
        return codes

    async def reconnect(self) -> None:
        """A new :attr:`database`, after Postgres was stopped."""
        self.database.terminate()
        self.database = await asyncpg.connect(self.postgres.dsn)
        self._open.push_async_callback(self.database.close)

    def caller(self) -> Caller:
        return Caller(self.port)

    def processes(self) -> dict[str, psutil.Process]:
        """The platform's own processes by name; not Postgres, Redis or sandboxes."""
        return {name: psutil.Process(process.pid) for name, process in self._processes.items()}

    async def unfinished(self) -> int:
        """Accepted jobs whose end is not in Postgres yet."""
        return int(
            await self.database.fetchval("SELECT count(*) FROM jobs WHERE status IN ('scheduled', 'queued', 'running')")
        )

    def logs(self) -> str:
        """The end of what every process logged, for an error's sentence."""
        return "\n".join(
            f"--- {path.stem}\n{path.read_text(errors='replace')[-3000:]}" for path in sorted(self.folder.glob("*.log"))
        )

    async def _ready(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + READY_S
        async with aiohttp.ClientSession() as http:
            while True:
                for name, process in self._processes.items():
                    if process.returncode is not None:
                        raise WrongAnswer(f"{name} ended with {process.returncode} at its start\n{self.logs()}")
                try:
                    async with http.get(f"http://127.0.0.1:{self.port}/api/ready") as response:
                        if response.status == 200:
                            return
                except aiohttp.ClientError:
                    pass
                if loop.time() > deadline:
                    raise WrongAnswer(f"the platform was not ready within {READY_S:g} s\n{self.logs()}")
                await asyncio.sleep(0.05)

    async def _stop_all(self) -> None:
        names = sorted(self._processes, reverse=True)  # workers first
        await asyncio.gather(*(self.stop(name) for name in names if name.startswith("worker")))
        await asyncio.gather(*(self.stop(name) for name in names if not name.startswith("worker")))

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _environment(self) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if name in _PASSED_ON},
            "PYTHONPATH": str(ROOT),
            "DATABASE_URL": self.postgres.dsn,
            "REDIS_URL": self.redis.url,
            "JWT_SECRET": secrets.token_hex(32),
            "ENCRYPTION_KEYS": new_key(),
            "PORT": str(self.port),
            "ENGINE": self.engine_name,
            "INSTALLATION_ID": self.installation,
            "DATA_DIR": str(self.folder / "data"),
            "FUNCTIONS_DIR": str(self.folder / "artifacts"),
            "SOCKET_DIR": str(self.folder / "s"),
            **self._given,
        }


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
