"""Command sandboxes: a program that is run once, for one call, and speaks with us through files.

==================  =============================  ==============================================================
in the container    names the file                 holds
==================  =============================  ==============================================================
``/request.json``   ``CONTAINERPUB_REQUEST_FILE``  the event, as JSON
``/.env.config``    ``CONTAINERPUB_ENV_FILE``      the function's environment, a ``NAME=value`` a line
``/result.json``    ``CONTAINERPUB_RESULT_FILE``   empty; at the end, an object whose ``body`` is the result
==================  =============================  ==============================================================

The ``process`` engine has no mounts, so there only the variables name the files. An engine's part is a
:class:`Program`; until the call nothing runs, since the event is part of what a program is started with.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import orjson

from shared.in_thread import finished_in_thread
from worker.build.recipe import Recipe
from worker.errors import EngineUnavailable, NotRun
from worker.sandbox.attach import remove_folder
from worker.sandbox.attached import ExitStatus, failure
from worker.sandbox.command_result import BadResult, judge, read_result
from worker.sandbox.contract import Call, CallOutcome, SandboxSpec
from worker.sandbox.environment import environment
from worker.sandbox.hints import hint
from worker.sandbox.log import LogEntry
from worker.sandbox.registry import SandboxRegistry

REQUEST, SETTINGS, RESULT = "request.json", "env.config", "result.json"
_VARIABLES = {
    "CONTAINERPUB_REQUEST_FILE": REQUEST,
    "CONTAINERPUB_ENV_FILE": SETTINGS,
    "CONTAINERPUB_RESULT_FILE": RESULT,
}
_LONGEST_VARIABLE_BYTES = 64 * 1024
_ATTACHMENT = "CONTAINERPUB_ATTACH_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a program ended; ``status`` is ``None`` when its time was over first."""

    status: ExitStatus | None
    run_ms: float
    logs: tuple[LogEntry, ...]
    logs_truncated: bool


class Program(Protocol):
    """A program that is run once."""

    async def run(self, call: Call, env: Mapping[str, str]) -> Ended:
        """Run it to its end or to the call's timeout, when it begins to be killed, as it does when cancelled.

        Raises :class:`EngineUnavailable`, and :class:`NotRun` if it could not even be made.
        """

    async def remove(self) -> None:
        """Kill it and return when nothing of it is left; idempotent. Raises :class:`EngineUnavailable`."""


class CommandSandbox:
    """Implements :class:`worker.sandbox.contract.Sandbox`: good for one call."""

    def __init__(
        self,
        sandbox_id: str,
        spec: SandboxSpec,
        folder: Path,
        paths: Mapping[str, str],
        program: Program,
        remove: Callable[[], Awaitable[None]],
    ) -> None:
        """``paths`` says where the program finds the files of ``folder``; ``remove`` removes all of it."""
        self.id = sandbox_id
        self._spec = spec
        self._folder = folder
        self._paths = paths
        self._program = program
        self._remove = remove
        self._used = self._destroyed = False

    @property
    def reusable(self) -> bool:
        return not self._used and not self._destroyed

    async def call(self, call: Call) -> CallOutcome:
        if not self.reusable:
            raise RuntimeError(f"sandbox {self.id} was used or destroyed")
        self._used = True
        try:
            env = await finished_in_thread(partial(self._tell, call))
            ended = await self._program.run(call, env)
        except (EngineUnavailable, OSError) as error:
            message = failure(f"the engine cannot run its command ({error})")
            return CallOutcome(
                reason="sandbox_start_failed",
                error={"type": "EngineUnavailable", "message": message},
                exit_code=None,
                ran=not isinstance(error, NotRun),
            )
        # In a thread, because results may have megabytes.
        outcome = await asyncio.to_thread(self._judged, call, ended.status)
        return replace(outcome, logs=ended.logs, logs_truncated=ended.logs_truncated, run_ms=ended.run_ms)

    async def pause(self) -> None:
        """Nothing runs before the call."""

    async def unpause(self) -> None:
        """As :meth:`pause`."""

    async def destroy(self) -> None:
        self._destroyed = True
        await self._remove()

    def _judged(self, call: Call, status: ExitStatus | None) -> CallOutcome:
        result: bytes | BadResult = b""
        if status is not None:
            result = read_result(self._folder / RESULT, call.max_result_bytes)
        outcome = judge(call, self._spec.memory_mb, status, result)
        if outcome.reason is None or outcome.error is None:
            return outcome
        advice = hint(outcome.reason, outcome.error, network=self._spec.network != "none")
        return outcome if advice is None else replace(outcome, error={**outcome.error, "hint": advice})

    def _tell(self, call: Call) -> dict[str, str]:
        """Write down what the program may read; its environment. Blocking."""
        _fill(self._folder, call.event, self._spec)
        event = orjson.loads(call.event)
        told = event if isinstance(event, dict) else {}
        variables = {
            "FUNCTION_INPUT": call.event,
            "HTTP_BODY": orjson.dumps(told.get("body")),
            "HTTP_QUERY": orjson.dumps(told.get("query") or {}),
            "HTTP_METHOD": str(told.get("method") or "POST").encode("utf-8", "replace"),
        }
        passed = {
            name: value.decode()
            for name, value in variables.items()
            # The kernel starts no program with a longer variable, or with a NUL in one.
            if len(value) <= _LONGEST_VARIABLE_BYTES and b"\0" not in value
        }
        paths = {variable: self._paths[name] for variable, name in _VARIABLES.items()}
        return {**command_environment(self._spec), **passed, **paths}


