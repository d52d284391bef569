"""The sandboxes of one engine, from the moment that something of them exists until nothing does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Protocol

from worker.errors import EngineUnavailable
from worker.sandbox.attach import Connections, Rendezvous
from worker.sandbox.attached import AttachedSandbox, ExitStatus

_LOOK_EVERY_S = 1.0


class Startable(Protocol):
    """A vessel as the fleet starts and clears it away."""

    def kill(self) -> None: ...

    async def pause(self) -> None: ...

    async def unpause(self) -> None: ...

    async def exit_status(self) -> ExitStatus: ...

    async def remove(self) -> None: ...

    async def start(self, rendezvous: Rendezvous) -> None:
        """Start it so that what runs in it connects. Raises :class:`EngineUnavailable`."""

    async def ended(self) -> int | None:
        """Its exit code, or ``None`` while it runs. Raises :class:`EngineUnavailable`."""


class SandboxRegistry:
    """Starts sandboxes and knows them all, so that none is left when the engine closes."""

    def __init__(self, start_timeout_s: float) -> None:
        self._start_timeout_s = start_timeout_s
        self._vessels: dict[str, Startable] = {}
        self._sandboxes: dict[str, AttachedSandbox] = {}
        self._discarding: set[asyncio.Task[None]] = set()
        self._abandoned: dict[str, Startable] = {}

    @property
    def ids(self) -> frozenset[str]:
        """Sandboxes that exist or are being started."""
        return frozenset(self._vessels)

    async def sweep(self) -> int:
        """Clear away what was left of starts that failed and could not be cleared away then; how many are gone now.

        Raises :class:`EngineUnavailable`.
        """
        count = 0
        for sandbox_id, vessel in list(self._abandoned.items()):
            await vessel.remove()
            del self._abandoned[sandbox_id]
            self._forget(sandbox_id)
            count += 1
        return count

    async def start(
        self,
        sandbox_id: str,
        memory_mb: int,
        folder: Path,
        new_vessel: Callable[[], Startable],
        settle: Callable[[AttachedSandbox], Awaitable[None]],
    ) -> AttachedSandbox:
        """Start a vessel, let it connect, and await what ``settle`` does until it may be handed out.

        Raises :class:`EngineUnavailable`; then, and when cancelled, what was started is cleared away.
        """
        vessel = self._vessels[sandbox_id] = new_vessel()
        rendezvous: Rendezvous | None = None
        connections: Connections | None = None
        try:
            try:
                rendezvous = await asyncio.to_thread(Rendezvous, folder)
                await vessel.start(rendezvous)
                connections = await self._meet(rendezvous, vessel)
            except OSError as error:
                raise EngineUnavailable(f"A sandbox's socket folder cannot be made: {error}") from error
            finally:
                if rendezvous is not None:
                    rendezvous.close()
            sandbox = self._sandboxes[sandbox_id] = AttachedSandbox(
                sandbox_id, memory_mb, vessel, connections, lambda: self._forget(sandbox_id)
            )
            await settle(sandbox)
        except BaseException:
            known = self._sandboxes.get(sandbox_id)
            await self._see_through(sandbox_id, known.destroy() if known else self._discard(sandbox_id, vessel))
            raise
        return sandbox

    async def close(self) -> None:
        """Destroy everything; raises the first :class:`EngineUnavailable` once all were tried."""
        going = [sandbox.destroy() for sandbox in self._sandboxes.values()]
        going += [
            self._discard(sandbox_id, vessel)
            for sandbox_id, vessel in self._vessels.items()
            if sandbox_id not in self._sandboxes
        ]
        failures = [one for one in await asyncio.gather(*going, return_exceptions=True) if one is not None]
        if failures:
            raise failures[0]

    async def _meet(self, rendezvous: Rendezvous, vessel: Startable) -> Connections:
        meeting = asyncio.ensure_future(rendezvous.meet())
        connections: Connections | None = None
        try:
            async with asyncio.timeout(self._start_timeout_s):
                while True:
                    done, _ = await asyncio.wait((meeting,), timeout=_LOOK_EVERY_S)
                    if done:
                        connections = meeting.result()
                        return connections
                    code = await vessel.ended()
                    if code is not None:
                        raise EngineUnavailable(f"A sandbox ended with exit code {code} before it connected.")
        except TimeoutError as error:
            raise EngineUnavailable(f"A sandbox did not connect within {self._start_timeout_s:g} s.") from error
        finally:
            # A cancelled meeting closes what it has accepted; one that was over in the same moment has given it away.
            over = not meeting.cancel()
            if over and connections is None and not meeting.cancelled() and meeting.exception() is None:
                meeting.result().close()

    async def _discard(self, sandbox_id: str, vessel: Startable) -> None:
        await vessel.remove()
        self._forget(sandbox_id)

    async def _see_through(self, sandbox_id: str, clearing: Coroutine[None, None, None]) -> None:
        """Clear away even if whoever waits is cancelled. A failure here is the sweep's to mend, not the caller's."""
        task = asyncio.ensure_future(clearing)
        self._discarding.add(task)
        task.add_done_callback(lambda done: self._discarded(sandbox_id, done))
        await asyncio.wait((task,))

    def _discarded(self, sandbox_id: str, task: asyncio.Task[None]) -> None:
        self._discarding.discard(task)
        if (task.cancelled() or task.exception() is not None) and sandbox_id in self._vessels:
            self._abandoned[sandbox_id] = self._vessels[sandbox_id]

    def _forget(self, sandbox_id: str) -> None:
        self._vessels.pop(sandbox_id, None)
        self._sandboxes.pop(sandbox_id, None)
