"""The order in which an installation's processes start and stop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from cli.supervisor.child import Child, Startable
from cli.supervisor.console import Console, Feed
from cli.supervisor.launcher import ModuleProcess
from cli.supervisor.ledger import Ledger
from shared.errors import Unavailable

PART_GRACE_S = 20.0
SERVER_GRACE_S = 7.0
"""Together with the parts' less than the 30 s in which everything is over."""


class Supervisor:
    """Starts servers, then the parts that need them; stops them the other way round."""

    def __init__(self, console: Console, ledger: Ledger) -> None:
        self._console = console
        self._ledger = ledger
        self._servers: list[Child] = []
        self._parts: list[Child] = []
        self._feeds: list[Feed] = []
        self._loops: list[asyncio.Task[None]] = []

    async def feed(self, name: str) -> int:
        """A descriptor whose lines appear on the console under ``name``."""
        feed = Feed(name, self._console)
        await feed.open()
        self._feeds.append(feed)
        return feed.descriptor

    async def start_servers(self, servers: Mapping[str, Startable]) -> None:
        """Return once all of them answer; raises what the first failing one raises."""
        async with asyncio.TaskGroup() as starting:
            for name, server in servers.items():
                starting.create_task(self._add(name, server, self._servers), name=f"start {name}")

    async def run_once(self, name: str, *module: str, environment: Mapping[str, str]) -> None:
        """Run a module to its end; raises :class:`Unavailable` unless it ends with 0."""
        process = ModuleProcess(*module, environment=environment, output=await self.feed(name))
        await process.start()
        try:
            code = await process.wait()
        finally:
            process.kill()
        if code != 0:
            raise Unavailable(f"{name} ended with {code}, see above.")

    async def start_parts(self, names: Sequence[tuple[str, str]], environment: Mapping[str, str]) -> None:
        """Start modules, given as (name, module)."""
        for name, module in names:
            process = ModuleProcess(module, environment=environment, output=await self.feed(name))
            await self._add(name, process, self._parts)

    async def watch(self) -> None:
        """Never returns; raises when a loop that keeps a child running died, which is a mistake in this program."""
        done, _ = await asyncio.wait(self._loops, return_when=asyncio.FIRST_COMPLETED)
        for loop in done:
            loop.result()
        raise Unavailable(f"{next(iter(done)).get_name()} ended.")

    async def stop(self) -> None:
        """End the parts, then the servers; nothing of them runs afterwards."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await asyncio.gather(*(part.stop(PART_GRACE_S) for part in self._parts))
        await asyncio.gather(*(server.stop(SERVER_GRACE_S) for server in self._servers))
        await asyncio.gather(*(feed.close() for feed in self._feeds))
        await asyncio.to_thread(self._ledger.clear)

    def kill(self) -> None:
        """SIGKILL everything, for a person who will not wait; :meth:`stop` then returns soon."""
        for child in (*self._parts, *self._servers):
            child.process.kill()

    async def _add(self, name: str, process: Startable, group: list[Child]) -> None:
        child = Child(name, process, console=self._console, ledger=self._ledger)
        group.append(child)  # before it runs, so that a stop in between ends it
        await child.start()
        self._loops.append(asyncio.create_task(child.keep_running(), name=f"keep {name} running"))