async def start_command_sandbox(
    registry: SandboxRegistry,
    sandbox_id: str,
    spec: SandboxSpec,
    folder: Path,
    paths: Mapping[str, str],
    program: Program,
    settle: Callable[[], Awaitable[None]] | None = None,
) -> CommandSandbox:
    """Make the sandbox's folder, and await what ``settle`` does before its call.

    Raises :class:`EngineUnavailable`; then, and when cancelled, what was made is cleared away.
    """

    async def remove() -> None:
        await program.remove()
        await asyncio.to_thread(remove_folder, folder)

    registry.enter(sandbox_id, remove)
    try:
        await finished_in_thread(partial(_prepare, folder))
        if settle is not None:
            await settle()
    except OSError as error:
        await registry.clear_away(sandbox_id)
        raise EngineUnavailable(f"A sandbox's folder cannot be made: {error}") from error
    except BaseException:
        await registry.clear_away(sandbox_id)
        raise
    return CommandSandbox(sandbox_id, spec, folder, paths, program, lambda: registry.remove(sandbox_id))


def command_environment(spec: SandboxSpec) -> dict[str, str]:
    """The variables that a program starts with at every call. None of the platform's own code runs in its sandbox."""
    return {name: value for name, value in environment(spec).items() if not name.startswith(_ATTACHMENT)}


def argv_of(recipe: Recipe, spec: SandboxSpec) -> tuple[str, ...]:
    """The recipe's argv with the version's handler in the place of ``{handler}``."""
    return tuple(part.replace("{handler}", spec.handler) for part in recipe.argv)


def _prepare(folder: Path) -> None:
    folder.mkdir(parents=True)
    # The program's user is another one than ours; the folder around is closed to all but us.
    folder.chmod(0o755)
    for name, mode in ((REQUEST, 0o644), (SETTINGS, 0o644), (RESULT, 0o666)):
        path = folder / name
        path.touch()
        path.chmod(mode)


def _fill(folder: Path, event: bytes, spec: SandboxSpec) -> None:
    (folder / REQUEST).write_bytes(event)
    defaults = environment(replace(spec, env=()))
    common = {name for name in defaults if name.startswith(("FUNCTION_", "CONTAINERPUB_", "DART_CLOUD_"))}
    kept = {name for name, _ in spec.env} | common
    lines = [f"{name}={_quoted(value)}\n" for name, value in command_environment(spec).items() if name in kept]
    (folder / SETTINGS).write_bytes("".join(lines).encode("utf-8", "replace"))


def _quoted(value: str) -> str:
    """``value`` as ``.env`` files have it: as it is if it is plain, in double quotes otherwise."""
    if value and all(character.isalnum() or character in "_-./:@,+%" for character in value):
        return value
    for character, escaped in (("\\", "\\\\"), ('"', '\\"'), ("$", "\\$"), ("\n", "\\n"), ("\r", "\\r")):
        value = value.replace(character, escaped)
    return f'"{value}"'


def container_paths() -> dict[str, str]:
    """Where a program in a container finds its files."""
    return {REQUEST: f"/{REQUEST}", SETTINGS: "/.env.config", RESULT: f"/{RESULT}"}


def local_paths(folder: Path) -> dict[str, str]:
    """Where a program on this machine does."""
    return {name: os.fspath(folder / name) for name in (REQUEST, SETTINGS, RESULT)}
