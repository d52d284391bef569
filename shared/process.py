"""The frame of every process of ours: settings, logs, an event loop, an exit code."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import uvloop

from shared.errors import ContainerPubError
from shared.logging import configure
from shared.settings import Settings, load

log = logging.getLogger(__name__)

CANCEL_AGAIN_S = 1.0


def run(
    serve: Callable[[Settings], Awaitable[None]], environment: Mapping[str, str], *, needs_jwt: bool = False
) -> int:
    """Read the settings and serve until the process is told to stop.

    :returns: 0 after an orderly stop, 1 if it could not start or go on, 2 for settings with mistakes.
    """
    try:
        settings = load(environment, dotenv=Path(".env"), needs_jwt=needs_jwt)
    except ContainerPubError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    configure(level=settings.log_level, form=settings.log_format)

    async def main() -> None:
        await serve(settings)

    try:
        uvloop.run(main())
    except (ContainerPubError, OSError) as error:
        log.error("cannot go on", extra={"error": str(error)})
        return 1
    return 0


async def ended(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Cancel ``tasks`` and wait until none of them runs; ignores what they raise.

    A library can swallow a cancellation, by catching it or by taking it for its own time-out. That must not keep the
    process from stopping: such a task is cancelled again, and a log line names it.
    """
    running = {task for task in tasks if not task.done()}
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=CANCEL_AGAIN_S)
        for task in running:
            log.warning("does not end", extra={"task": repr(task)[:500]})


def tell_if_stuck(within_s: float) -> None:
    """Call this when the process begins to stop: if it still runs after ``within_s``, its threads' stacks go to
    stderr."""
    faulthandler.dump_traceback_later(within_s, exit=False)
