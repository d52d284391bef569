"""``python -m api``: one API process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

from aiohttp import web

from api.app import build_app
from shared.errors import ContainerPubError
from shared.logging import configure
from shared.settings import Settings, load

log = logging.getLogger("api")

_SHUTDOWN_S = 15.0


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; then finish what was accepted."""
    runner = web.AppRunner(
        build_app(settings),
        access_log=None,
        # A client that goes away cancels its call: see api.routes.invoke.
        handler_cancellation=True,
        shutdown_timeout=_SHUTDOWN_S,
        keepalive_timeout=75,
        lingering_time=2,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.port, backlog=1024)
        await site.start()
        log.info("listening", extra={"host": settings.host, "port": settings.port})
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await stop.wait()
        log.info("stopping")
    finally:
        await runner.cleanup()


def main() -> int:
    try:
        settings = load(os.environ, dotenv=Path(".env"), needs_jwt=True)
    except ContainerPubError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    configure(level=settings.log_level, form=settings.log_format)
    import uvloop

    try:
        uvloop.run(serve(settings))
    except (ContainerPubError, OSError) as error:
        log.error("cannot start", extra={"error": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
