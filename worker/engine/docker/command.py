"""Command sandboxes in containers: one container a call, hardened as every other, with three files of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from aiodocker.stream import Stream
from aiodocker.types import JSONObject

from shared.in_thread import finished_in_thread
from worker.build.recipe import Recipe
from worker.config import EngineConfig
from worker.engine.docker.client import EngineClient
from worker.engine.docker.container import exit_status
from worker.engine.docker.egress_namespace import EgressNamespace, EgressNamespaces
from worker.engine.docker.hardening import (
    LABEL_FUNCTION,
    LABEL_INSTALLATION,
    LABEL_SANDBOX,
    LABEL_VERSION,
    LABEL_WORKER,
    container_config,
    mounts,
    seccomp_profile,
)
from worker.engine.docker.identity import etc_binds
from worker.engine.docker.image import Image
from worker.errors import EngineUnavailable, NotRun
from worker.sandbox.attach import SocketFolders, remove_folder
from worker.sandbox.attached import ExitStatus
from worker.sandbox.capture import Capture
from worker.sandbox.command import RESULT, CommandSandbox, Ended, argv_of, container_paths, start_command_sandbox
from worker.sandbox.contract import Call, SandboxSpec
from worker.sandbox.log import LogStream
from worker.sandbox.registry import SandboxRegistry

_STREAMS = {1: (LogStream.STDOUT, "info"), 2: (LogStream.STDERR, "error")}
_LAST_OUTPUT_S = 1.0
"""How long after its end a container's output may take to arrive."""
_DROPPED_AT_ONCE = 256 * 1024
_PAUSE_S = 0.005
"""After so many bytes that are only thrown away: bounds what a flood costs the event loop."""


async def start_command(
    registry: SandboxRegistry,
    client: EngineClient,
    config: EngineConfig,
    folders: SocketFolders,
    namespaces: EgressNamespaces,
    turns: asyncio.Semaphore,
    recipe: Recipe,
    spec: SandboxSpec,
    image: Image,
    sandbox_id: str,
    uid: int,
    code: Mapping[str, Path],
) -> CommandSandbox:
    """A sandbox whose container comes with its call. Raises :class:`EngineUnavailable`.

    :param code: the folders of its version, by their names at the root; the sandbox owns the folder around them.
    """
    argv, working_dir = argv_of(recipe, spec), "/function"
    if recipe.dockerfile:
        # Written by the build, not by the tenant: see worker.engine.docker.dockerfile. The function's own settings win.
        argv, working_dir = image.command, image.working_dir
        inherited = (tuple(one.split("=", 1)) for one in image.environment if "=" in one)
        spec = replace(spec, env=(*((name, value) for name, value in inherited), *spec.env))
    folder = folders.folder(sandbox_id)
    paths = container_paths()
    seccomp = await asyncio.to_thread(seccomp_profile)
    labels = {
        LABEL_INSTALLATION: config.installation,
        LABEL_WORKER: config.worker_id,
        LABEL_SANDBOX: sandbox_id,
        LABEL_VERSION: str(spec.version_id),
        LABEL_FUNCTION: str(spec.function_id),
    }
    namespace = namespaces.namespace(sandbox_id, labels) if spec.network == "egress" else None

    def new_config(env: Mapping[str, str]) -> JSONObject:
        return container_config(
            image=image.id,
            uid=uid,
            argv=argv,
            working_dir=working_dir,
            env=env,
            labels=labels,
            # Writable is the result alone, which the file-size limit caps.
            binds=[
                *(f"{folder / name}:{path}:{'rw' if name == RESULT else 'ro'}" for name, path in paths.items()),
                *etc_binds(folder, uid, hosts=namespace is None),
            ],
            memory_mb=spec.memory_mb,
            tmp_mb=spec.tmp_mb,
            keeps_result=True,
            cpus=spec.cpus,
            seccomp=seccomp,
            oci_runtime=config.oci_runtime,
            folders=mounts(code),
            network="none" if namespace is None else namespace.network,
            open_files=config.open_files,
        )

    owned = {folder.parent for folder in code.values()}
    program = CommandContainer(client, f"containerpub-{sandbox_id}", new_config, turns, namespace, owned)
    settle = None if namespace is None else namespace.open
    return await start_command_sandbox(registry, sandbox_id, spec, folder, paths, program, settle)


