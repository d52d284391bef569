"""The output of a running call so far, for subscribers."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from worker.sandbox.log import LogEntry, LogStream

_MESSAGE_CHARS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A call's own report of its progress: ``fraction`` from 0 to 1."""

    fraction: float
    message: str


class Tail:
    """Follows the output of one call, from its beginning, however late a client subscribes.

    Without a subscriber it costs nothing: it refers to the list that holds the output, and reads it only when asked.
    """

    __slots__ = ("_changed", "_decoders", "_kept", "_read", "progress", "truncated", "watched")

    def __init__(self, changed: Callable[[Tail], None]) -> None:
        """``changed`` is called when there is something new to tell; it must be quick."""
        self._changed = changed
        self._kept: Sequence[tuple[LogStream, str, bytes]] = ()
        self._read = 0
        self._decoders: dict[LogStream, codecs.IncrementalDecoder] = {}
        self.watched = False
        self.truncated = False  # not all of the output is kept
        self.progress: Progress | None = None

    def follow(self, kept: Sequence[tuple[LogStream, str, bytes]]) -> None:
        """The call's output is kept in this list, at whose end it grows; :meth:`grew` says when it did."""
        self._kept = kept
        self.grew()

    @property
    def kept(self) -> Sequence[tuple[LogStream, str, bytes]]:
        """The output so far, also of a call that was killed."""
        return self._kept

    def grew(self) -> None:
        if self.watched:
            self._changed(self)

    def subscribe(self) -> None:
        """A client subscribed: tell it all, from the beginning."""
        self.watched = True
        self._read = 0
        self._decoders = {}
        self._changed(self)

    def report(self, fraction: object, message: object) -> None:
        """Take a call's report of its progress. The call may be hostile: a report that makes no sense is ignored."""
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not isinstance(message, str):
            return
        if math.isfinite(fraction) and 0 <= fraction <= 1:
            self.progress = Progress(fraction=float(fraction), message=message[:_MESSAGE_CHARS])
            self._changed(self)

    def news(self) -> list[LogEntry]:
        """What was written since this was asked last. A character that is cut is told with its end."""
        fresh = self._kept[self._read :]
        self._read += len(fresh)
        found: list[LogEntry] = []
        for stream, level, chunk in fresh:
            text = self._text(stream, chunk)
            if not text and stream is not LogStream.LOGGER:
                continue
            if found and found[-1].stream is stream and stream is not LogStream.LOGGER:
                found[-1] = LogEntry(stream=stream, level=level, message=found[-1].message + text)
            else:
                found.append(LogEntry(stream=stream, level=level, message=text))
        return found

    def _text(self, stream: LogStream, chunk: bytes) -> str:
        if stream is LogStream.LOGGER:
            return chunk.decode("utf-8", "ignore")
        decoder = self._decoders.get(stream)
        if decoder is None:
            decoder = self._decoders[stream] = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        return decoder.decode(chunk)
