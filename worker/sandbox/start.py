"""Starting a sandbox that connects to us, whatever engine it lives in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from shared.in_thread import finished_in_thread
from worker.errors import EngineUnavailable
from worker.sandbox.attach import Connections, Rendezvous
from worker.sandbox.attached import AttachedSandbox, ExitStatus
from worker.sandbox.registry import SandboxRegistry

_LOOK_EVERY_S = 1.0


class Startable(Protocol):
    """A vessel as it is started and cleared away."""

    def kill(self) -> None: ...

    async def pause(self) -> None: ...

    async def unpause(self) -> None: ...

    async def exit_status(self) -> ExitStatus: ...

    async def remove(self) -> None: ...

    async def start(self, rendezvous: Rendezvous) -> None:
        """Start it so that what runs in it connects. Raises :class:`EngineUnavailable`."""

    async def ended(self) -> int | None:
        """Its exit code, or ``None`` while it runs. Raises :class:`EngineUnavailable`."""


async def start_attached(
    registry: SandboxRegistry,
    sandbox_id: str,
    vessel: Startable,
    folder: Path,
    settle: Callable[[AttachedSandbox], Awaitable[None]],
    *,
    memory_mb: int,
    timeout_s: float,
) -> AttachedSandbox:
    """Start ``vessel``, let it connect through ``folder``, and await what ``settle`` does until it may be handed out.

    :param timeout_s: how long it may take to connect.

    Raises :class:`EngineUnavailable`; then, and when cancelled, what was started is cleared away.
    """
    sandbox: AttachedSandbox | None = None

    async def remove() -> None:
        if sandbox is not None:
            sandbox.hang_up()
        await vessel.remove()

    registry.enter(sandbox_id, remove)
    try:
        connections = await _connected(vessel, folder, timeout_s)
        sandbox = AttachedSandbox(sandbox_id, memory_mb, vessel, connections, lambda: registry.remove(sandbox_id))
        await settle(sandbox)
    except BaseException:
        await registry.clear_away(sandbox_id)
        raise
    return sandbox


async def _connected(vessel: Startable, folder: Path, timeout_s: float) -> Connections:
    rendezvous: Rendezvous | None = None
    try:
        rendezvous = await finished_in_thread(partial(Rendezvous, folder), Rendezvous.close)
        await vessel.start(rendezvous)
        return await _meet(rendezvous, vessel, timeout_s)
    except OSError as error:
        raise EngineUnavailable(f"A sandbox's socket folder cannot be made: {error}") from error
    finally:
        if rendezvous is not None:
            rendezvous.close()


async def _meet(rendezvous: Rendezvous, vessel: Startable, timeout_s: float) -> Connections:
    meeting = asyncio.ensure_future(rendezvous.meet())
    connections: Connections | None = None
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                done, _ = await asyncio.wait((meeting,), timeout=_LOOK_EVERY_S)
                if done:
                    connections = meeting.result()
                    return connections
                code = await vessel.ended()
                if code is not None:
                    raise EngineUnavailable(f"A sandbox ended with exit code {code} before it connected.")
    except TimeoutError as error:
        raise EngineUnavailable(f"A sandbox did not connect within {timeout_s:g} s.") from error
    finally:
        # A cancelled meeting closes what it has accepted; one that was over in the same moment has given it away.
        meeting.cancel()
        await asyncio.wait((meeting,))
        if connections is None and not meeting.cancelled() and meeting.exception() is None:
            meeting.result().close()
