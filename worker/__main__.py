"""``python -m worker``: one worker process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

from shared.process import run, tell_if_stuck
from shared.settings import Settings
from worker.consume.dispatcher import LAST_SETTLE_S
from worker.service import Service

log = logging.getLogger("worker")


async def serve(settings: Settings) -> None:
    """Work until SIGTERM or SIGINT; then let running attempts finish, and hand back those that do not end in time."""
    service = Service(settings)
    worker = service.worker
    loop = asyncio.get_running_loop()

    def stop() -> None:
        log.info("draining", extra={"worker": service.id})
        service.drain()
        loop.call_later(settings.drain_seconds, hand_back)
        tell_if_stuck(settings.drain_seconds + 2 * LAST_SETTLE_S)

    def hand_back() -> None:
        for dispatcher in worker.dispatchers:
            dispatcher.hand_back_all()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        await worker.async_run()
    finally:
        await worker.close()
    log.info("stopped", extra={"worker": service.id})


if __name__ == "__main__":
    sys.exit(run(serve, os.environ))
