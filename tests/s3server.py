"""An S3 server of a test's own: moto, a process that can be stopped, killed, and started again."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

READY_S = 60.0


class S3Server:
    """Killed and started again it has lost everything, its bucket included."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, at the port that it had before if any, and return when it serves. Blocks."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + READY_S
        while not (match := re.search(rb"Running on http://127\.0\.0\.1:(\d+)", self._log.read_bytes())):
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, "the S3 server did not start"
            time.sleep(0.05)
        self.port = int(match[1])

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
