"""A way to the container engine that can be made to hang: connections stand, and nothing comes through them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

_CHUNK = 64 * 1024


class StallingProxy:
    """Listens on the Unix socket ``path`` and passes everything on to ``engine``, another one."""

    def __init__(self, path: Path, engine: Path) -> None:
        self.url = f"unix://{path}"
        self._path = path
        self._engine = engine
        self._flows = asyncio.Event()
        self._flows.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        server = await asyncio.start_unix_server(self._serve, self._path)
        self._open.callback(server.close)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def stall(self) -> None:
        """From now on nothing comes through, in neither direction."""
        self._flows.clear()

    def flow(self) -> None:
        self._flows.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await self._flows.wait()
            there, back = await asyncio.open_unix_connection(self._engine)
            try:
                # Whichever side ends first, the other is told.
                passing = [asyncio.create_task(self._pass(*ends)) for ends in ((reader, back), (there, writer))]
                try:
                    await asyncio.wait(passing, return_when=asyncio.ALL_COMPLETED)
                finally:
                    for one in passing:
                        one.cancel()
                    await asyncio.gather(*passing, return_exceptions=True)
            finally:
                back.close()
        except OSError:
            pass
        finally:
            writer.close()

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(_CHUNK):
                await self._flows.wait()
                sink.write(data)
                await sink.drain()
            await self._flows.wait()
            if sink.can_write_eof():
                sink.write_eof()
        except OSError:
            sink.close()
