"""``python -m worker``: one worker process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

from shared.errors import ContainerPubError
from shared.logging import configure
from shared.settings import Settings, load
from worker.engine.contract import EngineUnavailable
from worker.service import Service

log = logging.getLogger("worker")


async def serve(settings: Settings) -> None:
    """Work until SIGTERM or SIGINT; then let what runs finish, and hand back what does not in time."""
    service = Service(settings)
    worker = service.worker
    loop = asyncio.get_running_loop()

    def stop() -> None:
        log.info("draining", extra={"worker": service.id})
        worker.stopping.set()
        loop.call_later(settings.drain_seconds, hand_back)

    def hand_back() -> None:
        for station in worker.stations:
            station.hand_back_all()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        await worker.async_run()
    finally:
        await worker.close()
    log.info("stopped", extra={"worker": service.id})


def main() -> int:
    try:
        settings = load(os.environ, dotenv=Path(".env"))
    except ContainerPubError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    configure(level=settings.log_level, form=settings.log_format)
    import uvloop

    try:
        uvloop.run(serve(settings))
    except (ContainerPubError, EngineUnavailable, OSError) as error:
        log.error("cannot go on", extra={"error": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
