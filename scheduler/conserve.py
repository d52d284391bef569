"""The leader's own check that every job is where it belongs; ``/metrics`` has what it found."""

from __future__ import annotations

import logging

from shared.queue.conservation import Conservation
from shared.queue.queue import Queue

log = logging.getLogger(__name__)

SHARE = 0.1
"""How much of its time the check takes: it must not slow down the queue, and a long queue takes long."""
_NAMED = 10
_KEPT = 10


class Conserve:
    """:param every_s: time between two checks; what one found is forgotten when ten should have followed."""

    def __init__(self, queue: Queue, conservation: Conservation, *, every_s: float) -> None:
        self._queue = queue
        self._conservation = conservation
        self._every_s = every_s

    async def run_once(self) -> int:
        """Check everything, and report how much is out of place, which is returned. Repairs nothing."""
        balance = await self._conservation.run_once()
        count = len(balance.findings)
        if count:
            named = [str(one) for one in sorted(balance.findings)[:_NAMED]]
            log.error("jobs are out of place", extra={"findings": count, "first": named})
        await self._queue.report_out_of_place(count, keep_s=_KEPT * self._every_s)
        return count
