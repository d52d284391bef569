"""Ends with 1 and a sentence where a process holds a data folder; needs no package."""

from __future__ import annotations

import fcntl
import sys
from pathlib import Path


def main() -> int:
    folder = Path(sys.argv[1])
    try:
        with (folder / "lock").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = lock.read(32).decode("ascii", "replace").strip() or "unknown"
                sys.stderr.write(f"{folder} is in use by the process {holder}: stop it first\n")
                return 1
    except FileNotFoundError:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
