"""One sandbox container through the engine's API, and the funnel for what goes wrong there."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
from aiodocker import Docker, DockerError
from aiodocker.types import JSONObject

from worker.errors import EngineUnavailable
from worker.sandbox.attach import Rendezvous, remove_folder
from worker.sandbox.attached import ExitStatus

if TYPE_CHECKING:
    from worker.engine.docker.egress_namespace import EgressNamespace

_END_WAIT_S = 2.0
"""How long after its connection closed a container may take to be gone."""
_KILLED = 137
_EVENTS_BACK_S = 60.0
_EVENTS_LATE_S = 0.1
"""How much later than the end the engine may tell of the kill that led to it."""


@asynccontextmanager
async def engine_call(doing: str, timeout_s: float, *ignored: int) -> AsyncIterator[None]:
    """Bounds a talk with the engine and turns whatever fails in it into :class:`EngineUnavailable`.

    HTTP statuses in ``ignored`` are no failures: the body ends there.
    """
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except DockerError as error:
        if error.status not in ignored:
            raise EngineUnavailable(f"{doing}: {error.message}") from error
    except TimeoutError as error:
        raise EngineUnavailable(f"{doing}: the container engine did not answer within {timeout_s:g} s") from error
    except (aiohttp.ClientError, OSError) as error:
        raise EngineUnavailable(f"{doing}: the container engine does not answer ({error})") from error


class Container:
    """Implements :class:`worker.sandbox.registry.Startable`.

    It is known by its name, which is ours to choose, so that it can be removed even if we were cancelled before the
    engine told us its id.
    """

    def __init__(
        self,
        docker: Docker,
        name: str,
        folders: Sequence[Path],
        timeout_s: float,
        new_config: Callable[[Rendezvous], JSONObject],
        turns: asyncio.Semaphore,
        namespace: EgressNamespace | None = None,
    ) -> None:
        """``turns`` bounds how many containers come and go at a time: each takes a processor for a while. ``egress
        namespace`` is what it gets out by; it comes and goes with it."""
        self.name = name
        self._folders = folders
        self._docker = docker
        self._container = docker.containers.container(name)
        self._timeout_s = timeout_s
        self._new_config = new_config
        self._turns = turns
        self._namespace = namespace
        self._creating: asyncio.Task[None] | None = None
        self._killing: asyncio.Task[None] | None = None

    async def start(self, rendezvous: Rendezvous) -> None:
        if self._namespace is not None:
            await self._namespace.open()
        # Once asked for, a container comes into being, cancelled or not: remove() waits for that.
        self._creating = asyncio.create_task(self._create(rendezvous), name=f"create-{self.name}")
        await asyncio.shield(self._creating)
        async with engine_call("starting a container", self._timeout_s), self._turns:
            await self._container.start()

    async def _create(self, rendezvous: Rendezvous) -> None:
        async with engine_call("creating a container", self._timeout_s), self._turns:
            await self._docker.containers.create(self._new_config(rendezvous), name=self.name)

    def kill(self) -> None:
        if self._killing is None:
            self._killing = asyncio.get_running_loop().create_task(self._kill(), name=f"kill-{self.name}")

    async def pause(self) -> None:
        async with engine_call("pausing a container", self._timeout_s):
            await self._container.pause()

    async def unpause(self) -> None:
        async with engine_call("unpausing a container", self._timeout_s):
            await self._container.unpause()

    async def ended(self) -> int | None:
        async with engine_call("looking at a container", self._timeout_s):
            state = (await self._container.show())["State"]
        return None if state["Running"] else int(state["ExitCode"])

    async def exit_status(self) -> ExitStatus:
        async with engine_call("waiting for a container", self._timeout_s):
            try:
                async with asyncio.timeout(_END_WAIT_S):
                    await self._container.wait()
            except TimeoutError:
                return await self._made_to_end()
        return await exit_status(self._docker, self.name, self._timeout_s)

    async def _made_to_end(self) -> ExitStatus:
        """How a container ended that does not seem to end: either it goes on without its connection, or the engine is
        slow to notice. Memory that ran out is told apart by the engine's flag."""
        await self._kill()
        async with engine_call("waiting for a container", self._timeout_s):
            await self._container.wait()
        state = await _state(self._docker, self.name, self._timeout_s)
        out_of_memory = bool(state.get("OOMKilled")) and int(state["ExitCode"]) == _KILLED
        return ExitStatus(code=_KILLED if out_of_memory else None, out_of_memory=out_of_memory)

    async def remove(self) -> None:
        for task in (self._creating, self._killing):
            if task is not None:
                await asyncio.wait((task,))
        async with self._turns:
            await remove_container(self._docker, self.name, self._timeout_s)
        if self._namespace is not None:
            await self._namespace.remove()
        for folder in self._folders:
            await asyncio.to_thread(remove_folder, folder)

    async def _kill(self) -> None:
        try:
            async with engine_call("killing a container", self._timeout_s, 404, 409):
                await self._container.kill(signal="SIGKILL")
        except EngineUnavailable:
            # remove() comes next, kills too, and reports.
            pass


async def exit_status(docker: Docker, name: str, timeout_s: float) -> ExitStatus:
    """How an ended container ended. Raises :class:`EngineUnavailable`, also if somebody else had it killed."""
    state = await _state(docker, name, timeout_s)
    code = int(state["ExitCode"])
    if code == _KILLED and not state.get("OOMKilled"):
        if await _was_killed(docker, name, timeout_s):
            raise EngineUnavailable("somebody had the container engine kill the container")
        await _state(docker, name, timeout_s)  # Podman does not tell that it kills what it removes: is it still there?
    # The flag alone says that some process of the container was killed for memory, maybe a child whose parent
    # went on: only together with the main process's own SIGKILL does it explain the end.
    return ExitStatus(code=code, out_of_memory=bool(state.get("OOMKilled")) and code == _KILLED)


async def _state(docker: Docker, name: str, timeout_s: float) -> dict[str, Any]:
    async with engine_call("looking at a container", timeout_s):
        state: dict[str, Any] = (await docker.containers.container(name).show())["State"]
    return state


async def _was_killed(docker: Docker, name: str, timeout_s: float) -> bool:
    """Whether the engine was asked to kill it, by an operator or by its own shutdown, and not by us: whoever kills
    from here asks no more how it ended. A function that kills itself leaves no such event."""
    now = time.time()
    window = {
        "since": f"{now - _EVENTS_BACK_S:.3f}",
        "until": f"{now + _EVENTS_LATE_S:.3f}",
        "filters": json.dumps({"type": ["container"], "event": ["kill"], "container": [name]}),
    }
    async with (
        engine_call("asking who ended a container", timeout_s),
        docker._query("events", params=window, timeout=None) as response,
    ):
        return bool((await response.read()).strip())


async def remove_container(docker: Docker, container_id: str, timeout_s: float) -> None:
    """Kill and remove a container with its volumes; returns when it is gone, absent is fine.

    An engine may fail at one that is just ending by itself: it is asked again for a moment.
    """
    container = docker.containers.container(container_id)
    ending = time.monotonic() + _END_WAIT_S
    async with engine_call("removing a container", timeout_s, 404):
        while True:
            try:
                await container.delete(force=True, v=True)
                return
            except DockerError as error:
                # 409: another removal is in progress; once it is through, 404 ends this one.
                if error.status != 409 and (error.status < 500 or time.monotonic() > ending):
                    raise
            await asyncio.sleep(0.05)
