"""Puts jobs that were accepted for later on the queue once their time has come."""

from __future__ import annotations

import logging

from shared.errors import Unavailable
from shared.postgres.jobs import Jobs
from shared.queue.message import message_of
from shared.queue.queue import Queue
from shared.queue.scripts import QueueClosed

log = logging.getLogger(__name__)

_MOST = 1000


class Due:
    def __init__(self, queue: Queue, jobs: Jobs) -> None:
        self._queue = queue
        self._jobs = jobs

    async def run_once(self) -> int:
        """Put due jobs on the queue; how many. Postgres has them as ``queued`` from the first step on, so the
        reconciler finds those that cannot be put there now."""
        moved = 0
        while due := await self._jobs.fall_due(limit=_MOST):
            moved += len(due)
            try:
                await self._queue.enqueue("invoke", [message_of(job) for job in due])
            except (Unavailable, QueueClosed) as error:
                log.warning("due jobs are left to the reconciler", extra={"jobs": len(due), "error": str(error)})
            if len(due) < _MOST:
                break
        return moved
