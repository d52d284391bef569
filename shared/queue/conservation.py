"""Conservation: every open job of Postgres is in exactly one place of the queue or due later, and no place holds
anything else.

Contradictions within the queue are found a page at a time, each page in one atomic step, so that nothing moves
meanwhile. A difference between Postgres and the queue may be a job on its way from one to the other. It is a finding
only if it is still there after all earlier records were written, and neither side has changed the job meanwhile.

Everything is read in pages, and the number of suspected jobs is bounded, so that a queue of any length can be checked
while it serves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import redis.exceptions
from redis.asyncio import Redis

from shared.errors import Unavailable
from shared.ids import from_short
from shared.jobs import JobKind
from shared.postgres.jobs import LOWEST_ID, Jobs
from shared.postgres.pool import Connection, Pool, postgres_errors
from shared.postgres.queries import queries
from shared.queue.connection import redis_errors
from shared.queue.drain import Drain
from shared.queue.message import queue_of
from shared.queue.queue import QUEUES, Queue
from shared.queue.scripts import INSPECT, QueueClosed

_SQL = queries("conservation")
_PAGE = 1000
_MESSAGES = 50
"""A page of messages: Redis copies them, and each may be as large as a request's body."""
_MOST = 10_000
_LOOK_S = 0.25
_RECORDS_BOUND_S = 30.0
_MISSING = "is open and not on the queue"
_UNKNOWN = "is on the queue and not open in Postgres"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Finding:
    """Something out of place. ``subject`` is a job's id, or ``user`` and an id."""

    queue: str
    subject: str
    what: str

    def __str__(self) -> str:
        return f"{self.subject} {self.what}"


@dataclass(slots=True, kw_only=True)
class Balance:
    """Counts of jobs by place, and the findings. ``cut``: there may be more findings than these."""

    open: int = 0
    later: int = 0
    running: int = 0
    waiting: int = 0
    parked: int = 0
    findings: set[Finding] = field(default_factory=set)
    cut: bool = False

    def add(self, findings: Iterable[Finding]) -> None:
        for one in findings:
            self.cut = self.cut or (len(self.findings) >= _MOST and one not in self.findings)
            if not self.cut:
                self.findings.add(one)


