"""How many jobs of one user may wait."""

from __future__ import annotations

import asyncio
from uuid import UUID

from api.single_flight import SingleFlight
from shared.errors import TooMany, Unavailable
from shared.postgres.submissions import Submissions
from shared.queue.queue import Queue

DEPTH_S = 0.25
LOOK_S = 1.0
"""How long a call waits for Redis before it is admitted without being counted."""
DEPTHS_REMEMBERED = 10_000


class Admission:
    """:param max_queued: jobs of one user that may wait."""

    def __init__(self, submissions: Submissions, queue: Queue, *, max_queued: int) -> None:
        self._submissions = submissions
        self._queue = queue
        self._max_queued = max_queued
        self._depths: dict[UUID, tuple[float, int]] = {}  # until when it counts, and how many wait
        self._asked: SingleFlight[None] = SingleFlight()

    async def admit(self, user: UUID, count: int = 1) -> None:
        """Refuse a user whose queue has no room for ``count`` more jobs. Redis is asked for the depth a few times a
        second, and calls are added to it in between. While Redis is away no call is refused.

        :raises TooMany: saying when to try again.
        """
        until, depth = self._depths.get(user, (0.0, 0))
        if asyncio.get_running_loop().time() >= until or depth + count > self._max_queued:
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._asked.ask(user, lambda: self._look(user))
            except (Unavailable, TimeoutError):
                self._remember(user, 0)
                return
            until, depth = self._depths.get(user, (0.0, 0))
        if depth + count > self._max_queued:
            raise TooMany(
                f"You have {depth} jobs waiting, and may have {self._max_queued}; let some end first.",
                code="queue_full",
                retry_after_s=1,
            )
        self._depths[user] = (until, depth + count)

    async def admit_later(self, user: UUID) -> None:
        """Refuse a user who has the most allowed jobs due later.

        :raises TooMany: saying so. :raises Unavailable: if Postgres cannot tell.
        """
        if await self._submissions.count_scheduled(user, most=self._max_queued) >= self._max_queued:
            raise TooMany(
                f"You have {self._max_queued} jobs that are due later and may not have more; cancel some first.",
                code="queue_full",
                retry_after_s=60,
            )

    async def _look(self, user: UUID) -> None:
        self._remember(user, await self._queue.depth("invoke", user))

    def _remember(self, user: UUID, depth: int) -> None:
        if len(self._depths) >= DEPTHS_REMEMBERED:
            self._depths.clear()
        self._depths[user] = (asyncio.get_running_loop().time() + DEPTH_S, depth)
