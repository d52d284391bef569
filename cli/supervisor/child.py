"""Keeps one child running: starts it again when it ends, after a longer delay each time that it did not last."""

from __future__ import annotations

import asyncio
import signal
from typing import Protocol

from cli.supervisor.console import Console
from cli.supervisor.ledger import Ledger
from shared.errors import ContainerPubError

FIRST_DELAY_S = 0.2
MAX_DELAY_S = 10.0
LASTING_S = 30.0
"""Having run this long, a child starts over with the first delay."""


class Startable(Protocol):
    """What a child needs of its process. An embedded server is one already."""

    @property
    def pid(self) -> int: ...

    async def start(self) -> None:
        """Return once it runs; may be called again after it has ended."""

    async def wait(self) -> int:
        """Its exit code, once it has ended."""

    async def stop(self, grace_s: float) -> None:
        """End it, by force after ``grace_s`` seconds. Idempotent."""

    def kill(self) -> None:
        """SIGKILL it with everything below it."""


class Child:
    """A named process under supervision."""

    def __init__(self, name: str, process: Startable, *, console: Console, ledger: Ledger) -> None:
        self.name = name
        self.process = process
        self._console = console
        self._ledger = ledger

    async def start(self) -> None:
        await self.process.start()
        await asyncio.to_thread(self._ledger.record, self.name, self.process.pid)

    async def keep_running(self) -> None:
        """Start it again whenever it ends; never returns. Call after :meth:`start`, cancel before :meth:`stop`."""
        loop = asyncio.get_running_loop()
        delay = FIRST_DELAY_S
        while True:
            began = loop.time()
            code = await self.process.wait()
            if loop.time() - began >= LASTING_S:
                delay = FIRST_DELAY_S
            self._console.say(f"{self.name} {_ending(code)}; starting it again in {delay:g} s")
            await asyncio.sleep(delay)
            delay = min(delay * 2, MAX_DELAY_S)
            try:
                await self.start()
            except (ContainerPubError, OSError) as error:
                self._console.say(f"{self.name} did not start: {error}")

    async def stop(self, grace_s: float) -> None:
        await self.process.stop(grace_s)


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with {code}"
    return f"was ended by {signal.Signals(-code).name}"
