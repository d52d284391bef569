"""Ends jobs that have not started by their ``expires_at``."""

from __future__ import annotations

from shared.postgres.jobs import LOWEST_ID, Jobs
from shared.queue.message import queue_of
from shared.queue.queue import CancelledWhere, Queue

_PAGE = 1000


class Expiry:
    def __init__(self, queue: Queue, jobs: Jobs) -> None:
        self._queue = queue
        self._jobs = jobs

    async def run_once(self) -> int:
        """End these jobs wherever they are, unless they run; how many."""
        ended = 0
        after = LOWEST_ID
        while True:
            page = await self._jobs.expired(after=after, limit=_PAGE)
            for job, kind in page:
                where = await self._queue.cancel(queue_of(kind), job, queued=("failed", "expired"), running=None)
                if where is CancelledWhere.QUEUED or (where is CancelledWhere.ABSENT and await self._jobs.expire(job)):
                    ended += 1
            if len(page) < _PAGE:
                return ended
            after = page[-1][0]
