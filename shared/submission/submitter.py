"""The way of a job onto the queue: a durable job by way of Postgres, a synchronous one straight to Redis.

Concurrent callers share commits and round trips. The reconciler enqueues durable jobs that this code could not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from uuid import UUID

from shared.errors import ArtifactMissing, Unavailable, Unreadable
from shared.payload_store import PayloadStore
from shared.postgres.jobs import Jobs
from shared.postgres.submissions import Submissions
from shared.queue.coalesce import Coalescer
from shared.queue.message import JobMessage
from shared.queue.queue import Enqueued, Queue
from shared.queue.scripts import QueueClosed
from shared.sealing import Part
from shared.submission.submission import Submission

log = logging.getLogger(__name__)

MOST_IN_ONE_COMMIT = 500
CLOSED_RETRY_S = 0.1
_CLOSE_S = 5.0


class Submitter:
    """Accepts jobs. It seals and stores payloads before Postgres or Redis get them.

    Every call raises ``Unavailable``, with nothing accepted, if the artifact store does not take a large payload.

    :param patience_s: how long a synchronous call waits for a queue that is being rebuilt.
    """

    def __init__(
        self, submissions: Submissions, jobs: Jobs, queue: Queue, payload_store: PayloadStore, *, patience_s: float
    ) -> None:
        self._submissions = submissions
        self._jobs = jobs
        self._queue = queue
        self._payload_store = payload_store
        self._patience_s = patience_s
        self._commit: Coalescer[Submission, None] = Coalescer(self._insert, most=MOST_IN_ONE_COMMIT, name="accept")
        self._send: Coalescer[JobMessage, Enqueued] = Coalescer(self._enqueue, most=MOST_IN_ONE_COMMIT, name="enqueue")
        self._later: set[asyncio.Task[None]] = set()

    async def submit(self, submission: Submission) -> UUID:
        """Commit a durable job; it is accepted when this returns, even if Redis is away. If it is due later, the
        scheduler puts it on the queue then.

        :returns: the job's id; if its idempotency key was used before, the id of the job that has the key.
        :raises Conflict: if the key stands for another call.
        :raises Unavailable: if Postgres cannot take it. Nothing was accepted then, or it is not known.
        """
        stored = await self._stored(submission)
        if stored.idempotency is not None:
            job = await self._submissions.insert_once(stored)
            if job == stored.id and stored.run_at is None:
                self.hand_over([stored])
            return job
        if stored.run_at is None:
            await self._commit.submit(stored)
        else:
            await self._submissions.insert([stored])
        return stored.id

    async def submit_together(self, submissions: Sequence[Submission]) -> None:
        """Commit durable jobs without idempotency keys in one step: all of them are accepted when this returns, or
        none.

        :raises Unavailable: as :meth:`submit`.
        """
        stored = [await self._stored(submission) for submission in submissions]
        await self._submissions.insert(stored)
        self.hand_over([one for one in stored if one.run_at is None])

    async def redrive(self, user: UUID, repetitions: Sequence[Submission]) -> Sequence[Submission]:
        """Commit jobs that repeat failed ones, together; the committed ones. Fills in all that a job takes over from
        the one that it repeats. Leaves out a job that another one repeats already, and one whose payload cannot be
        read.

        :raises Unavailable: as :meth:`submit`. :raises Unreadable: if no payload can be read.
        """
        failed = await self._jobs.to_repeat(user, [one.redrive_of for one in repetitions if one.redrive_of])
        readable: list[Submission] = []
        lost: Unavailable | None = None
        for one in repetitions:
            old = failed.get(one.redrive_of) if one.redrive_of else None
            if old is None:
                continue
            try:
                # Sealed anew: a sealed text is bound to its job.
                text = await self._payload_store.get(old.payload, old.id, Part.PAYLOAD)
                again = one._replace(
                    payload=text,
                    priority=old.priority,
                    callback_url=old.callback_url,
                    chain_depth=old.chain_depth,
                )
                readable.append(await self._stored(again))
            except (Unreadable, ArtifactMissing) as error:
                log.warning("a job cannot be repeated", extra={"job": str(old.id), "error": error.message})
                error.extra["job_id"] = str(old.id)
                lost = error
        if lost is not None and not readable:
            raise lost
        accepted = await self._submissions.insert(readable) if readable else []
        self.hand_over(accepted)
        return accepted

    async def send(self, submission: Submission) -> None:
        """Put a synchronous job on the queue.

        :raises Unavailable: if Redis is away, or records wait for Postgres past the bound.
        """
        message = submission.message(await self._payload_store.put(submission.payload, submission.id, Part.PAYLOAD))
        deadline = asyncio.get_running_loop().time() + self._patience_s
        while True:
            try:
                answer = await self._send.submit(message)
                break
            except Unavailable as error:
                # The enqueue may have arrived and only its answer been lost: try to cancel the job.
                self.abandon(submission)
                raise Unavailable(error.message, retry_after_s=1, extra={"may_have_run": True}) from error
            except QueueClosed as error:
                if asyncio.get_running_loop().time() >= deadline:
                    raise Unavailable("The queue is being rebuilt; try again.", retry_after_s=1) from error
                await asyncio.sleep(CLOSED_RETRY_S)
        if answer is Enqueued.BACKLOG:
            raise Unavailable("Records wait for Postgres; try again.", code="backlog", retry_after_s=1)

    async def keep(self, submission: Submission) -> None:
        """Make a synchronous job durable: insert it into Postgres, unless the record of its end is there already.

        :raises Unavailable: if Postgres cannot take it.
        """
        await self._submissions.insert([await self._stored(submission)])

    def hand_over(self, submissions: Sequence[Submission]) -> None:
        """Put committed jobs of one queue there in the background; the reconciler does it if this fails."""
        if submissions:
            self._hold(self._hand_over([submission.message() for submission in submissions]))

    def abandon(self, submission: Submission) -> None:
        """Cancel a synchronous job whose caller went away."""
        self._hold(self._abandon(submission))

    async def close(self) -> None:
        await self._commit.close()
        await self._send.close()
        if self._later:
            await asyncio.wait(self._later, timeout=_CLOSE_S)

    async def _stored(self, submission: Submission) -> Submission:
        """``submission`` with its payload sealed and stored."""
        if not submission.payload:
            return submission
        payload = await self._payload_store.put(submission.payload, submission.id, Part.PAYLOAD)
        return submission if payload is submission.payload else submission._replace(payload=payload)

    def _hold(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work, name="submitter-later")
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def _insert(self, submissions: list[Submission]) -> list[None]:
        await self._submissions.insert(submissions)
        self.hand_over(submissions)
        return [None] * len(submissions)

    async def _enqueue(self, messages: list[JobMessage]) -> list[Enqueued]:
        return await self._queue.enqueue(messages[0].queue, messages)

    async def _hand_over(self, messages: Sequence[JobMessage]) -> None:
        try:
            await self._queue.enqueue(messages[0].queue, messages)
        except (Unavailable, QueueClosed) as error:
            log.warning("queue away; left to the reconciler", extra={"jobs": len(messages), "error": str(error)})

    async def _abandon(self, submission: Submission) -> None:
        try:  # a cancel that comes before its job's enqueue keeps the job off the queue
            await self._queue.cancel(submission.queue, submission.id)
        except (Unavailable, QueueClosed) as error:
            log.warning("an abandoned call was not cancelled", extra={"job": str(submission.id), "error": str(error)})
