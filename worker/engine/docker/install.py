"""Installing dependencies: a capped container without network runs foreign build scripts, and sends a tar."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from aiodocker import Docker
from aiodocker.containers import DockerContainer
from aiodocker.exceptions import DockerError
from aiodocker.types import JSONObject

from worker.engine.buildlog import BuildLog
from worker.engine.config import EngineConfig
from worker.engine.contract import BuildPlan, BuildRejected, EngineUnavailable
from worker.engine.docker.image import Image, engine_faults
from worker.engine.egress import EgressProxy
from worker.engine.layer import MAX_ENTRIES, Layer, UnsafeEntry, installed_layer
from worker.engine.recipe import Recipe
from worker.engine.requirements import Requirements

_MEBIBYTE = 1024 * 1024
_INSIDE = "/run/containerpub"  # where the exchange folder appears in the container
_TARGET = "/dependencies"
_STDERR = 2  # as the attached stream numbers it
_KILLED = 137
_BATCH = 512 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a container ended."""

    exit_code: int
    out_of_memory: bool


class TooMuchOutput(Exception):
    """A container wrote more to its stdout than it may."""


class Installer:
    """Runs a recipe's install script in its base image."""

    def __init__(self, docker: Docker, config: EngineConfig) -> None:
        self._docker = docker
        self._config = config
        self._index_hosts: dict[str, tuple[str, ...]] = {}

    async def install(
        self, plan: BuildPlan, recipe: Recipe, base: Image, requirements: Requirements, log: BuildLog
    ) -> Layer:
        """The installed dependencies as a layer under ``dependencies/``; nothing of the container is left.

        :raises BuildRejected: ``build_failed``, with the last thing the installation said.
        """
        assert recipe.install is not None
        hosts = self._config.index_hosts
        if hosts is None:
            hosts = await self._ask_index_hosts(recipe, base)
        folder = await asyncio.to_thread(self._exchange, requirements)
        spool: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed below, used by threads before
        # every entry may take a block for its header and part of one at its end
        room = plan.max_unpacked_bytes + MAX_ENTRIES * 1024
        try:
            async with EgressProxy(folder / "egress", hosts, log.line):
                ended = await self._run(
                    base,
                    ["python3", "-c", recipe.install, f"{_INSIDE}/requirements.txt", _TARGET, f"{_INSIDE}/egress"],
                    memory_bytes=plan.memory_mb * _MEBIBYTE,
                    # the unpacked packages, and at first the archives that they come from
                    tmpfs={_TARGET: 2 * plan.max_unpacked_bytes},
                    bind=folder,
                    stdout=spool,
                    max_stdout_bytes=room,
                    stderr=log.feed,
                )
            log.flush()
            self._judge(plan, ended, log)
            await asyncio.to_thread(spool.seek, 0)
            return await asyncio.to_thread(
                installed_layer, spool, _TARGET.strip("/"), plan.max_unpacked_bytes, log.line
            )
        except TooMuchOutput:
            raise BuildRejected(
                "build_failed",
                f"The installed dependencies take more than {plan.max_unpacked_bytes // _MEBIBYTE} MB.",
            ) from None
        except UnsafeEntry as error:
            raise BuildRejected("build_failed", f"The installed dependencies cannot be used: {error}.") from error
        finally:
            await asyncio.to_thread(spool.close)
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    @staticmethod
    def _judge(plan: BuildPlan, ended: Ended, log: BuildLog) -> None:
        if ended.out_of_memory or ended.exit_code == _KILLED:
            raise BuildRejected(
                "build_failed",
                f"Installing the dependencies needed more than {plan.memory_mb} MB of memory, "
                "in which the installed files count too.",
            )
        if ended.exit_code != 0:
            detail = f": {log.last_line}" if log.last_line else ""
            raise BuildRejected(
                "build_failed", f"Installing the dependencies failed with exit code {ended.exit_code}{detail}"
            )

    def _exchange(self, requirements: Requirements) -> Path:
        folder = self._config.socket_dir / f"build-{secrets.token_hex(6)}"
        folder.mkdir(parents=True, mode=0o755)
        folder.chmod(0o755)  # the container's user has to get in, whatever the umask says
        (folder / "requirements.txt").write_text(requirements.text, "ascii")
        (folder / "requirements.txt").chmod(0o644)
        return folder

    async def _ask_index_hosts(self, recipe: Recipe, base: Image) -> tuple[str, ...]:
        """The hosts that the base image's own package manager takes packages from; asked once an image."""
        if base.id not in self._index_hosts:
            with tempfile.TemporaryFile() as answer:
                ended = await self._run(
                    base,
                    ["python3", "-c", recipe.install or "", "--hosts"],
                    memory_bytes=256 * _MEBIBYTE,
                    tmpfs={},
                    bind=None,
                    stdout=answer,
                    max_stdout_bytes=4096,
                    stderr=lambda _: None,
                )
                answer.seek(0)
                hosts = tuple(answer.read().decode("ascii", "replace").split())
            if ended.exit_code != 0 or not hosts:
                raise EngineUnavailable("The base image does not say where its package manager takes packages from.")
            self._index_hosts[base.id] = hosts
        return self._index_hosts[base.id]

    async def _run(
        self,
        image: Image,
        command: list[str],
        *,
        memory_bytes: int,
        tmpfs: Mapping[str, int],
        bind: Path | None,
        stdout: IO[bytes],
        max_stdout_bytes: int,
        stderr: Callable[[bytes], None],
    ) -> Ended:
        """Run one container to its end. Whatever happens, cancelling included, it is gone afterwards."""
        call_s = self._config.engine_call_timeout_s
        with engine_faults():
            async with asyncio.timeout(call_s):
                container = await self._create(self._settings(image, command, memory_bytes, tmpfs, bind))
            try:
                # an attached reader that no longer reads would block the kill: this one is let go of first
                async with AsyncExitStack() as attached:
                    stream = container.attach(stdout=True, stderr=True)
                    attached.push_async_callback(stream.close)
                    async with asyncio.timeout(call_s):
                        await stream.__aenter__()
                        await container.start()
                    held, size = bytearray(), 0
                    while (message := await stream.read_out()) is not None:
                        if message.stream == _STDERR:
                            stderr(message.data)
                            continue
                        size += len(message.data)
                        if size > max_stdout_bytes:
                            raise TooMuchOutput
                        held += message.data
                        if len(held) >= _BATCH:
                            await asyncio.to_thread(stdout.write, bytes(held))
                            held.clear()
                    await asyncio.to_thread(stdout.write, bytes(held))
                # a child that closed its streams and goes on running is bounded by the build's deadline
                await container.wait()
                async with asyncio.timeout(call_s):
                    state = (await container.show())["State"]
                return Ended(exit_code=int(state["ExitCode"]), out_of_memory=bool(state["OOMKilled"]))
            finally:
                await asyncio.shield(self._remove(container))

    async def _create(self, settings: JSONObject) -> DockerContainer:
        """Create a container; a cancel that arrives meanwhile removes what the engine made all the same."""
        creating = asyncio.ensure_future(self._docker.containers.create(settings))
        try:
            return await asyncio.shield(creating)
        except asyncio.CancelledError:
            await asyncio.shield(self._remove(await creating))
            raise

    async def _remove(self, container: DockerContainer) -> None:
        try:
            async with asyncio.timeout(self._config.engine_call_timeout_s):
                await container.delete(force=True, v=True)
        except DockerError as error:
            if error.status not in (404, 409):  # gone, or going
                raise

    def _settings(
        self, image: Image, command: list[str], memory_bytes: int, tmpfs: Mapping[str, int], bind: Path | None
    ) -> JSONObject:
        owned = "uid=65534,gid=65534,mode=0700"
        return {
            "Image": image.id,
            "Entrypoint": [],
            "Cmd": command,
            "WorkingDir": "/",
            "User": "65534:65534",
            "Env": list(image.environment),
            "Tty": False,
            "AttachStdout": True,
            "AttachStderr": True,
            "NetworkDisabled": True,
            "Healthcheck": {"Test": ["NONE"]},
            "StopSignal": "SIGKILL",
            "Labels": {
                "containerpub.installation": self._config.installation,
                "containerpub.worker": self._config.worker_id,
                "containerpub.kind": "build",
            },
            "HostConfig": {
                "NetworkMode": "none",
                "IpcMode": "private",
                "CgroupnsMode": "private",
                "Privileged": False,
                "CapDrop": ["ALL"],
                "ReadonlyRootfs": True,
                "Init": True,
                "SecurityOpt": ["no-new-privileges:true"],
                "Memory": memory_bytes,
                "MemorySwap": memory_bytes,
                "NanoCpus": 1_000_000_000,
                "PidsLimit": 256,
                "OomScoreAdj": 1000,
                "ShmSize": _MEBIBYTE,
                # build scripts run programs from where they are unpacked, so these two may hold programs
                "Tmpfs": {
                    "/tmp": f"rw,exec,nosuid,nodev,size=64m,nr_inodes=16384,{owned}",  # noqa: S108
                    **{
                        path: f"rw,exec,nosuid,nodev,size={size},nr_inodes=200000,{owned}"
                        for path, size in tmpfs.items()
                    },
                },
                "Ulimits": [
                    {"Name": "nofile", "Soft": 1024, "Hard": 1024},
                    {"Name": "core", "Soft": 0, "Hard": 0},
                    {"Name": "memlock", "Soft": 65536, "Hard": 65536},
                ],
                "Binds": [f"{bind}:{_INSIDE}:ro"] if bind else [],
                "LogConfig": {"Type": "none"},
                "RestartPolicy": {"Name": "no"},
                "AutoRemove": False,
                **({"Runtime": self._config.oci_runtime} if self._config.oci_runtime else {}),
            },
        }
