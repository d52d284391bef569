"""A child process that this process owns: it has a session of its own and does not outlive its owner."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from shared.embedded.account import Account

LAUNCHER = Path(__file__).with_name("launch.py")
POLL_S = 0.02
"""Where the kernel has no pidfd (macOS), this is how often a waiter looks."""


class OwnedProcess:
    """Not bound to an event loop: any loop may wait for it, one after another."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen

    @classmethod
    def spawn(
        cls,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        output: int,
        cwd: Path | None = None,
        stdin: bytes | None = None,
        account: Account | None = None,
        pass_fds: Sequence[int] = (),
        dies_by: signal.Signals = signal.SIGKILL,
    ) -> OwnedProcess:
        """Start ``argv`` (an absolute program first); both its output streams go to the descriptor ``output``.

        ``stdin`` must fit a pipe (64 KiB). ``dies_by`` is what the kernel sends it when this process dies.
        Must be called on a thread that lives as long as the process, usually the main one: the kernel watches the
        thread that forks.
        """
        ids = (str(account.uid), str(account.gid)) if account else ("-", "-")
        popen = subprocess.Popen(
            [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), str(int(dies_by)), *ids, *argv],
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=pass_fds,
            start_new_session=True,
        )
        if popen.stdin is not None:
            try:
                popen.stdin.write(stdin or b"")
                popen.stdin.close()
            except BrokenPipeError:
                pass  # it is dead already, which wait() tells
        return cls(popen)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """``None`` while it runs; negative is the signal that ended it."""
        return self._popen.poll()

    async def wait(self) -> int:
        while (code := self._popen.poll()) is None:
            await _exit_of(self.pid)
        return code

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def kill_alone(self) -> int:
        """SIGKILL it without what it started, as the kernel does when memory runs out; its exit code. Blocks for as
        long as the kernel takes."""
        self._popen.kill()
        return self._popen.wait()

    def kill(self) -> None:
        """SIGKILL it and everything below it, sessions of their own included."""
        if self._popen.poll() is None:
            kill_tree(self.pid)

    async def stop(self, number: signal.Signals, grace_s: float) -> int:
        """Ask with ``number``, and kill after ``grace_s`` seconds; its exit code. Cancelled, it kills at once."""
        self.send(number)
        try:
            return await asyncio.wait_for(self.wait(), grace_s)
        except TimeoutError:
            return await self._end()
        except asyncio.CancelledError:
            self.kill()
            raise

    async def _end(self) -> int:
        await asyncio.to_thread(self.kill)
        return await self.wait()


def kill_tree(pid: int) -> list[psutil.Process]:
    """SIGKILL a process and its descendants, parents first so that none starts another; the processes it signalled."""
    try:
        root = psutil.Process(pid)
        victims = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
    for victim in victims:
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            pass
    return victims


async def _exit_of(pid: int) -> None:
    """Return once the child ``pid`` has ended, or was reaped by someone else meanwhile."""
    if sys.platform != "linux":
        await asyncio.sleep(POLL_S)
        return
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
