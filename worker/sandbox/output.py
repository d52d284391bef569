"""What a sandbox writes to stdout, stderr and its logger while a call runs.

Both streams are Unix sockets that the sandbox holds as its descriptors 1 and 2. A write to one is in our receive
queue before it returns, so whatever the function wrote before its result is there when the result is, and asking how
much is waiting (one system call a stream) is all that a silent call costs.
"""

from __future__ import annotations

import asyncio
import codecs
import fcntl
import socket
import sys
import termios
from collections.abc import Callable, Iterable

from worker.sandbox.log import LogEntry, LogStream
from worker.sandbox.tail import Tail

_CHUNK_BYTES = 64 * 1024
_PAUSE_S = 0.005
"""Between two reads of a stream whose output is only thrown away: bounds what a flood costs the event loop, while a
function that prints tens of megabytes still gets through them within its time."""
_MOST_ENTRIES = 8192
"""The most entries of the logger that are kept of a call: what they are made into costs by their number too."""
_ZERO = b"\0\0\0\0"
_LEVELS = frozenset(("debug", "info", "warning", "error", "critical"))


class _Stream:
    __slots__ = ("fd", "level", "name", "paused", "sock")

    def __init__(self, name: LogStream, level: str, sock: socket.socket) -> None:
        self.name = name
        self.level = level
        self.sock = sock
        self.fd = sock.fileno()
        self.paused: asyncio.TimerHandle | None = None

    def waiting(self) -> int:
        """Bytes in the receive queue."""
        return int.from_bytes(fcntl.ioctl(self.fd, termios.FIONREAD, _ZERO), sys.byteorder)


class Output:
    """Reads both streams of one sandbox for as long as it lives, and keeps what belongs to the call that runs.

    What comes while the function's module is imported belongs to the first call; what comes between two calls
    (a thread left behind) belongs to none. Past the limit output is read and dropped.
    """

    def __init__(self, stdout: socket.socket, stderr: socket.socket, limit_bytes: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._streams = (
            _Stream(LogStream.STDOUT, "info", stdout),
            _Stream(LogStream.STDERR, "error", stderr),
        )
        self._kept: list[tuple[LogStream, str, bytes]] = []
        self._room = limit_bytes
        self._entries = _MOST_ENTRIES
        self._collecting = True
        self._starting = True
        self._truncated = False
        self._closed = False
        self._tail: Tail | None = None
        for stream in self._streams:
            self._loop.add_reader(stream.fd, self._on_readable, stream)

    def begin(self, limit_bytes: int, tail: Tail | None = None) -> None:
        """A call starts: drop what came since the last one and keep up to ``limit_bytes`` from here on, which ``tail``
        follows."""
        if self._closed:
            return
        self._tail = None
        if self._starting:
            self._starting = False
            self._drain()
            self._room = limit_bytes - sum(len(chunk) for _, _, chunk in self._kept)
            self._follow(tail)
            return
        self._drain()
        self._kept = []
        self._room = limit_bytes
        self._entries = _MOST_ENTRIES
        self._truncated = False
        self._collecting = True
        self._follow(tail)

    def _follow(self, tail: Tail | None) -> None:
        self._tail = tail
        if tail is not None:
            tail.follow(self._kept)

    def add(self, level: str, message: str) -> None:
        """An entry of the function's logger. It stands after what was printed before it; output that came while the
        entry was on its way can stand before it too."""
        if not self._collecting:
            return
        self._drain()
        data = message.encode("utf-8", "backslashreplace")
        if self._room <= 0 or self._entries <= 0:
            self._truncated = True
            return
        if len(data) > self._room:
            self._truncated = True
            data = data[: self._room]
        # An empty message is an entry too; it must not be free, or it could be sent without end.
        self._room -= max(len(data), 1)
        self._entries -= 1
        self._kept.append((LogStream.LOGGER, level if level in _LEVELS else "info", data))
        if self._tail is not None:
            self._tail.grew()

    def finish(self) -> tuple[tuple[LogEntry, ...], bool]:
        """The call is over: its output, and whether some of it was dropped."""
        if not self._closed:
            self._drain()
        self._collecting = False
        self._starting = False
        if self._tail is not None:
            self._tail.truncated = self._truncated
            self._tail = None
        kept, self._kept = self._kept, []
        if not kept:
            return (), self._truncated
        return entries(kept), self._truncated

    def close(self) -> None:
        """Stop reading and close both streams; idempotent."""
        if self._closed:
            return
        self._closed = True
        for stream in self._streams:
            self._loop.remove_reader(stream.fd)
            if stream.paused is not None:
                stream.paused.cancel()
            stream.sock.close()

    def _drain(self) -> None:
        for stream in self._streams:
            self._take(stream, stream.waiting())

    def _on_readable(self, stream: _Stream) -> None:
        if not self._take(stream, max(stream.waiting(), 1)):
            # The sandbox closed this stream, which is its good right.
            self._loop.remove_reader(stream.fd)
        elif not self._collecting or self._room <= 0:
            self._loop.remove_reader(stream.fd)
            stream.paused = self._loop.call_later(_PAUSE_S, self._resume, stream)

    def _resume(self, stream: _Stream) -> None:
        stream.paused = None
        self._loop.add_reader(stream.fd, self._on_readable, stream)

    def _take(self, stream: _Stream, amount: int) -> bool:
        """Read ``amount`` bytes; False at the end of the stream."""
        while amount > 0:
            try:
                chunk = stream.sock.recv(min(amount, _CHUNK_BYTES))
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not chunk:
                return False
            amount -= len(chunk)
            if not self._collecting:
                continue
            if len(chunk) > self._room:
                self._truncated = True
                chunk = chunk[: max(self._room, 0)]
            if chunk:
                self._room -= len(chunk)
                self._kept.append((stream.name, stream.level, chunk))
                if self._tail is not None:
                    self._tail.grew()
        return True


def entries(kept: Iterable[tuple[LogStream, str, bytes]]) -> tuple[LogEntry, ...]:
    """Join neighbours of one stream and decode, so that a character cut by a read is whole again."""
    stretches: list[tuple[LogStream, str, list[str]]] = []
    new_decoder: Callable[..., codecs.IncrementalDecoder] = codecs.getincrementaldecoder("utf-8")
    decoders: dict[LogStream, codecs.IncrementalDecoder] = {}
    last: dict[LogStream, list[str]] = {}
    for stream, level, chunk in kept:
        if stream is LogStream.LOGGER:
            stretches.append((stream, level, [chunk.decode("utf-8", "ignore")]))
            continue
        decoder = decoders.get(stream)
        if decoder is None:
            decoder = decoders[stream] = new_decoder("backslashreplace")
        if not stretches or stretches[-1][0] is not stream:
            stretches.append((stream, level, []))
        last[stream] = stretches[-1][2]
        last[stream].append(decoder.decode(chunk))
    for stream, decoder in decoders.items():
        last[stream].append(decoder.decode(b"", True))
    joined = ((stream, level, "".join(parts)) for stream, level, parts in stretches)
    return tuple(
        LogEntry(stream=stream, level=level, message=message)
        for stream, level, message in joined
        if message or stream is LogStream.LOGGER
    )
