"""A way to a server's Unix socket that stops at a chosen word, so that whoever speaks can be killed just then."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

_CHUNK = 64 * 1024


class Relay:
    """Listens on the Unix socket ``path`` and passes everything on to ``server``, another one, and back.

    ``held`` is set once what was waited for is held. What is held never arrives: it goes with its connection.
    """

    def __init__(self, path: Path, server: Path) -> None:
        self.held = asyncio.Event()
        self.delay_s = 0.0
        self._path = path
        self._server = server
        self._word = b""
        self._before = True
        self._flows = asyncio.Event()
        self._flows.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        listener = await asyncio.start_unix_server(self._serve, self._path)
        self._path.chmod(0o777)
        self._open.callback(listener.close)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._open.aclose()
        await self.cut()

    async def cut(self) -> None:
        """End all connections, as it happens to those of a process that died."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def hold_request(self, word: bytes) -> None:
        """From the next request on that has ``word`` in it, which the server does not get, nothing comes through."""
        self._word, self._before = word, True

    def hold_answer(self, word: bytes) -> None:
        """The server gets and does what has ``word`` in it; from its answer on nothing comes through."""
        self._word, self._before = word, False

    def stall(self) -> None:
        self._flows.clear()

    def flow(self) -> None:
        self._flows.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        writers = [writer]
        passing: list[asyncio.Task[None]] = []
        try:
            there, back = await asyncio.open_unix_connection(self._server)
            writers.append(back)
            asked = asyncio.Event()
            passing.append(asyncio.create_task(self._pass_requests(reader, back, asked)))
            passing.append(asyncio.create_task(self._pass_answers(there, writer, asked)))
            await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pass
        except asyncio.CancelledError:
            pass  # by us, and a cancelled callback would be logged as a mistake
        finally:
            # All at once: to be cut here as well must leave nothing open.
            for one in passing:
                one.cancel()
            for end in writers:
                end.transport.abort()
            await asyncio.gather(*passing, return_exceptions=True)

    async def _pass_requests(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, asked: asyncio.Event
    ) -> None:
        seen = b""
        while data := await source.read(_CHUNK):
            seen = seen[-len(self._word) :] + data
            found = bool(self._word) and self._word in seen and self._flows.is_set()
            if found:
                self._flows.clear()
                if self._before:
                    self.held.set()
                else:
                    asked.set()
            await asyncio.sleep(self.delay_s)
            if not (found and not self._before):
                await self._flows.wait()
            sink.write(data)
            await sink.drain()

    async def _pass_answers(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, asked: asyncio.Event
    ) -> None:
        while data := await source.read(_CHUNK):
            if asked.is_set():
                self.held.set()
            await self._flows.wait()
            sink.write(data)
            await sink.drain()
