"""Short-lived containers: one program of a runtime's, run to its end with what it may take, and gone afterwards."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, cast

from aiodocker.stream import Stream
from aiodocker.types import JSONObject

from shared.in_thread import temporary_folder
from worker.config import EngineConfig
from worker.engine.docker.client import EngineClient
from worker.engine.docker.hardening import LABEL_INSTALLATION, LABEL_WORKER, container_config, seccomp_profile
from worker.engine.docker.identity import SandboxUsers
from worker.engine.docker.image import Image
from worker.sandbox.attach import SocketFolders

INSIDE = "/run/containerpub"
"""Where the bound folder appears in the container."""
_MEBIBYTE = 1024 * 1024
_TMP_MB = 64
_STDERR = 2  # as the attached stream numbers it
_KILLED = 137
_BATCH = 512 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a container ended."""

    exit_code: int
    out_of_memory: bool

    @property
    def killed(self) -> bool:
        """Whether it took more memory than it may: the engine says so, or SIGKILL ended it."""
        return self.out_of_memory or self.exit_code == _KILLED


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolLimits:
    """What one container may take."""

    memory_mb: int  # in which the tmpfs count
    tmpfs: dict[str, int]  # path to bytes
    bind: Path | None
    max_stdout_bytes: int
    timeout_s: float  # of each of its phases
    network: str = "none"  # or host, the engine's machine's


class TooMuchOutput(Exception):
    """A container wrote more to its stdout than it may."""


def exchange_folder(folders: SocketFolders, files: Mapping[str, str]) -> AbstractAsyncContextManager[Path]:
    """A new folder with ``files`` in it, removed at the end of the block. It is among those of this worker's sandboxes,
    so that a sweep finds it."""
    return temporary_folder(partial(_exchange_folder, folders, files))


def _exchange_folder(folders: SocketFolders, files: Mapping[str, str]) -> Path:
    folders.prepare()
    folder = folders.folder(f"b{secrets.token_hex(7)}")
    folder.mkdir()
    # the container's user has to get in, whatever the umask says
    folder.chmod(0o755)
    for name, text in files.items():
        path = folder / name
        path.write_text(text, "utf-8")
        path.chmod(0o644)
    return folder


class Tools:
    """Runs programs in containers of one engine, as hardened as sandboxes, with room for what they do."""

    def __init__(self, client: EngineClient, config: EngineConfig) -> None:
        self._client = client
        self._containers = client.containers
        self._config = config
        self._users = SandboxUsers(config.sandbox_users)

    async def run(
        self, image: Image, argv: Sequence[str], limits: ToolLimits, stdout: IO[bytes], stderr: Callable[[bytes], None]
    ) -> Ended:
        """Run one container to its end. It is gone afterwards, also when this is cancelled."""
        settings = await asyncio.to_thread(self._settings, image, argv, limits)
        container = await self._create(settings)
        try:
            # an attached reader that no longer reads would block the kill: this one is let go of first
            async with AsyncExitStack() as attached:
                stream = self._containers.attach(container)
                attached.push_async_callback(stream.close)
                async with self._client.call("starting a tool"):
                    await stream.__aenter__()
                    await self._containers.start(container)
                async with self._client.call("reading from a tool", timeout_s=limits.timeout_s):
                    await self._receive(stream, stdout, limits.max_stdout_bytes, stderr)
            # a child that closed its streams and goes on running is bounded by the build's deadline
            await self._containers.wait(container, timeout_s=limits.timeout_s)
            state = await self._containers.state(container)
            return Ended(exit_code=state.exit_code, out_of_memory=state.out_of_memory)
        finally:
            await asyncio.shield(self._containers.remove(container))

    @staticmethod
    async def _receive(stream: Stream, stdout: IO[bytes], max_bytes: int, stderr: Callable[[bytes], None]) -> None:
        held, size = bytearray(), 0
        while (message := await stream.read_out()) is not None:
            if message.stream == _STDERR:
                stderr(message.data)
                continue
            size += len(message.data)
            if size > max_bytes:
                raise TooMuchOutput
            held += message.data
            if len(held) >= _BATCH:
                await asyncio.to_thread(stdout.write, bytes(held))
                held.clear()
        await asyncio.to_thread(stdout.write, bytes(held))

    async def _create(self, settings: JSONObject) -> str:
        """Create a container; its id. A cancel that arrives meanwhile removes what the engine makes all the same."""
        creating = asyncio.ensure_future(self._containers.create(settings))
        try:
            return await asyncio.shield(creating)
        except asyncio.CancelledError:
            await asyncio.shield(self._containers.remove(await asyncio.shield(creating)))
            raise

    def _settings(self, image: Image, argv: Sequence[str], limits: ToolLimits) -> JSONObject:
        """The sandboxes' settings, with room for a tool. Blocking."""
        uid = self._users.any()
        settings = container_config(
            image=image.id,
            uid=uid,
            argv=argv,
            working_dir="/",
            env=dict(variable.split("=", 1) for variable in image.environment if "=" in variable),
            labels={LABEL_INSTALLATION: self._config.installation, LABEL_WORKER: self._config.worker_id},
            binds=[f"{limits.bind}:{INSIDE}:ro"] if limits.bind else [],
            memory_mb=limits.memory_mb,
            tmp_mb=_TMP_MB,
            cpus=1.0,
            seccomp=seccomp_profile(),
            oci_runtime=self._config.oci_runtime,
            network=limits.network,
        )
        sizes = {"/tmp": _TMP_MB * _MEBIBYTE} | limits.tmpfs  # noqa: S108 (inside the container)
        changed = {
            "PidsLimit": 256,
            "ShmSize": _MEBIBYTE,
            # An engine that gives containers users of their own does not let those into its machine's network.
            "UsernsMode": "host" if limits.network == "host" else "",
            # build scripts run programs from where they are unpacked, so these may hold programs
            "Tmpfs": {
                path: f"rw,exec,nosuid,nodev,size={size},nr_inodes=200000,uid={uid},gid={uid},mode=0700"
                for path, size in sizes.items()
            },
            "Ulimits": [
                {"Name": name, "Soft": limit, "Hard": limit}
                for name, limit in (("nofile", 1024), ("core", 0), ("memlock", 65536))
            ],
        }
        host = cast(dict[str, object], settings["HostConfig"])
        return cast(JSONObject, settings | {"AttachStdout": True, "AttachStderr": True, "HostConfig": host | changed})
