"""Commands as child processes: one process a call, which finds its files through its environment."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from worker.build.recipe import FUNCTION, PLATFORM, Recipe
from worker.config import EngineConfig
from worker.engine.process.child import TEMP_FOLDER, Child
from worker.engine.process.namespaces import Namespaces
from worker.engine.process.program import local_argv
from worker.errors import NotRun
from worker.sandbox.attach import SocketFolders
from worker.sandbox.attached import ExitStatus
from worker.sandbox.command import CommandSandbox, Ended, argv_of, local_paths, start_command_sandbox
from worker.sandbox.contract import Call, SandboxSpec
from worker.sandbox.output import Output
from worker.sandbox.registry import SandboxRegistry

_LOOK_EVERY_S = 0.02
_FILE_BYTES = 32 * 1024**2
_CPU_S = 3600


async def start_command(
    registry: SandboxRegistry,
    config: EngineConfig,
    namespaces: Namespaces,
    folders: SocketFolders,
    sandbox_id: str,
    code: Path,
    recipe: Recipe,
    spec: SandboxSpec,
) -> CommandSandbox:
    """A sandbox whose process comes with its call; it owns ``code``, where its version's folders are.

    Raises :class:`EngineUnavailable`.
    """
    function = code / FUNCTION
    folder = folders.folder(sandbox_id)
    limits = {
        "AS": (spec.memory_mb + recipe.address_space_extra_mb) * 1024**2,
        "DATA": (spec.memory_mb + recipe.data_extra_mb) * 1024**2,
        "NOFILE": config.open_files,
        "FSIZE": _FILE_BYTES,
        "CORE": 0,
        "CPU": _CPU_S,
    }
    ours = _local(argv_of(recipe, spec), recipe, function)
    argv = await asyncio.to_thread(local_argv, ours, "-s", "-B")
    program = CommandProcess(
        Child(folder, namespaces, argv, function, limits, lambda _: {}, code), folder / TEMP_FOLDER
    )
    return await start_command_sandbox(registry, sandbox_id, spec, folder, local_paths(folder), program)


class CommandProcess:
    """Implements :class:`worker.sandbox.command.Program`."""

    def __init__(self, child: Child, temp: Path) -> None:
        self._child = child
        self._temp = temp
        self._starting: asyncio.Task[None] | None = None

    async def run(self, call: Call, env: Mapping[str, str]) -> Ended:
        ours, theirs = zip(socket.socketpair(), socket.socketpair(), strict=True)
        for one in ours:
            one.setblocking(False)
        output = Output(*ours, call.max_log_bytes)
        output.begin(call.max_log_bytes, call.tail)
        try:
            self._starting = asyncio.create_task(self._start(env, theirs), name="start-command")
            await asyncio.shield(self._starting)
            started = time.perf_counter()
            code: int | None = None
            while time.perf_counter() - started < call.timeout_ms / 1000:
                code = await self._child.ended()
                if code is not None:
                    break
                await asyncio.sleep(_LOOK_EVERY_S)
            run_ms = (time.perf_counter() - started) * 1000
            logs, truncated = output.finish()
        except asyncio.CancelledError:
            output.finish()  # its tail has it
            raise
        finally:
            output.close()
            self._child.kill()
        status = None if code is None else ExitStatus(code=code, out_of_memory=False)
        return Ended(status=status, run_ms=run_ms, logs=logs, logs_truncated=truncated)

    async def remove(self) -> None:
        if self._starting is not None:
            await asyncio.wait((self._starting,))
        await self._child.remove()

    async def _start(self, env: Mapping[str, str], streams: tuple[socket.socket, ...]) -> None:
        here = {**env, "HOME": str(self._temp), "TMPDIR": str(self._temp)}
        out, err = streams
        try:
            await self._child.spawn(here, out.fileno(), err.fileno())
        except OSError as error:
            raise NotRun(f"A command's process cannot be started: {error}") from error
        finally:
            out.close()
            err.close()


def _local(argv: tuple[str, ...], recipe: Recipe, function: Path) -> list[str]:
    """``argv`` with the image's folders where they are on this machine."""
    runtime = Path(str(files("runtimes"))) / recipe.name
    places = {f"/{PLATFORM}/": runtime, "/function/": function}
    local = []
    for part in argv:
        prefix = next((prefix for prefix in places if part.startswith(prefix)), None)
        local.append(part if prefix is None else str(places[prefix] / part.removeprefix(prefix)))
    return local
