"""The steps of jobs: enqueue, exchange (settle and claim), cancel, those for rebuilds, lost workers, stopped functions.

Each is one atomic round trip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from shared.ids import from_short, short
from shared.queue import scripts
from shared.queue.attempts import ENQUEUED, CancelledWhere, Claim, Enqueued, Settle
from shared.queue.client import Client
from shared.queue.connection import redis_errors
from shared.queue.message import JobMessage, now_ms
from shared.queue.names import QUEUES, WORKERS

_MOST_STARTED = 500


class Steps(Client):
    """The part of :class:`shared.queue.queue.Queue` that moves jobs."""

    _max_backlog: int
    _user_max: int

    async def enqueue(self, queue: str, messages: Sequence[JobMessage]) -> list[Enqueued]:
        args: list[str | bytes] = []
        for message in messages:
            args += (str(message.id), message.encode())
        answer = await self._run(scripts.ENQUEUE, queue, self._max_backlog, now_ms(), *args)
        return [ENQUEUED[code] for code in answer]

    async def exchange(
        self, queue: str, worker: str, *, generation: str, want: int, kept: int = 0, settles: Sequence[Settle] = ()
    ) -> tuple[list[bool], list[Claim]]:
        """Settle ``settles`` and claim up to ``want`` jobs for ``worker``, which has joined ``generation``; the last
        ``kept`` of them only of users who have nothing running.

        :returns: one flag a settle, False where the epoch was stale and nothing changed; and the claims.
        """
        args: list[str | bytes | int] = [queue, worker, generation, want, kept, self._user_max, len(settles)]
        for settle in settles:
            args += (str(settle.id), settle.epoch, settle.verb.value, settle.record)
        settled, claimed = await self._run(scripts.EXCHANGE, *args)
        return [flag == 1 for flag in settled], _claims(claimed)

    async def cancel(
        self,
        queue: str,
        job: UUID,
        *,
        queued: tuple[str, str] = ("cancelled", ""),
        running: tuple[str, str] | None = ("cancelled", ""),
    ) -> CancelledWhere:
        """End ``job`` with the (status, reason) in ``queued`` or, if it runs, in ``running``; ``running=None`` lets a
        job that runs go on."""
        answer = await self._run(scripts.CANCEL, queue, str(job), *queued, *(running or ("", "")))
        return CancelledWhere(answer.decode())

    async def expire_worker(self, worker: str, *, seen: int, max_lost: int) -> tuple[int, int] | None:
        """Requeue the jobs that a silent worker ran, unless its heartbeat moved past ``seen``.

        :returns: (requeued, given up), or None if it beat.
        """
        requeued = given_up = 0
        for queue in QUEUES:
            answer = await self._run(scripts.EXPIRE_WORKER, queue, worker, seen, max_lost)
            if answer == -1:
                return None
            requeued, given_up = requeued + answer[0], given_up + answer[1]
        with redis_errors():
            await self.redis.hdel(WORKERS, worker)  # type: ignore[misc]
        return requeued, given_up

    async def register(self, queue: str, worker: str, claims: Sequence[Claim]) -> int:
        """Register the attempts that ``worker`` still runs with a queue that is being rebuilt; how many it took."""
        args: list[str | bytes | int] = []
        for claim in claims:
            args += (claim.id, claim.epoch, claim.raw, claim.claimed_ms)
        return int(await self._run(scripts.REGISTER, queue, worker, *args))

    async def held(self, queue: str, worker: str, *, generation: str) -> list[Claim]:
        """The attempts that ``worker`` runs as far as Redis knows, in the generation that the worker has joined."""
        answer = await self._run(scripts.HELD, queue, worker, generation)
        return _claims(answer)

    async def stop_function(self, function: UUID) -> None:
        """Have the jobs of a function wait; those that run go on."""
        await self._run(scripts.STOP, "invoke", short(function))

    async def start_function(self, function: UUID) -> bool:
        """Let the jobs of a function run again; False if some still wait: then call it again."""
        return int(await self._run(scripts.START, "invoke", short(function), _MOST_STARTED)) == 0

    async def stopped_functions(self) -> tuple[set[UUID], set[UUID]]:
        """The stopped functions, and those that were started again and still have parked jobs."""
        with redis_errors():
            pipe = self.redis.pipeline(transaction=False)
            pipe.smembers("cp:invoke:stopped")
            pipe.smembers("cp:invoke:starting")
            stopped, starting = await pipe.execute()
        return {from_short(one.decode()) for one in stopped}, {from_short(one.decode()) for one in starting}


def _claims(flat: Sequence[Any]) -> list[Claim]:
    return [
        Claim(id=flat[i].decode(), epoch=flat[i + 1].decode(), raw=flat[i + 2], claimed_ms=int(flat[i + 3] or 0))
        for i in range(0, len(flat), 4)
    ]
