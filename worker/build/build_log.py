"""The log of one build: makes the output of a hostile installation safe to store and to show."""

from __future__ import annotations

import re
from collections.abc import Callable

_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor movement
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC and the other strings, up to their end
    r"|\x1b[ -/]*[0-~]?",  # anything else that begins with ESC
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_MAX_LINE_BYTES = 8 * 1024


class BuildLog:
    """Takes bytes or lines, gives clean lines of at most ``max_bytes`` altogether, then says once that it stopped."""

    def __init__(self, log: Callable[[str], None], max_bytes: int) -> None:
        self._log = log
        self._left = max_bytes
        self._pending = bytearray()
        self.truncated = False
        self.last_line = ""

    def feed(self, data: bytes) -> None:
        """Output as it comes; a line is passed on once it is complete or overlong."""
        if self.truncated:
            return
        self._pending += data
        while (end := self._pending.find(b"\n")) >= 0 or len(self._pending) > _MAX_LINE_BYTES:
            cut = min(end, _MAX_LINE_BYTES) if end >= 0 else _MAX_LINE_BYTES
            piece = bytes(self._pending[:cut])
            del self._pending[: cut + 1 if cut == end else cut]
            self._emit(piece)

    def flush(self) -> None:
        """Pass on an unfinished last line."""
        if self._pending:
            self._emit(bytes(self._pending))
            self._pending.clear()

    def line(self, text: str) -> None:
        """One line of the platform's own."""
        self.flush()
        self._emit(text.encode())

    def _emit(self, raw: bytes) -> None:
        if self.truncated:
            return
        # a carriage return redraws a progress bar: only the last drawing is of interest
        visible = raw.rstrip(b"\r").rsplit(b"\r", 1)[-1]
        text = _CONTROLS.sub("", _ESCAPES.sub("", visible.decode("utf-8", "backslashreplace")))
        size = len(text.encode()) + 1
        if size > self._left:
            self.truncated = True
            self._pending.clear()
            self._log("[log truncated]")
            return
        self._left -= size
        if text.strip():
            self.last_line = text.strip()
        self._log(text)
