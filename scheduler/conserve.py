"""The leader's own check that every job is where it belongs; ``/metrics`` has what it found."""

from __future__ import annotations

import logging

from shared.queue.conservation import Conservation
from shared.queue.queue import Queue

log = logging.getLogger(__name__)

SHARE = 0.1
"""The part of its time that the check works: a long queue takes it long, and it must not slow down the queue."""
_NAMED = 10
_KEPT = 10


class Conserve:
    """:param every_s: time between two checks; ``/metrics`` forgets the findings of a check after ten times that."""

    def __init__(self, queue: Queue, conservation: Conservation, *, every_s: float) -> None:
        self._queue = queue
        self._conservation = conservation
        self._every_s = every_s

    async def run_once(self) -> int:
        """Check everything, and report the number of findings, which is returned. Repairs nothing."""
        balance = await self._conservation.run_once()
        count = len(balance.findings)
        if count:
            named = [str(one) for one in sorted(balance.findings)[:_NAMED]]
            log.error("jobs are out of place", extra={"findings": count, "first": named})
        await self._queue.report_out_of_place(count, keep_s=_KEPT * self._every_s)
        return count
