"""Fails a test in which the platform's own code blocks the event loop: with files, sockets that wait, or a sleep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from blockbuster import BlockBuster

WATCHED = ["api", "worker", "scheduler", "shared"]
NOT_WATCHED = ["shared.embedded"]
"""``up`` alone starts and stops servers on a loop, before and after everything else."""
HARMLESS = ("threading.Lock.acquire", "threading.Lock.acquire_lock", "os.getcwd", "os.path.abspath", "os.path.samestat")
"""Locks of ours and of ``logging`` are held for moments; the others ask no disk."""
ALLOWED = (
    # At the start of a process: botocore reads the description of S3's API, and has no other way.
    ("/artifacts/s3.py", "open"),
    # A line to standard error.
    ("logging/__init__.py", "emit"),
    # The socket of one start, on a local disk: a thread takes longer.
    ("/attach.py", "close"),
)


@contextmanager
def loop_kept_free() -> Iterator[None]:
    """While this is open, :class:`blockbuster.BlockingError` is raised where code of ours blocks a running loop."""
    watch = BlockBuster(WATCHED, excluded_modules=NOT_WATCHED)
    for name in HARMLESS:
        del watch.functions[name]
    for file, function in ALLOWED:
        for each in watch.functions.values():
            each.can_block_in(file, function)
    watch.activate()
    try:
        yield
    finally:
        watch.deactivate()
