"""API, scheduler and workers as child processes: started by module name, asked whether they serve, ended by signal.

``up`` keeps its parts running (:mod:`cli.supervisor.supervisor`); benchmarks and tests start them here, end them as
they like, and start them again or not.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import aiohttp

from shared.embedded.process import OwnedProcess
from shared.errors import Misconfigured, Unavailable

READY_POLL_S = 0.05
READY_ANSWER_TIMEOUT_S = 2.0
LOG_TAIL_CHARS = 6000


class ModuleProcess:
    """``python -m MODULE``; ``-P`` keeps a package of the same name in the user's folder out of its way."""

    def __init__(
        self, *module: str, environment: Mapping[str, str], output: int, working_folder: Path | None = None
    ) -> None:
        self._argv = [sys.executable, "-P", "-m", *module]
        self._environment = environment
        self._output = output
        self._working_folder = working_folder
        self._process: OwnedProcess | None = None

    @property
    def pid(self) -> int:
        return self._started().pid

    @property
    def returncode(self) -> int | None:
        """``None`` while it runs; negative is the signal that ended it."""
        return self._started().returncode

    def spawn(self) -> None:
        """Start it; may be called again after it has ended."""
        self._process = OwnedProcess.spawn(
            self._argv, env=self._environment, output=self._output, cwd=self._working_folder
        )

    async def start(self) -> None:
        self.spawn()

    async def wait(self) -> int:
        return await self._started().wait()

    async def stop(self, grace_s: float) -> None:
        if self._process is not None:
            await self._process.stop(signal.SIGTERM, grace_s)

    def send(self, number: signal.Signals) -> None:
        """To this process alone, not to what it started."""
        self._started().send(number)

    def kill_alone(self) -> None:
        """SIGKILL it without what it started, and wait for its end. Blocks."""
        self._started().kill_alone()

    def kill(self) -> None:
        """SIGKILL it with everything below it."""
        if self._process is not None:
            self._process.kill()

    def _started(self) -> OwnedProcess:
        if self._process is None:
            raise Unavailable(f"{self._argv[-1]} was not started.")
        return self._process


class Launcher:
    """The parts of one platform by their names. It starts a part again only when asked to.

    A name begins with its module: ``api``, ``scheduler``, ``worker``, alone or as in ``worker-2``. The output of a part
    goes to a file of its name in ``folder``, which is its working folder, too.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.environment = dict(environment)
        """Settings of parts that are started from now on."""
        self.processes: dict[str, ModuleProcess] = {}
        """The processes that were started here, without those that were stopped here or that :meth:`ended` returned."""

    def start(self, name: str, settings: Mapping[str, str] | None = None) -> ModuleProcess:
        """Start the part ``name``, with ``settings`` beside the others."""
        log = os.open(self.log(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            process = ModuleProcess(
                name.partition("-")[0],
                environment={**self.environment, **(settings or {})},
                output=log,
                working_folder=self.folder,
            )
            process.spawn()
        finally:
            os.close(log)
        self.processes[name] = process
        return process

    async def ready(self, url: str, within_s: float) -> None:
        """Wait until the API at ``url`` says that calls are served. Raises :class:`Unavailable`, with the logs, when
        a part ends before or it takes longer."""

        def complain() -> None:
            for name, process in self.processes.items():
                if process.returncode is not None:
                    raise Unavailable(f"{name} ended with {process.returncode} at its start.\n{self.logs()}")

        try:
            async with asyncio.timeout(within_s):
                await until_ready(url, complain)
        except TimeoutError:
            raise Unavailable(f"{url} was not ready within {within_s:g} s.\n{self.logs()}") from None

    def ended(self) -> dict[str, int]:
        """Parts that ended by themselves, and their exit codes; they are forgotten."""
        found = {name: process.returncode for name, process in self.processes.items()}
        codes = {name: code for name, code in found.items() if code is not None}
        for name in codes:
            del self.processes[name]
        return codes

    def kill(self, name: str) -> int:
        """SIGKILL to the part alone; its pid."""
        process = self.processes.pop(name)
        process.kill_alone()
        return process.pid

    async def stop(self, name: str, grace_s: float) -> int:
        """SIGTERM; its exit code, which is -9 if it had to be killed after ``grace_s`` seconds."""
        process = self.processes.pop(name)
        await process.stop(grace_s)
        return await process.wait()

    async def stop_all(self, grace_s: float) -> None:
        """SIGTERM to all at once, also to those that stand still; what does not end is killed."""
        for process in self.processes.values():
            process.send(signal.SIGCONT)
        await asyncio.gather(*(self.stop(name, grace_s) for name in list(self.processes)))

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def logs(self) -> str:
        """The end of each part's output."""
        return "\n".join(
            f"--- {path.stem}\n{path.read_text(errors='replace')[-LOG_TAIL_CHARS:]}"
            for path in sorted(self.folder.glob("*.log"))
        )


async def until_ready(url: str, meanwhile: Callable[[], object]) -> None:
    """Return once the API at ``url`` says that calls are served; ``meanwhile`` is called between two looks."""
    timeout = aiohttp.ClientTimeout(total=READY_ANSWER_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        while not await _is_ready(session, url):
            meanwhile()
            await asyncio.sleep(READY_POLL_S)


def free_port(host: str = "127.0.0.1", port: int = 0) -> int:
    """``port`` if it can be listened on, a free one for 0. Raises :class:`Misconfigured` with what to do."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        raise Misconfigured(
            f"Cannot listen on {host}:{port}: {error.strerror}. Choose another with --host or --port (0: a free one)."
        ) from error


async def _is_ready(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/api/ready") as answer:
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False
