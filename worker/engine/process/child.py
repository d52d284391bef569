"""One sandbox as a child process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import psutil

from shared.in_thread import finished_in_thread
from worker.engine.process.namespaces import Namespaces
from worker.errors import EngineUnavailable
from worker.sandbox.attach import Rendezvous, remove_folder
from worker.sandbox.attached import ExitStatus

PID_FILE = "pid"
TEMP_FOLDER = "tmp"
_LAUNCHER = Path(__file__).with_name("launcher.py")
_END_WAIT_S = 2.0
_KILL_WAIT_S = 5.0
_STOP_WAIT_S = 2.0
_ENDED = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
_STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, *_ENDED)


class Child:
    """Implements :class:`worker.sandbox.start.Startable`."""

    def __init__(
        self,
        folder: Path,
        namespaces: Namespaces,
        argv: Sequence[str],
        working_dir: Path,
        limits: Mapping[str, int],
        new_env: Callable[[Rendezvous], Mapping[str, str]],
        code: Path | None = None,
    ) -> None:
        """``folder`` and ``code``, where its version's code is, go with it."""
        self._folder = folder
        self._code = code
        self._namespaces = namespaces
        self._argv = argv
        self._working_dir = working_dir
        self._limits = limits
        self._new_env = new_env
        self._process: subprocess.Popen[bytes] | None = None
        self._killing: asyncio.Future[None] | None = None

    async def start(self, rendezvous: Rendezvous) -> None:
        try:
            await self.spawn(self._new_env(rendezvous))
        except OSError as error:
            raise EngineUnavailable(f"A sandbox's process cannot be started: {error}") from error

    async def spawn(
        self, env: Mapping[str, str], stdout: int = subprocess.DEVNULL, stderr: int = subprocess.DEVNULL
    ) -> None:
        """Start it with ``env`` in its folder, which is there.

        A process on its way into being cannot be called back: when cancelled, this ends once it is there to be killed.
        """
        await finished_in_thread(partial(self._spawn, env, stdout, stderr))

    async def pause(self) -> None:
        await asyncio.to_thread(self._stop_all)

    async def unpause(self) -> None:
        await asyncio.to_thread(self._continue_all)

    async def ended(self) -> int | None:
        return None if self._process is None else self._exit_code(self._process.poll())

    def kill(self) -> None:
        if self._killing is not None or self._process is None:
            return
        self._killing = asyncio.ensure_future(asyncio.to_thread(self._kill_all, self._process))

    async def exit_status(self) -> ExitStatus:
        process = self._process
        assert process is not None
        code = self._exit_code(await asyncio.to_thread(_wait, process, _END_WAIT_S))
        return ExitStatus(code=code, out_of_memory=False)

    async def remove(self) -> None:
        self.kill()
        if self._killing is not None:
            killing, self._killing = self._killing, None
            await killing
        for folder in (self._folder, self._code):
            if folder is not None:
                await asyncio.to_thread(remove_folder, folder)

    def _spawn(self, env: Mapping[str, str], stdout: int, stderr: int) -> None:
        """Blocking: a fork of the worker takes milliseconds."""
        (self._folder / TEMP_FOLDER).mkdir(mode=0o700)
        python = (sys.executable, "-I", "-S", "-B")
        process = subprocess.Popen(
            (*self._namespaces.wrapper, *python, str(_LAUNCHER), json.dumps(dict(self._limits)), *self._argv),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=self._working_dir,
            env=dict(env),
            close_fds=True,
            start_new_session=True,
        )
        self._process = process
        write_pid(self._folder, process.pid)

    def _kill_all(self, process: subprocess.Popen[bytes]) -> None:
        # The launcher, or the namespace's first process, takes all others along, and the parent ends once they are
        # gone: killed together, the parent could be gone before them.
        _kill_children(process.pid)
        process.send_signal(signal.SIGCONT)  # a paused parent could not end
        if _wait(process, _KILL_WAIT_S / 2) is not None:
            return
        kill_descendants(process.pid)
        self._kill_group(process)
        if _wait(process, _KILL_WAIT_S) is None:
            raise EngineUnavailable(f"Process {process.pid} did not end within {_KILL_WAIT_S:g} s of being killed.")

    def _stop_all(self) -> None:
        """SIGSTOP to everything below, until no look finds one that still runs: it could have started another."""
        deadline = time.monotonic() + _STOP_WAIT_S
        while running := [one for one in self._everything() if _status(one) not in _STOPPED]:
            if time.monotonic() > deadline:
                raise EngineUnavailable(f"A sandbox's processes did not stop within {_STOP_WAIT_S:g} s.")
            for one in running:
                _send(one, signal.SIGSTOP)
            time.sleep(0.001)

    def _continue_all(self) -> None:
        for one in self._everything():
            _send(one, signal.SIGCONT)

    def _everything(self) -> list[psutil.Process]:
        if self._process is None or self._process.poll() is not None:
            raise EngineUnavailable("A sandbox's process has ended.")
        try:
            first = psutil.Process(self._process.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess as error:
            raise EngineUnavailable("A sandbox's process has ended.") from error

    @staticmethod
    def _kill_group(process: subprocess.Popen[bytes]) -> None:
        # Not yet reaped, so the number is still this process's.
        if process.poll() is None:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    @staticmethod
    def _exit_code(code: int | None) -> int | None:
        return 128 - code if code is not None and code < 0 else code


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> int | None:
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None


def _kill_children(pid: int) -> None:
    try:
        for child in psutil.Process(pid).children():
            child.kill()
    except psutil.NoSuchProcess:
        return


def kill_descendants(pid: int) -> None:
    """SIGKILL everything below ``pid``, a launcher, until nothing is left; the launcher stays stopped. Blocking."""
    deadline = time.monotonic() + _KILL_WAIT_S
    try:
        # Stopped, it waits for nobody: no process leaves the tree while it is being read, hiding those below it.
        os.kill(pid, signal.SIGSTOP)
    except ProcessLookupError:
        return
    while time.monotonic() < deadline:
        try:
            below = [one for one in psutil.Process(pid).children(recursive=True) if _alive(one)]
        except psutil.NoSuchProcess:
            return
        if not below:
            return
        # First all are stopped, or those not yet killed could start others.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for one in below:
                _send(one, number)
        psutil.wait_procs(below, timeout=1.0)


def _alive(process: psutil.Process) -> bool:
    return _status(process) not in _ENDED


def _status(process: psutil.Process) -> str:
    try:
        return str(process.status())
    except psutil.NoSuchProcess:
        return psutil.STATUS_DEAD


def _send(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def write_pid(folder: Path, pid: int) -> None:
    """Leave in ``folder`` which process it belongs to: its id and, since ids are used again, when it started."""
    try:
        started = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return
    written = folder / f"{PID_FILE}.new"
    written.write_text(f"{pid} {started}\n", "ascii")
    written.rename(folder / PID_FILE)  # whoever reads it finds all of it


def kill_recorded(folder: Path) -> None:
    """SIGKILL the process that ``folder`` names, and all below it, if it is still the same one. Blocking."""
    try:
        pid, started = (folder / PID_FILE).read_text("ascii").split()
        process = psutil.Process(int(pid))
        if process.create_time() != float(started):
            return
        kill_descendants(process.pid)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(_KILL_WAIT_S)
    except (OSError, ValueError, psutil.Error):
        # Gone, or never started.
        return
