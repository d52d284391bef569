"""Work in threads for callers that may be cancelled, and then take away what the work has made.

A thread cannot be called back: :func:`asyncio.to_thread` returns to a cancelled caller while the thread still makes
folders and opens files.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


async def finished_in_thread(work: Callable[[], T], discard: Callable[[T], object] | None = None) -> T:
    """What ``work`` returns, which a thread calls.

    When the caller is cancelled, however often, this waits until ``work`` has ended, lets ``discard`` take away what it
    returned, in a thread too, and only then raises :class:`asyncio.CancelledError`. Raises what ``work`` raises.
    """
    working = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await _ended(working)
        if not working.cancelled() and working.exception() is None and discard is not None:
            discarding = asyncio.ensure_future(asyncio.to_thread(discard, working.result()))
            await _ended(discarding)
            discarding.result()
        raise


@asynccontextmanager
async def temporary_folder(make: Callable[[], Path]) -> AsyncIterator[Path]:
    """The folder that ``make`` makes, removed at the end of the block with all that is in it."""

    def remove(folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    folder = await finished_in_thread(make, remove)
    try:
        yield folder
    finally:
        await asyncio.to_thread(remove, folder)


async def _ended(task: asyncio.Future[Any]) -> None:
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            continue
