"""The way of a job onto the queue: by Postgres when it is durable, straight to Redis when somebody waits for it.

Concurrent callers share commits and round trips.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from api.single_flight import SingleFlight
from shared.errors import ArtifactMissing, TooMany, Unavailable, Unreadable
from shared.jobs import Job
from shared.payload_store import PayloadStore
from shared.postgres.jobs import Jobs, Repetition
from shared.queue.coalesce import Coalescer
from shared.queue.message import JobMessage, message_of
from shared.queue.queue import Enqueued, Queue
from shared.queue.scripts import QueueClosed
from shared.sealing import Part

log = logging.getLogger(__name__)

MOST_IN_ONE_COMMIT = 500
CLOSED_RETRY_S = 0.1
DEPTH_S = 0.25
LOOK_S = 1.0
"""How long a call waits for what only might refuse it, where Redis hangs."""
DEPTHS_REMEMBERED = 10_000


class Acceptor:
    """Takes jobs in. Here their payloads are put where they are kept: neither Postgres nor Redis gets to see them.

    Every call raises ``Unavailable``, with nothing accepted, if a large payload cannot be put into the artifact store.

    :param patience_s: how long a synchronous call waits for a queue that is being rebuilt.
    :param max_queued: jobs of one user that may wait. :param keep_keys_s: how long an idempotency key is remembered.
    """

    def __init__(
        self,
        jobs: Jobs,
        queue: Queue,
        payload_store: PayloadStore,
        *,
        patience_s: float,
        max_queued: int,
        keep_keys_s: float,
    ) -> None:
        self._jobs = jobs
        self._queue = queue
        self._payload_store = payload_store
        self._patience_s = patience_s
        self._commit: Coalescer[JobMessage, None] = Coalescer(self._accept, most=MOST_IN_ONE_COMMIT, name="accept")
        self._send: Coalescer[JobMessage, Enqueued] = Coalescer(self._enqueue, most=MOST_IN_ONE_COMMIT, name="enqueue")
        self._later: set[asyncio.Task[None]] = set()
        self._max_queued = max_queued
        self._keep_keys_s = keep_keys_s
        self._depths: dict[UUID, tuple[float, int]] = {}  # until when it counts, and how many wait
        self._asked: SingleFlight[None] = SingleFlight()

    async def admit(self, user: UUID, count: int = 1) -> None:
        """Refuse a user whose queue has no room for ``count`` more. The depth is looked at a few times a second and
        counted on meanwhile; with Redis away nobody is refused.

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
        """Refuse a user who has as many jobs due later as may wait.

        :raises TooMany: saying so. :raises Unavailable: if Postgres cannot tell.
        """
        if await self._jobs.count_scheduled(user, most=self._max_queued) >= self._max_queued:
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

    async def accept(self, message: JobMessage) -> None:
        """Commit a durable job; it is accepted when this returns, whatever becomes of Redis.

        :raises Unavailable: if Postgres cannot take it. Nothing was accepted then, or it is not known.
        """
        await self._commit.submit(await self._kept(message))

    async def accept_many(self, messages: Sequence[JobMessage]) -> None:
        """Commit durable jobs together: all of them are accepted when this returns, or none.

        :raises Unavailable: as :meth:`accept`.
        """
        messages = [await self._kept(message) for message in messages]
        await self._jobs.accept(messages)
        self.hand_over(messages)

    async def redrive(self, user: UUID, repetitions: Sequence[Repetition]) -> Sequence[Job]:
        """Commit jobs that repeat failed ones, together; these. One that is repeated already is left out, and so is one
        whose payload cannot be read, while there are others.

        :raises Unavailable: as :meth:`accept`. :raises Unreadable: if no payload can be read.
        """
        payloads = await self._jobs.payloads(user, [one.of for one in repetitions])
        readable: list[Repetition] = []
        lost: Unavailable | None = None
        for one in repetitions:
            try:
                if one.of in payloads:
                    text = await self._payload_store.get(payloads[one.of], one.of, Part.PAYLOAD)
                    payload = await self._payload_store.put(text, one.id, Part.PAYLOAD)
                    readable.append(replace(one, payload=payload))
            except (Unreadable, ArtifactMissing) as error:
                log.warning("a job cannot be repeated", extra={"job": str(one.of), "error": error.message})
                error.extra["job_id"] = str(one.of)
                lost = error
        if lost is not None and not readable:
            raise lost
        accepted = await self._jobs.redrive(user, readable)
        if accepted:
            self.hand_over([message_of(job) for job in accepted])
        return accepted

    async def accept_later(self, message: JobMessage, run_at: datetime, *, counted: bool) -> None:
        """Commit a durable job that is due at ``run_at``; the scheduler puts it on the queue then.

        :param counted: as in :meth:`shared.postgres.jobs.Jobs.accept_later`. :raises Unavailable: as :meth:`accept`.
        """
        await self._jobs.accept_later(await self._kept(message), run_at, counted=counted)

    async def accept_once(
        self,
        message: JobMessage,
        *,
        key: str,
        fingerprint: bytes,
        run_at: datetime | None = None,
        counted: bool = False,
    ) -> UUID:
        """Commit a durable job, or find the one that was accepted under ``key`` before; its id.

        :raises Conflict: if the key stands for another call. :raises Unavailable: as :meth:`accept`.
        """
        message = await self._kept(message)
        job = await self._jobs.accept_once(
            message, key=key, fingerprint=fingerprint, keep_s=self._keep_keys_s, run_at=run_at, counted=counted
        )
        if job == message.id and run_at is None:
            self.hand_over([message])
        return job

    async def send(self, message: JobMessage) -> None:
        """Put a synchronous job on the queue.

        :raises Unavailable: if Redis is away, or records wait for Postgres past the bound.
        """
        message = await self._kept(message)
        deadline = asyncio.get_running_loop().time() + self._patience_s
        while True:
            try:
                answer = await self._send.submit(message)
                break
            except Unavailable as error:
                # The call may have arrived and only its answer been lost: take it back if that can be done.
                self.abandon(message)
                raise Unavailable(error.message, retry_after_s=1, extra={"may_have_run": True}) from error
            except QueueClosed as error:
                if asyncio.get_running_loop().time() >= deadline:
                    raise Unavailable("The queue is being rebuilt; try again.", retry_after_s=1) from error
                await asyncio.sleep(CLOSED_RETRY_S)
        if answer is Enqueued.BACKLOG:
            raise Unavailable("Records wait for Postgres; try again.", code="backlog", retry_after_s=1)

    def hand_over(self, messages: Sequence[JobMessage]) -> None:
        """Put committed jobs on the queue without anybody waiting; the reconciler does it if this fails."""
        self._hold(self._hand_over(messages))

    def _hold(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work, name="acceptor-later")
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def keep(self, message: JobMessage) -> None:
        """Make a job durable that went to the queue without Postgres; one whose record is there already stays as it is.

        :raises Unavailable: if Postgres cannot take it.
        """
        await self._jobs.accept([await self._kept(message)])

    def abandon(self, message: JobMessage) -> None:
        """Cancel a synchronous job whose caller went away."""
        self._hold(self._abandon(message))

    async def close(self) -> None:
        await self._commit.close()
        await self._send.close()
        if self._later:
            await asyncio.wait(self._later, timeout=5)

    async def _kept(self, message: JobMessage) -> JobMessage:
        payload = await self._payload_store.put(message.payload, message.id, Part.PAYLOAD)
        return message if payload is message.payload else replace(message, payload=payload)

    async def _accept(self, messages: list[JobMessage]) -> list[None]:
        await self._jobs.accept(messages)
        self.hand_over(messages)
        return [None] * len(messages)

    async def _enqueue(self, messages: list[JobMessage]) -> list[Enqueued]:
        return await self._queue.enqueue(messages[0].queue, messages)

    async def _hand_over(self, messages: Sequence[JobMessage]) -> None:
        try:
            await self._queue.enqueue(messages[0].queue, messages)
        except (Unavailable, QueueClosed) as error:
            log.warning("queue away; left to the reconciler", extra={"jobs": len(messages), "error": str(error)})

    async def _abandon(self, message: JobMessage) -> None:
        try:  # one that is only on its way to the queue is not let in any more
            await self._queue.cancel(message.queue, message.id)
        except (Unavailable, QueueClosed) as error:
            log.warning("an abandoned call was not cancelled", extra={"job": str(message.id), "error": str(error)})
