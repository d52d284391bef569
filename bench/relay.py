"""A way to a server's Unix socket that can be slowed down, made to hang, or stopped at a chosen word, so that whoever
speaks can be killed just then."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

_CHUNK = 64 * 1024


class Relay:
    """Listens on the Unix socket ``path`` and passes everything on to ``server``, another one, and back.

    ``held`` is set once what was waited for is held. What is held stays so until :meth:`flow`, or goes with its
    connection when that is cut.
    """

    def __init__(self, path: Path, server: Path) -> None:
        self.url = f"unix://{path}"
        self.held = asyncio.Event()
        self.delay_s = 0.0
        self._path = path
        self._server = server
        self._word = b""
        self._before = True
        self._each = b""
        self._flows = asyncio.Event()
        self._flows.set()
        self._passes = asyncio.Event()  # what has the word of :meth:`hold_each` in it
        self._waiting: dict[object, bytes] = {}
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

    def hold_each(self, word: bytes) -> None:
        """Every request that has ``word`` in it is held, and everything else comes through."""
        self._each = word
        self._passes.clear()

    def stall(self) -> None:
        """From now on nothing comes through, in neither direction."""
        self._flows.clear()

    def flow(self) -> None:
        """Everything comes through, what is held first."""
        self._each = b""
        self._passes.set()
        self._flows.set()

    @property
    def waiting(self) -> list[bytes]:
        """What clients have sent and the server does not get yet, a piece of each connection that holds some."""
        return list(self._waiting.values())

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
            # Whichever side ends first, the other is told, and may still say something.
            await asyncio.wait(passing)
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
        try:
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
                self._waiting[source] = data
                if self._each and self._each in data:
                    await self._passes.wait()
                if not (found and not self._before):
                    await self._flows.wait()
                del self._waiting[source]
                sink.write(data)
                await sink.drain()
            await self._end(sink)
        except OSError:
            sink.close()
        finally:
            self._waiting.pop(source, None)

    async def _pass_answers(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, asked: asyncio.Event
    ) -> None:
        try:
            while data := await source.read(_CHUNK):
                if asked.is_set():
                    self.held.set()
                await self._flows.wait()
                sink.write(data)
                await sink.drain()
            await self._end(sink)
        except OSError:
            sink.close()

    async def _end(self, sink: asyncio.StreamWriter) -> None:
        await self._flows.wait()
        if sink.can_write_eof():
            sink.write_eof()
