"""The output of ``up``: its own lines and its children's, each behind the name of its process."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from typing import TextIO

from cli.terminal import escape

NAME_WIDTH = 10
MAX_LINE_BYTES = 64 * 1024
MAX_QUEUED_LINES = 10_000
FLUSH_S = 2.0


class Console:
    """Writes on a thread of its own: a reader that stalls must hold up neither us nor the children.

    Lines past :data:`MAX_QUEUED_LINES` are dropped and counted.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_QUEUED_LINES)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="console", daemon=True)
        self._thread.start()

    def say(self, text: str, name: str = "up") -> None:
        try:
            self._lines.put_nowait(f"{name:<{NAME_WIDTH}}| {escape(text)}\n")
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        """Write what is queued, for two seconds at most. Blocks."""
        try:
            self._lines.put(None, timeout=FLUSH_S)
        except queue.Full:
            return
        self._thread.join(FLUSH_S)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            if self._dropped:
                line, self._dropped = f"{line}… {self._dropped} lines were dropped\n", 0
            try:
                self._stream.write(line)
                if self._lines.empty():
                    self._stream.flush()
            except (OSError, ValueError):
                continue  # the reader is gone: the platform goes on, and the queue must not fill up


class Feed(asyncio.Protocol):
    """A pipe whose lines go to the console. It outlives a child, so that the child's next life writes there too."""

    def __init__(self, name: str, console: Console) -> None:
        self._name = name
        self._console = console
        self._pending = b""
        self._ended = asyncio.Event()
        self._transport: asyncio.BaseTransport | None = None
        self.descriptor = -1  # for children to write to

    async def open(self) -> None:
        reading, self.descriptor = os.pipe()
        source = os.fdopen(reading, "rb", buffering=0)
        self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: self, source)

    async def close(self) -> None:
        """Show what is left, as long as no surviving process holds the other end."""
        if self._transport is None:
            return
        os.close(self.descriptor)
        try:
            await asyncio.wait_for(self._ended.wait(), FLUSH_S)
        except TimeoutError:
            pass
        self._transport.close()
        self._transport = None

    def data_received(self, data: bytes) -> None:
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            self._show(line)
        if len(self._pending) > MAX_LINE_BYTES:
            self._show(self._pending)
            self._pending = b""

    def connection_lost(self, exc: Exception | None) -> None:
        if self._pending:
            self._show(self._pending)
        self._ended.set()

    def _show(self, line: bytes) -> None:
        self._console.say(line.decode("utf-8", "backslashreplace").rstrip("\r"), self._name)
