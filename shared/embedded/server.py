"""The base of the embedded servers: one folder, one child process, one Unix socket, no TCP.

A server's folder holds ``data``, ``run`` (its socket), ``password``, ``log`` and ``lock``. It may be killed at any
moment, together with us or alone: the next start recovers.
"""

from __future__ import annotations

import asyncio
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from shared.embedded.account import Account, server_account
from shared.embedded.folder import FolderLock, kept_secret, kill_those_in, private_folder, socket_folder
from shared.embedded.process import OwnedProcess
from shared.errors import Unavailable

SERVER_ENVIRONMENT: Mapping[str, str] = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
"""The whole environment of a server, so that no ``PG…`` variable of the user changes what it does."""
INSTALL = "pip install 'containerpub[embedded]'"
"""How to install the servers' programs, which only the embedded servers need."""
READY_TIMEOUT_S = 60.0
STOP_GRACE_S = 8.0
RETRY_S = 0.01
MAX_LOG_BYTES = 4 * 1024**2
MAX_QUOTED_BYTES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A prepared folder, seen by the server's process.

    A server that runs as another account cannot walk through a closed home above the folder. So it gets the folder as
    an open descriptor and reaches everything through ``/proc/self/fd``; its children inherit the descriptor.
    """

    account: Account | None
    folder: str
    run: str
    descriptor: int | None

    @property
    def pass_fds(self) -> tuple[int, ...]:
        return () if self.descriptor is None else (self.descriptor,)


class EmbeddedServer(ABC):
    """A server as a child of this process. Independent of event loops; starting and stopping are idempotent.

    :param folder: made when absent, private to the server, and locked: two servers never run on one folder.
    :param output: descriptor that takes what the server writes; its ``log`` file when omitted, and always while the
        data are made.
    """

    name: ClassVar[str]
    program: ClassVar[str]  # the process name of whatever may be left running
    socket_name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]
    orphan_signal: ClassVar[signal.Signals]

    def __init__(self, folder: Path, *, output: int | None = None) -> None:
        self.folder = folder.absolute()
        self._output = output
        self._process: OwnedProcess | None = None
        self._lock: FolderLock | None = None
        self._run: Path | None = None
        self._password = ""

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def pid(self) -> int:
        """Of the server's first process; raises :class:`Unavailable` before the first start."""
        return self._started().pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Return once the server answers. Raises :class:`Unavailable`, or :class:`Misconfigured` with what to do."""
        if self.running:
            return
        place = await asyncio.to_thread(self._prepare)
        try:
            output = await asyncio.to_thread(self._open_log) if self._output is None else self._output
            try:
                self._process = await self._launch(place, output)
            finally:
                if output != self._output:
                    os.close(output)
        finally:
            for descriptor in place.pass_fds:
                os.close(descriptor)
        await self.wait_ready()

    def visit(self) -> Self:
        """Know the address of a server that another process runs on this folder. Blocks.

        Raises :class:`Unavailable` when nobody ever started one here.
        """
        try:
            self._password = (self.folder / "password").read_text(encoding="ascii").strip()
        except OSError as error:
            raise Unavailable(f"{self.name} has not run on {self.folder}.") from error
        self._run = socket_folder(self.folder, self.socket_name, server_account())
        return self

    async def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Return once the server answers. Raises :class:`Unavailable` when it ended or took too long."""
        process = self._started()
        try:
            async with asyncio.timeout(timeout_s):
                while not await self._answers():
                    if process.returncode is not None:
                        raise Unavailable(f"{self.name} ended with {process.returncode} at its start.{self._quote()}")
                    await asyncio.sleep(RETRY_S)
        except TimeoutError:
            raise Unavailable(f"{self.name} did not answer within {timeout_s:g} s.{self._quote()}") from None

    async def wait(self) -> int:
        """Return its exit code once it has ended."""
        return await self._started().wait()

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """End it cleanly, by force after ``grace_s`` seconds, and let go of the folder."""
        if self._process is not None:
            await self._process.stop(self.stop_signal, grace_s)
        await asyncio.to_thread(self._leave)

    def kill(self) -> None:
        """SIGKILL it with all its children, as a crash would."""
        if self._process is not None:
            self._process.kill()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @abstractmethod
    async def _launch(self, place: Place, output: int) -> OwnedProcess:
        """Start the server's process, after making its data when there is none."""

    @abstractmethod
    async def _answers(self) -> bool:
        """Whether it serves; False while it is still coming up."""

    def _spawn(
        self, argv: Sequence[str], place: Place, output: int, dies_by: signal.Signals, stdin: bytes | None = None
    ) -> OwnedProcess:
        return OwnedProcess.spawn(
            argv,
            env=SERVER_ENVIRONMENT,
            cwd=Path("/"),
            output=output,
            stdin=stdin,
            account=place.account,
            pass_fds=place.pass_fds,
            dies_by=dies_by,
        )

    def _prepare(self) -> Place:
        account = server_account()
        private_folder(self.folder)
        lock = self._lock or FolderLock(self.folder)
        lock.acquire()
        self._lock = lock
        kill_those_in(self.data, self.program)
        self._password = kept_secret(self.folder / "password", account)
        self._run = socket_folder(self.folder, self.socket_name, account)
        for stale in self._run.iterdir():
            stale.unlink()
        if account is None:
            return Place(account=None, folder=str(self.folder), run=str(self._run), descriptor=None)
        account.take(self.folder)
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        folder = f"/proc/self/fd/{descriptor}"
        run = f"{folder}/run" if self._run.parent == self.folder else str(self._run)
        return Place(account=account, folder=folder, run=run, descriptor=descriptor)

    def _open_log(self) -> int:
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if os.fstat(log).st_size > MAX_LOG_BYTES:
            os.ftruncate(log, 0)
        return log

    def _leave(self) -> None:
        if self._run is not None and self._run.parent != self.folder and self._run.is_dir():
            for stale in self._run.iterdir():
                stale.unlink()
            self._run.rmdir()
        if self._lock is not None:
            self._lock.release()

    def _started(self) -> OwnedProcess:
        if self._process is None:
            raise Unavailable(f"{self.name} was not started.")
        return self._process

    def _socket(self) -> Path:
        if self._run is None:
            raise Unavailable(f"{self.name} was not started.")
        return self._run / self.socket_name

    def _quote(self) -> str:
        """The end of its own log, for an error's sentence."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_QUOTED_BYTES))
            return f" Its log ends with:\n{file.read().decode('utf-8', 'backslashreplace')}"
