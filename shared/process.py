"""The frame of every process of ours: settings, logs, an event loop, an exit code."""

from __future__ import annotations

import logging
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import uvloop

from shared.errors import ContainerPubError
from shared.logging import configure
from shared.settings import Settings, load

log = logging.getLogger(__name__)


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
