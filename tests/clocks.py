"""Another wall clock than this machine's, for the processes of a test."""

from __future__ import annotations

from pathlib import Path

from tests.machine import lacks


class WallClock:
    """What processes that run with :attr:`env` see of it can be moved; ``folder`` is where they read by how much.

    Their monotonic clock goes on as it is.
    """

    def __init__(self, folder: Path) -> None:
        self._shift = folder / "shift"
        self.move("+0")
        self.env = {
            "LD_PRELOAD": str(_faketime()),
            "FAKETIME_TIMESTAMP_FILE": str(self._shift),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def move(self, to: str) -> None:
        """Let it differ by so many seconds, from now on."""
        written = self._shift.with_suffix(".new")
        written.write_text(to)
        written.replace(self._shift)  # nobody reads half of it


def _faketime() -> Path:
    """The library that lets a process see another time."""
    found = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)
    if found is None:
        lacks("libfaketime is not installed")
    return found