class CommandContainer:
    """Implements :class:`worker.sandbox.command.Program`."""

    def __init__(
        self,
        client: EngineClient,
        name: str,
        new_config: Callable[[Mapping[str, str]], JSONObject],
        turns: asyncio.Semaphore,
        namespace: EgressNamespace | None,
        owned: Collection[Path],
    ) -> None:
        """``new_config``, which may block, makes the container's settings from its environment.

        ``turns`` bounds how many containers come and go at a time. The egress namespace is open; it and the folders
        ``owned`` are removed with the container."""
        self._client = client
        self._containers = client.containers
        self._name = name
        self._new_config = new_config
        self._turns = turns
        self._namespace = namespace
        self._owned = owned
        self._creating: asyncio.Task[None] | None = None
        self._killing: asyncio.Task[None] | None = None

    async def run(self, call: Call, env: Mapping[str, str]) -> Ended:
        self._creating = asyncio.create_task(self._create(env), name=f"create-{self._name}")
        # Once asked for, a container comes into being, cancelled or not: remove() waits for that.
        try:
            await asyncio.shield(self._creating)
        except EngineUnavailable as error:
            raise NotRun(error.message) from error
        output = Capture(call.max_log_bytes, call.tail)
        stream = self._containers.attach(self._name)
        reading: asyncio.Task[None] | None = None
        try:
            async with self._client.call("starting a command"), self._turns:
                # Attached first, so that nothing it prints is missed.
                await stream.__aenter__()
                await self._containers.start(self._name)
            started = time.perf_counter()
            reading = asyncio.create_task(_read(stream, output), name=f"output-{self._name}")
            status = await self._ended(call.timeout_ms / 1000)
            run_ms = (time.perf_counter() - started) * 1000
            if status is not None:
                await asyncio.wait((reading,), timeout=_LAST_OUTPUT_S)
        except BaseException:
            self._kill_after(stream, reading)
            raise
        if status is None:
            self._kill_after(stream, reading)
        else:
            await _let_go(stream, reading)
        logs, truncated = output.finish()
        return Ended(status=status, run_ms=run_ms, logs=logs, logs_truncated=truncated)

    async def remove(self) -> None:
        for task in (self._creating, self._killing):
            if task is not None:
                await asyncio.wait((task,))
        async with self._turns:
            await self._containers.remove(self._name)
        if self._namespace is not None:
            await self._namespace.remove()
        for folder in self._owned:
            await asyncio.to_thread(remove_folder, folder)

    async def _create(self, env: Mapping[str, str]) -> None:
        async with self._turns:
            config = await finished_in_thread(partial(self._new_config, env))
            await self._containers.create(config, name=self._name)

    async def _ended(self, timeout_s: float) -> ExitStatus | None:
        """How it ended, ``None`` when it did not within ``timeout_s``."""
        waiting = asyncio.create_task(self._wait(timeout_s), name=f"wait-{self._name}")
        try:
            done, _ = await asyncio.wait((waiting,), timeout=timeout_s)
            return waiting.result() if done else None
        finally:
            waiting.cancel()
            await asyncio.wait((waiting,))

    async def _wait(self, timeout_s: float) -> ExitStatus:
        await self._containers.wait(self._name, timeout_s=timeout_s + self._client.timeout_s)
        return await exit_status(self._containers, self._name)

    def _kill_after(self, stream: Stream, reading: asyncio.Task[None] | None) -> None:
        """Begin to kill. Closes the stream first: a stream that nobody reads would block the kill."""

        async def kill() -> None:
            await _let_go(stream, reading)
            try:
                await self._containers.kill(self._name)
            except EngineUnavailable:
                # The caller removes the container next, which kills it too and reports a failure.
                pass

        self._killing = asyncio.create_task(kill(), name=f"kill-{self._name}")


async def _let_go(stream: Stream, reading: asyncio.Task[None] | None) -> None:
    if reading is not None:
        reading.cancel()
        await asyncio.wait((reading,))
        if not reading.cancelled():
            # A broken stream costs the rest of the output, not the call.
            reading.exception()
    await stream.close()


async def _read(stream: Stream, output: Capture) -> None:
    dropped = 0
    while (message := await stream.read_out()) is not None:
        name, level = _STREAMS[message.stream]
        dropped += len(message.data) if output.is_full else 0
        output.add(name, level, message.data)
        if dropped >= _DROPPED_AT_ONCE:
            dropped = 0
            await asyncio.sleep(_PAUSE_S)
