"""Output of one call that comes as chunks of bytes."""

from __future__ import annotations

from worker.sandbox.log import LogEntry, LogStream
from worker.sandbox.output import entries
from worker.sandbox.tail import Tail


class Capture:
    """Keeps the first ``limit_bytes`` of both streams together."""

    def __init__(self, limit_bytes: int, tail: Tail | None = None) -> None:
        """``tail`` follows it."""
        self._kept: list[tuple[LogStream, str, bytes]] = []
        self._tail = tail
        if tail is not None:
            tail.follow(self._kept)
        self._room = limit_bytes
        self._truncated = False

    @property
    def is_full(self) -> bool:
        return self._room <= 0

    def add(self, stream: LogStream, level: str, chunk: bytes) -> None:
        if len(chunk) > self._room:
            self._truncated = True
            if self._tail is not None:
                self._tail.truncated = True
            chunk = chunk[: max(self._room, 0)]
        if chunk:
            self._room -= len(chunk)
            self._kept.append((stream, level, chunk))
            if self._tail is not None:
                self._tail.grew()

    def finish(self) -> tuple[tuple[LogEntry, ...], bool]:
        """What was kept, and whether something was not."""
        return entries(self._kept), self._truncated
