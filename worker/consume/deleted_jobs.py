"""Ends the jobs of a deleted function."""

from __future__ import annotations

import asyncio
import logging
from uuid import UUID

from shared.errors import Unavailable
from shared.jobs import JobKind
from shared.postgres.jobs import Jobs
from shared.queue.message import queue_of
from shared.queue.queue import CancelledWhere, Queue
from shared.queue.scripts import QueueClosed

log = logging.getLogger(__name__)

PATIENCE_S = 300.0
_PAGE = 500
_AT_ONCE = 50
_LOOK_S = (0.05, 1.0)  # between two looks, at first and at most


class DeletedJobs:
    """Cancels what was accepted for functions that are deleted since, and waits until all of it has ended."""

    def __init__(self, jobs: Jobs, queue: Queue) -> None:
        self._jobs = jobs
        self._queue = queue

    async def end(self, function: UUID) -> int:
        """Cancel the accepted jobs of a deleted function wherever they are, and wait for their ends in Postgres; how
        many it cancelled. An attempt that runs is killed by its worker.

        :raises Unavailable: if Postgres or Redis is away, or jobs have not ended after :data:`PATIENCE_S`.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE_S
        pause_s, most_s = _LOOK_S
        cancelled: set[UUID] = set()
        # The newest first: a job that waits must not get the slot that the end of one that runs frees.
        while found := await self._jobs.open_of_function(function, limit=_PAGE):
            for start in range(0, len(found), _AT_ONCE):
                some = found[start : start + _AT_ONCE]
                ends = await asyncio.gather(*(self._cancel(job) for job in some))
                cancelled.update(job for job, ended in zip(some, ends, strict=True) if ended)
            if loop.time() > until:
                raise Unavailable(f"{len(found)} jobs of the deleted function have not ended.", retry_after_s=60)
            await asyncio.sleep(pause_s)  # for the records of these ends
            pause_s = min(2 * pause_s, most_s)
        if cancelled:
            log.info("cancelled jobs of a deleted function", extra={"function": str(function), "jobs": len(cancelled)})
        return len(cancelled)

    async def _cancel(self, job: UUID) -> bool:
        try:
            where = await self._queue.cancel(queue_of(JobKind.INVOKE), job)
        except QueueClosed:
            return False  # the queue is being rebuilt; the next look tries again
        if where is CancelledWhere.ABSENT:
            return await self._jobs.cancel(job)
        return where is not CancelledWhere.ENDED
