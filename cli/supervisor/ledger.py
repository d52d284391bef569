"""A list on disk of the processes that a supervisor started, so that the next one ends those that a killed one left.

On Linux the kernel ends them together with the supervisor, and the list usually names none that runs; elsewhere it is
the only way.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path

import psutil

from shared.embedded.process import kill_tree

SAME_START_S = 2.0
"""Start times are recomputed from ticks since the boot, and the clock may have been corrected meanwhile."""
GONE_TIMEOUT_S = 10.0


class Ledger:
    """Blocks on file operations; safe to call from several threads."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._running: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()

    def record(self, name: str, pid: int) -> None:
        """Note that ``name`` runs as ``pid`` from now on."""
        try:
            started = psutil.Process(pid).create_time()
        except psutil.NoSuchProcess:
            return
        with self._lock:
            self._running[name] = (pid, started)
            fresh = self._file.with_name(self._file.name + ".new")
            fresh.write_text(json.dumps(self._running), encoding="ascii")
            fresh.replace(self._file)

    def clear(self) -> None:
        with self._lock:
            self._running.clear()
            self._file.unlink(missing_ok=True)

    def end_leftovers(self) -> list[str]:
        """SIGKILL what an earlier supervisor's ledger names and still is the same process; their names."""
        try:
            recorded = json.loads(self._file.read_text(encoding="ascii"))
            entries = [(str(name), int(pid), float(started)) for name, (pid, started) in recorded.items()]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError, AttributeError):
            entries = []  # damaged: it names no process
        found = [(name, pid) for name, pid, started in entries if _is_same(pid, started)]
        victims = [process for _, pid in found for process in kill_tree(pid)]
        psutil.wait_procs(victims, timeout=GONE_TIMEOUT_S)
        self.clear()
        return [name for name, _ in found]


def _is_same(pid: int, started: float) -> bool:
    try:
        return abs(psutil.Process(pid).create_time() - started) < SAME_START_S
    except psutil.NoSuchProcess:
        return False
