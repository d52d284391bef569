"""What a running call says: the lines of its logger, and how far it is."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from containerpub_runtime.channel import Channel, printable
from containerpub_runtime.own_modules import library
from containerpub_runtime.standard_logging import handler_of

_REPORT_EVERY_S = 0.05
_REPORT_CHARS = 1024
_MOST_ENTRIES = 8192
"""The most entries of a call; the worker takes no more."""
_MOST_EARLY = 1000
_EARLY_CHARS = 16 * 1024


class CallLog:
    """Where ``context.logger`` writes: frames of the call that runs, up to its log limit."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._logger: Any = None
        self.nonce = ""  # of the call that runs
        self._room = self._entries = 0
        self._full = False
        self._reported_at = 0.0
        self._early: list[tuple[int, str]] | None = []  # what the import says belongs to the first call
        self._process = os.getpid()

    def begin(self, nonce: str, limit_bytes: int) -> None:
        """A call starts."""
        self.nonce, self._room, self._entries = nonce, limit_bytes, _MOST_ENTRIES
        self._full, self._reported_at = False, 0.0
        early, self._early = self._early, None
        for level, message in early or ():
            self.write(level, message)

    def logger(self) -> Any:
        if self._logger is None:
            with library():
                import logging

            self._logger = logging.Logger("function", logging.DEBUG)
            self._logger.addHandler(handler_of(logging, self.write))
        return self._logger

    def write(self, level: int, message: str) -> None:
        # The message that passes the limit is still sent (cut): from it the worker knows that something is missing.
        if os.getpid() != self._process:  # a forked child has no connection to the worker
            sys.stderr.write(printable(message) + "\n")
            return
        if self._early is not None and len(self._early) < _MOST_EARLY:
            self._early.append((level, message[:_EARLY_CHARS]))
        if self._full or not self.nonce:
            return
        self._full = self._room <= 0 or self._entries <= 0
        message = printable(message)[: max(self._room, 0) + 1]
        self._room -= max(len(message), 1)
        self._entries -= 1
        names = ((50, "critical"), (40, "error"), (30, "warning"), (20, "info"))
        name = next((name for bound, name in names if level >= bound), "debug")
        self._channel.send({"nonce": self.nonce, "kind": "log", "level": name}, message.encode())

    def report(self, fraction: float, message: str) -> None:
        now = time.monotonic()
        if not self.nonce or (now - self._reported_at < _REPORT_EVERY_S and fraction < 1):
            return
        self._reported_at = now
        message = printable(message)[:_REPORT_CHARS]
        self._channel.send({"nonce": self.nonce, "kind": "progress", "fraction": fraction, "message": message})
