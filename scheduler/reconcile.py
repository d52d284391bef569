"""The reconciler: puts jobs on the queue that Postgres has as open and the queue does not hold.

There are such jobs when an API process dies between its commit and its call to Redis, or when Redis was away then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from shared.ids import lowest_id
from shared.jobs import JobKind
from shared.postgres.jobs import LOWEST_ID, Jobs
from shared.queue.drain import Drain
from shared.queue.message import message_of, queue_of
from shared.queue.queue import QUEUES, Queue

log = logging.getLogger(__name__)

_PAGE = 10_000
_PAGES_OF_NEW = 10
_PAGES_OF_OLD = 2
_NEW_S = 30.0
_AT_ONCE = 100
_SETTLED_BOUND_S = 5.0


class Reconciler:
    """:param age_s: the reconciler leaves jobs younger than this to the process that accepted them."""

    def __init__(self, queue: Queue, jobs: Jobs, drain: Drain, *, age_s: float = 3.0) -> None:
        self._queue = queue
        self._jobs = jobs
        self._drain = drain
        self._age_s = age_s
        self._after = LOWEST_ID

    async def run_once(self) -> int:
        """Look at open jobs; how many were missing and are queued now.

        It looks at the newest jobs each time, since a job whose API process died should not wait for long, and at older
        ones a part at a time, so that one run stays short.
        """
        new = lowest_id(datetime.now(UTC) - timedelta(seconds=_NEW_S))
        _, added = await self._look(new, _PAGES_OF_NEW)
        self._after, old = await self._look(self._after, _PAGES_OF_OLD)
        if added + old:
            log.warning("jobs were missing on the queue", extra={"jobs": added + old})
        return added + old

    async def _look(self, after: UUID, pages: int) -> tuple[UUID, int]:
        """Check up to ``pages`` of jobs after ``after``; the id to go on from, the lowest after the last page, and how
        many jobs were missing."""
        added = 0
        for _ in range(pages):
            page = await self._jobs.open_ids(after=after, limit=_PAGE, age_s=self._age_s)
            added += await self._check(page)
            if len(page) < _PAGE:
                return LOWEST_ID, added
            after = page[-1][0]
        return after, added

    async def _check(self, jobs: Sequence[tuple[UUID, JobKind]]) -> int:
        missing: list[UUID] = []
        for name in QUEUES:
            ids = [job for job, kind in jobs if queue_of(kind) == name]
            flags = await self._queue.present(name, ids)
            missing += [job for job, there in zip(ids, flags, strict=True) if not there]
        if not missing:
            return 0
        # A job may be missing because it just ended. It is lost only if it is still open after all records that were on
        # their way have been written.
        if not await self._records_written():
            return 0
        added = 0
        for start in range(0, len(missing), _AT_ONCE):
            still_open = await self._jobs.still_open(missing[start : start + _AT_ONCE])
            for name in QUEUES:
                messages = [message for message in map(message_of, still_open) if message.queue == name]
                if messages:
                    await self._queue.enqueue(name, messages)
                    added += len(messages)
        return added

    async def _records_written(self) -> bool:
        last = await self._drain.last()
        deadline = asyncio.get_running_loop().time() + _SETTLED_BOUND_S
        while not await self._drain.written_up_to(last):
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(0.05)
        return True
