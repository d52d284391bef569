"""The real processes, started and killed by tests."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from cli.supervisor.environment import passing_environment
from cli.supervisor.launcher import Launcher, ModuleProcess, free_port
from shared.sealing import new_key
from tests.client import Client

__all__ = ["ROOT", "Platform", "free_port"]

ROOT = Path(__file__).parents[1]
READY_S = 30.0
STOP_S = 25.0
KEYS = new_key()  # the same for all of a run, since some platforms share a database


class Platform:
    """API, scheduler and workers as processes of their own, on the given Postgres and Redis.

    :param env: settings beside what is needed to run at all.
    """

    def __init__(
        self,
        *,
        database_url: str,
        redis_url: str,
        engine: str,
        workers: int = 1,
        env: dict[str, str] | None = None,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="cp-test-"))
        self.folder.chmod(0o711)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.installation = f"test-{secrets.token_hex(4)}"
        self._worker_names = [f"worker-{number}" for number in range(1, workers + 1)]
        needed = passing_environment(
            os.environ,
            self.folder,
            installation_id=self.installation,
            port=self.port,
            engine=engine,
            database_url=database_url,
            redis_url=redis_url,
        )
        usual = {
            "ENCRYPTION_KEYS": KEYS,
            "BCRYPT_COST": "4",
            "LEAVE_SECONDS": "0",
            "LOG_LEVEL": "info",
            "LOG_FORMAT": "text",
            "PYTHONFAULTHANDLER": "1",
        }
        self._launcher = Launcher(self.folder, needed | usual | (env or {}))

    @property
    def env(self) -> dict[str, str]:
        """The environment that the processes run with."""
        return dict(self._launcher.environment)

    @property
    def processes(self) -> dict[str, ModuleProcess]:
        return self._launcher.processes

    def change(self, **settings: str) -> None:
        """What processes that are started from now on run with."""
        self._launcher.environment |= settings

    async def __aenter__(self) -> Self:
        for name in ("api", "scheduler", *self._worker_names):
            self.start(name)
        try:
            await self.ready()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    def start(self, name: str) -> ModuleProcess:
        """Start the process ``name``: its module, ``api``, ``scheduler`` or ``worker``, alone or as in ``worker-2``.

        A second API needs a ``PORT`` of its own, see :meth:`change`.
        """
        return self._launcher.start(name)

    def log(self, name: str) -> Path:
        return self._launcher.log(name)

    def logs(self) -> str:
        """What all processes logged, for a failing test."""
        return self._launcher.logs()

    def kill(self, name: str) -> None:
        """``kill -9``."""
        self._launcher.kill(name)

    async def terminate(self, name: str, *, within_s: float = 30) -> None:
        """SIGTERM, and wait for an orderly end."""
        self.signal(name, signal.SIGTERM)
        await self.ends(name, within_s=within_s)

    async def ends(self, name: str, *, within_s: float = 30, status: int = 0) -> None:
        """Wait until the process ``name``, which has a reason to, ends with ``status``."""
        process = self.processes.pop(name)
        try:
            found = await asyncio.wait_for(process.wait(), within_s)
        except TimeoutError:
            process.send(signal.SIGABRT)  # its stacks go to its log
            await process.wait()
            raise AssertionError(f"{name} did not end within {within_s:g} s\n{self.logs()}") from None
        assert found == status, f"{name} ended with {found}\n{self.logs()}"

    def signal(self, name: str, number: signal.Signals) -> None:
        self.processes[name].send(number)

    async def ready(self, url: str | None = None) -> None:
        """Wait until calls can be served, by the API at ``url`` if there are several."""
        await self._launcher.ready(url or self.url, READY_S)

    def client(self) -> Client:
        return Client(self.url)

    async def stop(self) -> None:
        """SIGTERM; kill what does not end."""
        try:
            await self._launcher.stop_all(STOP_S)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
            if self.env["ENGINE"] == "docker":
                await asyncio.to_thread(remove_images, self.installation)


def remove_images(installation: str) -> None:
    """Images of a test's installation: nobody will call its functions again."""
    label = f"label=containerpub.installation={installation}"
    listed = subprocess.run(["docker", "images", "--quiet", "--filter", label], capture_output=True, text=True)
    images = sorted(set(listed.stdout.split()))
    if images:
        subprocess.run(["docker", "rmi", "--force", *images], capture_output=True)
