"""Containers of an engine, by name or id: one method a call of the engine's API."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import aiohttp
from aiodocker import Docker, DockerError
from aiodocker.stream import Stream
from aiodocker.types import JSONObject

_ENDING_S = 2.0
"""How long a container that is ending by itself may keep the engine from removing it."""
_EVENTS_BACK_S = 60.0
_EVENTS_LATE_S = 0.3
"""How much later than the end the engine may tell of the kill that led to it."""
_LIST_AGAIN_S = (0.05, 0.2, 1.0)


class Call(Protocol):
    def __call__(
        self, doing: str, *ignored: int, timeout_s: float | None = None
    ) -> AbstractAsyncContextManager[None]: ...


class Request(Protocol):
    def __call__(
        self, path: str, *, params: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerState:
    """What the engine says of a container. ``out_of_memory`` tells that *some* process of it was killed for memory."""

    running: bool
    exit_code: int
    out_of_memory: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedContainer:
    """A container among others. ``written_bytes`` is what it wrote to its own layer, if that was asked for."""

    id: str
    labels: Mapping[str, str]
    written_bytes: int


class Containers:
    """Methods raise :class:`worker.errors.EngineUnavailable`."""

    def __init__(self, docker: Docker, call: Call, request: Request) -> None:
        self._docker = docker
        self._call = call
        self._request = request
        self.translate: Callable[[JSONObject], JSONObject] = lambda config: config
        """Puts a description in Docker's words into those of another engine."""

    async def create(self, config: JSONObject, *, name: str | None = None) -> str:
        """Make a container; its id. One that was asked for comes into being, also where the caller is cancelled."""
        async with self._call("creating a container"):
            made = await self._docker.containers.create(self.translate(config), name=name)
            return made.id

    async def start(self, name: str) -> None:
        async with self._call("starting a container"):
            await self._docker.containers.container(name).start()

    async def kill(self, name: str) -> None:
        """Send SIGKILL. A container that has ended, or is not there, is left as it is."""
        async with self._call("killing a container", 404, 409):
            await self._docker.containers.container(name).kill(signal="SIGKILL")

    async def pause(self, name: str) -> None:
        async with self._call("pausing a container"):
            await self._docker.containers.container(name).pause()

    async def unpause(self, name: str) -> None:
        async with self._call("unpausing a container"):
            await self._docker.containers.container(name).unpause()

    async def state(self, name: str) -> ContainerState:
        async with self._call("looking at a container"):
            state = (await self._docker.containers.container(name).show())["State"]
        return ContainerState(
            running=bool(state["Running"]),
            exit_code=int(state["ExitCode"]),
            out_of_memory=bool(state.get("OOMKilled")),
        )

    async def wait(self, name: str, *, timeout_s: float | None = None) -> None:
        """Return when the container has ended."""
        async with self._call("waiting for a container", timeout_s=timeout_s):
            await self._docker.containers.container(name).wait()

    def attach(self, name: str) -> Stream:
        """Its output, entered within a bounded call. A reader that stops reading blocks a kill: leave it first."""
        return self._docker.containers.container(name).attach(stdout=True, stderr=True)

    async def told_of(self, name: str, *events: str) -> frozenset[str]:
        """Those of ``events`` that the engine has told of the container in the last minute, or tells of it in a moment.

        ``kill``: the engine was asked to kill it, by an operator or by its own shutdown; a function that kills itself
        leaves no such event. ``oom``: the kernel killed a process of it for memory.
        """
        now = time.time()
        window = {
            "since": f"{now - _EVENTS_BACK_S:.3f}",
            "until": f"{now + _EVENTS_LATE_S:.3f}",
            "filters": json.dumps({"type": ["container"], "event": list(events), "container": [name]}),
        }
        async with self._call("asking who ended a container"), self._request("events", params=window) as response:
            return frozenset(json.loads(line)["Action"] for line in (await response.read()).splitlines() if line)

    async def remove(self, name: str) -> None:
        """Kill and remove a container with its volumes; returns when it is gone, absent is fine.

        An engine may fail at one that is just ending by itself: it is asked again for a moment.
        """
        container = self._docker.containers.container(name)
        ending = time.monotonic() + _ENDING_S
        async with self._call("removing a container", 404):
            while True:
                try:
                    await container.delete(force=True, v=True)
                    return
                except DockerError as error:
                    # 409: another removal is in progress; once it is through, 404 ends this one.
                    if error.status != 409 and (error.status < 500 or time.monotonic() > ending):
                        raise
                await asyncio.sleep(0.05)

    async def listed(self, *labels: str, sizes: bool = False) -> list[ListedContainer]:
        """The containers, in whatever state, that have all these labels (``name=value``).

        An engine may stumble over a container that goes meanwhile: it is asked again.
        """
        params = {"all": "1", "filters": json.dumps({"label": labels}), **({"size": "1"} if sizes else {})}
        async with self._call("listing containers"):
            for wait_s in _LIST_AGAIN_S:
                try:
                    return await self._listed(params)
                except DockerError as error:
                    if error.status != 500:
                        raise
                await asyncio.sleep(wait_s)
            return await self._listed(params)

    async def _listed(self, params: Mapping[str, str]) -> list[ListedContainer]:
        async with self._request("containers/json", params=params) as response:
            found = await response.json()
        return [
            ListedContainer(id=one["Id"], labels=one.get("Labels") or {}, written_bytes=int(one.get("SizeRw") or 0))
            for one in found
        ]