class Conservation:
    """:param database: a pool, or a connection. :param share: the part of its time that a check works; it rests for the
    remaining part."""

    def __init__(self, redis: Redis, queue: Queue, database: Pool | Connection, *, share: float = 1.0) -> None:
        self._redis = redis
        self._queue = queue
        self._database = database
        self._share = share
        self._records = Drain(redis, Jobs(database), consumer="conservation")

    async def run_once(self, *, patience_s: float = 10.0) -> Balance:
        """Check everything once, then check again, for at most ``patience_s``, the jobs that may only be on their way.

        :raises QueueClosed: while the queue is rebuilt. :raises Unavailable: also if records do not get written.
        """
        generation = await self._open_generation()
        balance = await self.look()
        doubtful = {one for one in balance.findings if one.what in (_MISSING, _UNKNOWN)}
        certain = balance.findings - doubtful
        balance.findings = certain | await self._still(doubtful, patience_s)
        if await self._open_generation() != generation:
            raise QueueClosed("the queue was rebuilt meanwhile")
        return balance

    async def look(self) -> Balance:
        """Check everything once. The findings may include jobs that moved meanwhile."""
        balance = Balance()
        for queue in QUEUES:
            await self._look_at_queue(queue, balance)
        await self._look_at_postgres(balance)
        return balance

    async def _look_at_queue(self, queue: str, balance: Balance) -> None:
        own = f"cp:{queue}:messages"
        async for _, _, durable, *counts in self._pages(queue, own, _MESSAGES, balance):
            balance.running += counts[0]
            balance.waiting += counts[1]
            balance.parked += counts[2]
            jobs = [UUID(job.decode()) for job in durable]
            known = await self._must_be_queued(jobs)
            balance.add(Finding(queue=queue, subject=str(job), what=_UNKNOWN) for job in jobs if job not in known)
        with redis_errors():
            async for key in self._redis.scan_iter(match=f"cp:{queue}:*", count=_PAGE):
                if key.decode() != own:
                    async for _ in self._pages(queue, key.decode(), _PAGE, balance):
                        pass

    async def _pages(self, queue: str, key: str, most: int, balance: Balance) -> AsyncIterator[list[Any]]:
        loop = asyncio.get_running_loop()
        cursor = b"0"
        while not balance.cut:
            started = loop.time()
            page = await self._inspect(queue, key, cursor, most)
            subjects = [part.decode() for part in page[1]]
            balance.add(
                Finding(queue=queue, subject=_subject(subject), what=what)
                for subject, what in zip(subjects[::2], subjects[1::2], strict=True)
            )
            yield page
            await self._rest(loop.time() - started)
            cursor = page[0]
            if cursor == b"0":
                return

    async def _inspect(self, queue: str, key: str, cursor: bytes, most: int) -> list[Any]:
        arguments = (queue, key, cursor, most)
        with redis_errors():
            try:
                page: list[Any] = await self._redis.evalsha(INSPECT.sha, 0, *arguments)  # type: ignore[misc, arg-type]
            except redis.exceptions.NoScriptError:
                page = await self._redis.eval(INSPECT.source, 0, *arguments)  # type: ignore[misc, arg-type]
        return page

    async def _look_at_postgres(self, balance: Balance) -> None:
        loop = asyncio.get_running_loop()
        after = LOWEST_ID
        while not balance.cut:
            started = loop.time()
            with postgres_errors():
                page = await self._database.fetch(_SQL["open_page"], after, _PAGE)
            waiting = [row for row in page if row["status"] != "scheduled"]
            balance.later += len(page) - len(waiting)
            balance.open += len(waiting)
            for queue in QUEUES:
                jobs = [row["id"] for row in waiting if queue_of(JobKind(row["kind"])) == queue]
                there = await self._present(queue, jobs)
                balance.add(Finding(queue=queue, subject=str(job), what=_MISSING) for job in jobs if job not in there)
            await self._rest(loop.time() - started)
            if len(page) < _PAGE:
                return
            after = page[-1]["id"]

    async def _present(self, queue: str, jobs: Sequence[UUID]) -> set[UUID]:
        """Those of ``jobs`` that are on the queue. Does not read their messages, which may be large."""
        if not jobs:
            return set()
        with redis_errors():
            pipe = self._redis.pipeline(transaction=False)
            for job in jobs:
                pipe.hexists(f"cp:{queue}:messages", str(job))
            flags = await pipe.execute()
        return {job for job, there in zip(jobs, flags, strict=True) if there}

    async def _still(self, doubtful: Collection[Finding], patience_s: float) -> set[Finding]:
        """Those of ``doubtful`` that stay exactly as they were."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience_s
        left = set(doubtful)
        before: dict[UUID, str] = {}
        while left:
            present: set[UUID] = set()
            for queue in QUEUES:
                present |= await self._present(queue, [UUID(one.subject) for one in left if one.queue == queue])
            # Once these records are in Postgres, so are all jobs that ended before that look.
            await self._records_written()
            now = await self._must_be_queued([UUID(one.subject) for one in left])
            left = {one for one in left if _stays(one, present, now, before)}
            if loop.time() >= deadline:
                break
            before = now
            await asyncio.sleep(_LOOK_S)
        return left

    async def _must_be_queued(self, jobs: Sequence[UUID]) -> dict[UUID, str]:
        """Those of ``jobs`` that are open and due in Postgres, each with a text that changes whenever the job moves."""
        if not jobs:
            return {}
        with postgres_errors():
            rows = await self._database.fetch(_SQL["must_be_queued"], jobs)
        return {row["id"]: row["moved"] for row in rows}

    async def _records_written(self) -> None:
        last = await self._records.last()
        deadline = asyncio.get_running_loop().time() + _RECORDS_BOUND_S
        while not await self._records.written_up_to(last):
            if asyncio.get_running_loop().time() > deadline:
                raise Unavailable("records wait for Postgres; until they are written, nothing can be compared")
            await asyncio.sleep(0.05)

    async def _open_generation(self) -> str:
        state = await self._queue.generation()
        if state is None or not state[1]:
            raise QueueClosed("the queue is being rebuilt")
        return state[0]

    async def _rest(self, took_s: float) -> None:
        if self._share < 1:
            await asyncio.sleep(took_s * (1 / self._share - 1))


def _subject(text: str) -> str:
    """A job's id, or a user's with the id in its long form: the queue has short names."""
    kind, space, name = text.rpartition(" ")
    try:
        return f"{kind}{space}{from_short(name)}" if space else text
    except ValueError:
        return text  # a damaged name is shown as it is


def _stays(one: Finding, present: Collection[UUID], now: Mapping[UUID, str], before: Mapping[UUID, str]) -> bool:
    """Whether a finding still holds, and its job has not moved since the look before."""
    job = UUID(one.subject)
    if one.what == _UNKNOWN:
        return job in present and job not in now
    return job not in present and job in now and before.get(job, now[job]) == now[job]
