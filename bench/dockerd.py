"""A Docker daemon that may be stopped and killed: own data, containerd and cgroup, no network, no firewall rules."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
import psutil
from aiodocker import Docker, DockerError

from bench.figure import WrongAnswer
from shared.embedded.process import OwnedProcess, kill_tree

_READY_S = 60.0
_STOP_S = 60.0
_CONTAINERD_S = 10.0
_CGROUPS = Path("/sys/fs/cgroup")


def missing() -> str | None:
    """Why this machine cannot run one; ``None`` if it can."""
    if shutil.which("dockerd") is None:
        return "there is no dockerd to start"
    return "only root can start a dockerd" if os.geteuid() else None


class PrivateDockerd:
    """Beside the machine's own daemon, which it takes its base images from and leaves alone otherwise.

    :param live_restore: whether containers outlive the daemon; read at every start.
    """

    def __init__(self, *, live_restore: bool = False) -> None:
        self.live_restore = live_restore
        # Short, because of the sockets in it.
        self.folder = Path(tempfile.mkdtemp(prefix="cpd-"))
        self.url = f"unix://{self.folder}/s"
        self._cgroup = f"containerpub-{secrets.token_hex(4)}"
        self._process: OwnedProcess | None = None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Start it and wait until it answers."""
        config = self.folder / "daemon.json"
        config.write_text("{}")
        log = os.open(self.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._process = OwnedProcess.spawn(
                [
                    # One without a bridge takes away the bridge that it finds, which is the machine's own daemon's.
                    *(shutil.which("unshare") or "unshare", "--net"),
                    shutil.which("dockerd") or "dockerd",
                    *("--config-file", str(config), "--host", self.url, "--pidfile", str(self.folder / "pid")),
                    *("--data-root", str(self.folder / "data"), "--exec-root", str(self.folder / "x")),
                    *("--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", f"/{self._cgroup}"),
                    *("--bridge", "none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"),
                    *(("--live-restore",) if self.live_restore else ()),
                ],
                env={"PATH": os.environ.get("PATH", os.defpath)},
                output=log,
                dies_by=signal.SIGTERM,  # then it takes its containers along
            )
        finally:
            os.close(log)
        await self._ready(self._process)

    async def stop(self) -> None:
        """SIGTERM, as an upgrade does it."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """SIGKILL: its containers are not told, whatever is set."""
        await self._end(signal.SIGKILL)

    async def load(self, *images: str) -> None:
        """Copy images of the machine's own daemon."""
        for image in images:
            copy = await asyncio.create_subprocess_shell(
                f'docker save "$IMAGE" | docker --host "{self.url}" load --quiet',
                env={**os.environ, "IMAGE": image},
                stdout=asyncio.subprocess.DEVNULL,
            )
            if await copy.wait() != 0:
                raise WrongAnswer(f"the image {image} could not be copied")

    async def close(self) -> None:
        """Remove its containers, stop it, and remove all that it had."""
        if self._process is not None and self._process.returncode is None:
            async with Docker(self.url) as docker:
                for container in await docker.containers.list(all=1):
                    try:
                        await container.delete(force=True, v=True)
                    except DockerError as error:
                        if error.status != 404:
                            raise
            await self.stop()
        await asyncio.to_thread(self._remove)

    def logs(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-3000:]

    async def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        containerd = psutil.Process(process.pid).children()
        process.send(number)
        async with asyncio.timeout(_STOP_S):
            await process.wait()
        # It dies with its parent, a moment later: one that is just dying would be taken for one to work with.
        await asyncio.to_thread(psutil.wait_procs, containerd, _CONTAINERD_S)

    async def _ready(self, process: OwnedProcess) -> None:
        async with asyncio.timeout(_READY_S), Docker(self.url) as docker:
            while True:
                if process.returncode is not None:
                    raise WrongAnswer(f"dockerd ended with {process.returncode}\n{self.logs()}")
                try:
                    await docker.version()
                    return
                except (DockerError, aiohttp.ClientError, OSError):
                    await asyncio.sleep(0.05)

    def _remove(self) -> None:
        # A killed daemon leaves what holds its containers, and a stopped one what was just being started.
        for process in psutil.process_iter(["cmdline"]):
            if any(f"{self.folder}/" in argument for argument in process.info["cmdline"] or ()):
                kill_tree(process.pid)
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            where = line.split(" ")[1]
            if where.startswith(f"{self.folder}/"):
                subprocess.run(["umount", "--lazy", where], check=False, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        for top in (*_CGROUPS.glob(f"*/{self._cgroup}"), _CGROUPS / self._cgroup):
            # A killed daemon leaves those of its containers. The files in there are the kernel's.
            for folder, _, _ in os.walk(top, topdown=False):
                os.rmdir(folder)
