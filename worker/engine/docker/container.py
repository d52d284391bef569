"""The container of one sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from aiodocker.types import JSONObject

from shared.in_thread import finished_in_thread
from worker.engine.docker.containers import Containers
from worker.engine.docker.egress_namespace import EgressNamespace
from worker.errors import EngineUnavailable
from worker.sandbox.attach import Rendezvous, remove_folder
from worker.sandbox.attached import ExitStatus

_END_WAIT_S = 2.0
"""How long after its connection closed a container may take to be gone."""
_KILLED = 137


class Container:
    """Implements :class:`worker.sandbox.start.Startable`.

    The worker chooses its name and addresses it by that, so that it can remove the container even if it was cancelled
    before the engine answered with an id.
    """

    def __init__(
        self,
        containers: Containers,
        name: str,
        folders: Sequence[Path],
        new_config: Callable[[Rendezvous], JSONObject],
        turns: asyncio.Semaphore,
        namespace: EgressNamespace | None = None,
    ) -> None:
        """``new_config``, which may block, makes the container's settings.

        ``turns`` bounds how many containers come and go at a time: each takes a processor for a while.
        ``namespace`` is the egress namespace that it sends by, opened and removed with it."""
        self.name = name
        self._folders = folders
        self._containers = containers
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
        async with self._turns:
            await self._containers.start(self.name)

    async def _create(self, rendezvous: Rendezvous) -> None:
        async with self._turns:
            config = await finished_in_thread(partial(self._new_config, rendezvous))
            await self._containers.create(config, name=self.name)

    def kill(self) -> None:
        if self._killing is None:
            self._killing = asyncio.get_running_loop().create_task(self._kill(), name=f"kill-{self.name}")

    async def pause(self) -> None:
        await self._containers.pause(self.name)

    async def unpause(self) -> None:
        await self._containers.unpause(self.name)

    async def ended(self) -> int | None:
        state = await self._containers.state(self.name)
        return None if state.running else state.exit_code

    async def exit_status(self) -> ExitStatus:
        try:
            async with asyncio.timeout(_END_WAIT_S):
                await self._containers.wait(self.name)
        except TimeoutError:
            return await self._made_to_end()
        return await exit_status(self._containers, self.name)

    async def _made_to_end(self) -> ExitStatus:
        """Kill a container that closed its connection and still runs as far as the engine knows; how it ended. The
        engine's flag tells whether memory ran out."""
        await self._kill()
        await self._containers.wait(self.name)
        state = await self._containers.state(self.name)
        out_of_memory = state.out_of_memory and state.exit_code == _KILLED
        return ExitStatus(code=_KILLED if out_of_memory else None, out_of_memory=out_of_memory)

    async def remove(self) -> None:
        for task in (self._creating, self._killing):
            if task is not None:
                await asyncio.wait((task,))
        async with self._turns:
            await self._containers.remove(self.name)
        if self._namespace is not None:
            await self._namespace.remove()
        for folder in self._folders:
            await asyncio.to_thread(remove_folder, folder)

    async def _kill(self) -> None:
        try:
            await self._containers.kill(self.name)
        except EngineUnavailable:
            # remove() comes next, kills too, and reports.
            pass


async def exit_status(containers: Containers, name: str) -> ExitStatus:
    """How an ended container ended. Raises :class:`EngineUnavailable`, also if it was killed from outside.

    A worker does not ask how a container ended that it killed itself, so a kill in the engine's events is another's.
    """
    state = await containers.state(name)
    out_of_memory = state.out_of_memory
    if state.exit_code == _KILLED and not out_of_memory:
        told = await containers.told_of(name, "kill", "oom")
        # The engine sets its flag only if it hears of the memory before it hears of the end; it tells of it either way.
        out_of_memory = "oom" in told
        if not out_of_memory and "kill" in told:
            raise EngineUnavailable("the container engine was asked to kill the container")
        await containers.state(name)  # Podman does not tell that it kills what it removes: is it still there?
    # The flag alone says that some process of the container was killed for memory, maybe a child whose parent
    # went on: only together with the main process's own SIGKILL does it explain the end.
    return ExitStatus(code=state.exit_code, out_of_memory=out_of_memory and state.exit_code == _KILLED)
