"""``python -m api``: one API process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

from aiohttp import web

from api.app import build_app
from api.keys import LEAVING, LOOPS, PENDING_REPLIES
from api.server import Runner
from shared.process import run
from shared.sealing import NOT_SEALED
from shared.settings import Settings

log = logging.getLogger("api")

_ANSWER_S = 4.0
"""Time to answer the callers whose wait ends because this process stops."""


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; then serve on as not ready for ``LEAVE_SECONDS``, and answer waiting callers:
    within ``DRAIN_SECONDS`` with their results, after that with the ids of jobs that go on."""
    app = build_app(settings)
    runner = Runner(
        app,
        request_timeout_s=settings.request_timeout_seconds,
        access_log=None,
        # A client that goes away cancels its call: see api.routes.invoke.
        handler_cancellation=True,
        shutdown_timeout=settings.drain_seconds + _ANSWER_S,
        keepalive_timeout=75,
        lingering_time=2,
    )
    if not settings.keyring.seals:
        log.warning(NOT_SEALED)
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.port, backlog=1024)
        await site.start()
        log.info("listening", extra={"host": settings.host, "port": settings.port})
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await app[LOOPS].until(stop)
        log.info("stopping")
        app[LEAVING].set()
        # Closing at once would cut off requests that are on their way over kept connections.
        await asyncio.sleep(settings.leave_seconds)
        loop.call_later(settings.drain_seconds, app[PENDING_REPLIES].leave)
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    sys.exit(run(serve, os.environ, needs_jwt=True))
