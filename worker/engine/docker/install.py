"""Installing dependencies: a capped container without network runs foreign build scripts, and sends a tar."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from aiodocker import Docker
from aiodocker.containers import DockerContainer
from aiodocker.stream import Stream
from aiodocker.types import JSONObject

from worker.engine.attach import SOCKET_NAME, SocketFolders
from worker.engine.buildlog import BuildLog
from worker.engine.config import EngineConfig
from worker.engine.contract import BuildPlan, BuildRejected, EngineUnavailable
from worker.engine.docker.container import engine_call, remove_container
from worker.engine.docker.hardening import LABEL_INSTALLATION, LABEL_WORKER, UID, container_config, seccomp_profile
from worker.engine.docker.image import Image
from worker.engine.egress import EgressProxy
from worker.engine.layer import MAX_ENTRIES, Layer, UnsafeEntry, in_thread, installed_layer
from worker.engine.recipe import Recipe
from worker.engine.wanted import Wanted

_MEBIBYTE = 1024 * 1024
_INSIDE = "/run/containerpub"  # where the exchange folder appears in the container
_ASK_TIMEOUT_S = 30.0
_STDERR = 2  # as the attached stream numbers it
_KILLED = 137
_BATCH = 512 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a container ended."""

    exit_code: int
    out_of_memory: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What one container may take."""

    memory_mb: int  # in which the tmpfs count
    tmpfs: dict[str, int]  # path to bytes
    bind: Path | None
    max_stdout_bytes: int
    timeout_s: float  # of each of its phases


class TooMuchOutput(Exception):
    """A container wrote more to its stdout than it may."""


class Installer:
    """Runs a recipe's install script in its base image."""

    def __init__(self, docker: Docker, config: EngineConfig) -> None:
        self._docker = docker
        self._config = config
        self._folders = SocketFolders.of("docker", config)
        self._index_hosts: dict[str, tuple[str, ...]] = {}

    async def install(self, plan: BuildPlan, recipe: Recipe, base: Image, wanted: Wanted, log: BuildLog) -> Layer:
        """The installed dependencies as a layer under the recipe's folder for them; nothing of the container is left.

        :raises BuildRejected: ``build_failed``, with the last thing the installation said.
        """
        assert recipe.install is not None
        hosts = self._config.index_hosts
        if hosts is None:
            hosts = await self._ask_index_hosts(recipe, base)
        folder = await asyncio.to_thread(self._exchange, wanted)
        first, target = next(iter(wanted.files)), f"/{recipe.dependencies}"
        spool: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed below, used by threads before
        try:
            async with EgressProxy(folder / SOCKET_NAME, hosts, log.line):
                ended = await self._run(
                    base,
                    recipe.install.arguments(f"{_INSIDE}/{first}", target, f"{_INSIDE}/{SOCKET_NAME}"),
                    _Run(
                        memory_mb=plan.memory_mb,
                        # the unpacked packages, and at first the archives that they come from
                        tmpfs={target: 2 * plan.max_unpacked_bytes},
                        bind=folder,
                        # every entry may take a block for its header and part of one at its end
                        max_stdout_bytes=plan.max_unpacked_bytes + MAX_ENTRIES * 1024,
                        timeout_s=plan.timeout_s,
                    ),
                    spool,
                    log.feed,
                )
            log.flush()
            self._judge(plan, ended, log)
            await asyncio.to_thread(spool.seek, 0)
            return await in_thread(installed_layer, spool, recipe.dependencies, plan.max_unpacked_bytes, log.line)
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

    def _exchange(self, wanted: Wanted) -> Path:
        """A folder among those of this worker's sandboxes, so that a sweep finds it. Blocking."""
        self._folders.prepare()
        folder = self._folders.folder(f"b{secrets.token_hex(7)}")
        folder.mkdir()
        # the container's user has to get in, whatever the umask says
        folder.chmod(0o755)
        for name, text in wanted.files.items():
            path = folder / name
            path.write_text(text, "ascii")
            path.chmod(0o644)
        return folder

    async def _ask_index_hosts(self, recipe: Recipe, base: Image) -> tuple[str, ...]:
        """The hosts that the base image's own package manager takes packages from; asked once an image."""
        assert recipe.install is not None
        if base.id not in self._index_hosts:
            with tempfile.TemporaryFile() as answer:
                ended = await self._run(
                    base,
                    recipe.install.arguments("--hosts"),
                    _Run(memory_mb=256, tmpfs={}, bind=None, max_stdout_bytes=4096, timeout_s=_ASK_TIMEOUT_S),
                    answer,
                    lambda _: None,
                )
                answer.seek(0)
                hosts = tuple(answer.read().decode("ascii", "replace").split())
            if ended.exit_code != 0 or not hosts:
                raise EngineUnavailable("The base image does not say where its package manager takes packages from.")
            self._index_hosts[base.id] = hosts
        return self._index_hosts[base.id]

    async def _run(
        self, image: Image, command: Sequence[str], run: _Run, stdout: IO[bytes], stderr: Callable[[bytes], None]
    ) -> Ended:
        """Run one container to its end. Whatever happens, cancelling included, it is gone afterwards."""
        call_s = self._config.engine_call_timeout_s
        settings = await asyncio.to_thread(self._settings, image, command, run)
        container = await self._create(settings)
        try:
            # an attached reader that no longer reads would block the kill: this one is let go of first
            async with AsyncExitStack() as attached:
                stream = container.attach(stdout=True, stderr=True)
                attached.push_async_callback(stream.close)
                async with engine_call("starting an installation", call_s):
                    await stream.__aenter__()
                    await container.start()
                async with engine_call("reading from an installation", run.timeout_s):
                    await self._receive(stream, stdout, run.max_stdout_bytes, stderr)
            # a child that closed its streams and goes on running is bounded by the build's deadline
            async with engine_call("waiting for an installation", run.timeout_s):
                await container.wait()
                state = (await container.show())["State"]
            return Ended(exit_code=int(state["ExitCode"]), out_of_memory=bool(state["OOMKilled"]))
        finally:
            await asyncio.shield(remove_container(self._docker, container.id, call_s))

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

    async def _create(self, settings: JSONObject) -> DockerContainer:
        """Create a container; a cancel that arrives meanwhile removes what the engine makes all the same."""
        call_s = self._config.engine_call_timeout_s

        async def create() -> DockerContainer:
            async with engine_call("creating a container", call_s):
                return await self._docker.containers.create(settings)

        creating = asyncio.ensure_future(create())
        try:
            return await asyncio.shield(creating)
        except asyncio.CancelledError:
            container = await asyncio.shield(creating)
            await asyncio.shield(remove_container(self._docker, container.id, call_s))
            raise

    def _settings(self, image: Image, command: Sequence[str], run: _Run) -> JSONObject:
        """The sandboxes' settings, with room for an installation. Blocking."""
        settings = container_config(
            image=image.id,
            command=command,
            working_dir="/",
            env=dict(variable.split("=", 1) for variable in image.environment if "=" in variable),
            labels={LABEL_INSTALLATION: self._config.installation, LABEL_WORKER: self._config.worker_id},
            binds=[f"{run.bind}:{_INSIDE}:ro"] if run.bind else [],
            memory_mb=run.memory_mb,
            cpus=1.0,
            seccomp=seccomp_profile(),
            oci_runtime=self._config.oci_runtime,
        )
        sizes = {"/tmp": 64 * _MEBIBYTE} | run.tmpfs  # noqa: S108 (inside the container)
        changed = {
            "PidsLimit": 256,
            # build scripts run programs from where they are unpacked, so these may hold programs
            "Tmpfs": {
                path: f"rw,exec,nosuid,nodev,size={size},nr_inodes=200000,uid={UID},gid={UID},mode=0700"
                for path, size in sizes.items()
            },
            "Ulimits": [
                {"Name": name, "Soft": limit, "Hard": limit}
                for name, limit in (("nofile", 1024), ("core", 0), ("memlock", 65536))
            ],
        }
        host = cast(dict[str, object], settings["HostConfig"])
        return cast(JSONObject, settings | {"AttachStdout": True, "AttachStderr": True, "HostConfig": host | changed})
