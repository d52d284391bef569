"""The real processes, started and killed by tests."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

import aiohttp

from shared.sealing import new_key
from tests.client import Client

ROOT = Path(__file__).parents[1]
READY_S = 30.0
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
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._worker_names = [f"worker-{number}" for number in range(1, workers + 1)]
        self._env = {
            **{name: value for name, value in os.environ.items() if name in _PASSED_ON},
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "JWT_SECRET": secrets.token_hex(32),
            "ENCRYPTION_KEYS": KEYS,
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "ENGINE": engine,
            "INSTALLATION_ID": self.installation,
            "DATA_DIR": str(self.folder / "data"),
            "FUNCTIONS_DIR": str(self.folder / "artifacts"),
            "SOCKET_DIR": str(self.folder / "s"),
            "BCRYPT_COST": "4",
            "LEAVE_SECONDS": "0",
            "LOG_LEVEL": "info",
            "LOG_FORMAT": "text",
            "PYTHONPATH": str(ROOT),
            "PYTHONFAULTHANDLER": "1",
            **(env or {}),
        }

    @property
    def env(self) -> dict[str, str]:
        """The environment that the processes run with."""
        return dict(self._env)

    def change(self, **settings: str) -> None:
        """What processes that are started from now on run with."""
        self._env |= settings

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

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Start the process ``name``: its module, ``api``, ``scheduler`` or ``worker``, alone or as in ``worker-2``.

        A second API needs a ``PORT`` of its own, see :meth:`change`.
        """
        module = name.partition("-")[0]
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module], env=self._env, stdout=log, stderr=log, cwd=self.folder
            )
        self.processes[name] = process
        return process

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def logs(self) -> str:
        """What all processes logged, for a failing test."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-6000:]}" for path in sorted(self.folder.glob("*.log"))
        )

    def kill(self, name: str) -> None:
        """``kill -9``."""
        process = self.processes.pop(name)
        process.kill()
        process.wait(10)

    async def terminate(self, name: str, *, within_s: float = 30) -> None:
        """SIGTERM, and wait for an orderly end."""
        process = self.processes.pop(name)
        process.terminate()
        try:
            status = await asyncio.to_thread(process.wait, within_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # its stacks go to its log
            process.wait(10)
            raise AssertionError(f"{name} did not end within {within_s:g} s\n{self.logs()}") from None
        assert status == 0, f"{name} ended with {status}\n{self.logs()}"

    def signal(self, name: str, number: signal.Signals) -> None:
        self.processes[name].send_signal(number)

    async def ready(self, url: str | None = None) -> None:
        """Wait until calls can be served, by the API at ``url`` if there are several."""
        deadline = asyncio.get_running_loop().time() + READY_S
        async with aiohttp.ClientSession() as http:
            while True:
                for name, process in self.processes.items():
                    if process.poll() is not None:
                        raise AssertionError(f"{name} ended with {process.returncode}\n{self.logs()}")
                try:
                    async with http.get((url or self.url) + "/api/ready") as response:
                        if response.status == 200:
                            return
                except aiohttp.ClientError:
                    pass
                if asyncio.get_running_loop().time() > deadline:
                    raise AssertionError(f"not ready within {READY_S} s\n{self.logs()}")
                await asyncio.sleep(0.05)

    def client(self) -> Client:
        return Client(self.url)

    async def stop(self) -> None:
        """SIGTERM, workers first; kill what does not end."""
        for name in sorted(self.processes, reverse=True):
            self.processes[name].send_signal(signal.SIGCONT)
            self.processes[name].terminate()
        try:
            for process in self.processes.values():
                try:
                    await asyncio.to_thread(process.wait, 25)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        finally:
            self.processes.clear()
            shutil.rmtree(self.folder, ignore_errors=True)
            if self._env["ENGINE"] == "docker":
                await asyncio.to_thread(remove_images, self.installation)


_PASSED_ON = ("PATH", "HOME", "LANG", "DOCKER_HOST", "SSL_CERT_FILE", "SSL_CERT_DIR", "PIP_CERT", "TMPDIR")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def remove_images(installation: str) -> None:
    """Images of a test's installation: nobody will call its functions again."""
    label = f"label=containerpub.installation={installation}"
    listed = subprocess.run(["docker", "images", "--quiet", "--filter", label], capture_output=True, text=True)
    images = sorted(set(listed.stdout.split()))
    if images:
        subprocess.run(["docker", "rmi", "--force", *images], capture_output=True)
