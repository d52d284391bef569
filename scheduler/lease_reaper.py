"""Lost workers: a worker's lease is over when its heartbeat has not moved for ``lease_s`` on this process's own clock.

No wall clock is read, so a clock that jumps expires nothing. A new leader watches for a whole ``lease_s`` before it
judges. So does a leader that could not watch for a while: if Redis stood still, the workers could not beat either.
"""

from __future__ import annotations

import asyncio
import logging

from shared.queue.queue import Queue

log = logging.getLogger(__name__)


class LeaseReaper:
    """:param lease_s: silence after which a worker is lost. :param max_lost: lost attempts that end a job."""

    def __init__(self, queue: Queue, *, lease_s: float, max_lost: int) -> None:
        self._queue = queue
        self._lease_s = lease_s
        self._max_lost = max_lost
        self._seen: dict[str, tuple[int, float]] = {}
        self._looked_at = 0.0

    async def run_once(self) -> list[str]:
        """Look at all heartbeats once; the workers that are lost now."""
        # A worker that died between a claim and its first heartbeat is found by the attempts that it holds.
        beats = dict.fromkeys(await self._queue.holders(), 0) | await self._queue.beats()
        now = asyncio.get_running_loop().time()
        if now - self._looked_at > self._lease_s / 2:
            self._seen.clear()
        self._looked_at = now
        self._seen = {worker: seen for worker, seen in self._seen.items() if worker in beats}
        lost = []
        for worker, count in beats.items():
            before = self._seen.get(worker)
            if before is None or before[0] != count:
                self._seen[worker] = (count, now)
            elif now - before[1] >= self._lease_s:
                answer = await self._queue.expire_worker(worker, seen=count, max_lost=self._max_lost)
                if answer is not None:
                    log.warning("worker lost", extra={"worker": worker, "requeued": answer[0], "given_up": answer[1]})
                    lost.append(worker)
                    del self._seen[worker]
        return lost
