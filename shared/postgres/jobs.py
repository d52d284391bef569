"""Jobs in Postgres: read for their users, for the scheduler and for workers; cancelled, expired, settled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from shared.chains import End
from shared.errors import Unavailable, Unreadable
from shared.ids import time_of
from shared.jobs import Job, JobKind, JobStatus, Missing
from shared.payload_store import PayloadStore, is_reference
from shared.postgres.completion_hooks import run_completion_hooks
from shared.postgres.pool import Pool, postgres_errors
from shared.postgres.queries import queries
from shared.postgres.settle import settle
from shared.queue.message import JobMessage
from shared.queue.records import Record
from shared.sealing import Keyring, Part

_SQL = queries("jobs")
_HOOKS = queries("completion_hooks")
HIGHEST_ID = UUID(int=(1 << 128) - 1)
LOWEST_ID = UUID(int=0)
_PAGE_BYTES = 16 * 1024 * 1024
LIST_BYTES = 4 * 1024 * 1024
"""What the results of jobs, or the output of attempts, may have together on one page of a list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Selects jobs; a field that is None matches all. ``first`` and ``last`` are bounds of ids."""

    function: UUID | None = None
    statuses: Sequence[str] | None = None
    among: Sequence[UUID] | None = None
    except_for: Sequence[UUID] | None = None
    reason: str | None = None
    first: UUID | None = None
    last: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeatable:
    """All that the repetition of a failed job takes over from it; ``payload`` is as stored."""

    id: UUID
    payload: bytes
    priority: int
    callback_url: str | None
    chain_depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """A stretch of an attempt's output. ``epoch`` is a number, as :func:`epoch_number` makes it."""

    epoch: int
    attempt: int
    stream: str
    level: str
    message: str


class Jobs:
    """:param texts: opens the results of jobs that a user reads; without, they pass as they are stored.
    :param keyring: in place of ``texts`` where there is no artifact store: opens what stands in Postgres.
    """

    def __init__(
        self, pool: Pool, payload_store: PayloadStore | None = None, *, keyring: Keyring | None = None
    ) -> None:
        self._pool = pool
        self._payload_store = payload_store
        self._keyring = keyring if payload_store is None else payload_store.keyring

    async def fall_due(self, *, limit: int) -> Sequence[Job]:
        """Move jobs whose time has come to ``queued``; these jobs, which the caller puts on the queue."""
        with postgres_errors():
            rows = await self._pool.fetch(_SQL["fall_due"], limit)
        return [_job(row) for row in rows]

    async def get(self, user: UUID, job: UUID) -> Job | None:
        """The user's job with result and error opened. If they cannot be opened they are None, and ``missing`` says
        why."""
        with postgres_errors():
            row = await self._pool.fetchrow(_SQL["job_of_user"], job, user)
        return None if row is None else await self._opened(_job(row))

    async def list(
        self,
        user: UUID,
        where: JobFilter,
        *,
        before: UUID = HIGHEST_ID,
        limit: int,
    ) -> tuple[Sequence[Job], bool]:
        """A page of jobs, newest first, opened as by :meth:`get` but for what is in the artifact store, and without
        payloads; and whether there are more. A page whose results are large is shorter than ``limit``."""
        asked = (where.function, where.statuses, where.among, where.except_for, where.reason)
        bounds = (where.first or LOWEST_ID, where.last or HIGHEST_ID)
        with postgres_errors():
            rows = await self._pool.fetch(_SQL["list_jobs"], user, before, *asked, limit + 1, LIST_BYTES, *bounds)
        more = bool(rows) and rows[0]["found"] > min(limit, len(rows))
        return [await self._opened(_job(row), in_list=True) for row in rows[:limit]], more

    async def _opened(self, job: Job, *, in_list: bool = False) -> Job:
        payload_store, keyring = self._payload_store, self._keyring
        if keyring is None:
            return job
        try:
            result = job.result and keyring.open(job.result, job.id, Part.RESULT)
            error = job.error and keyring.open(job.error, job.id, Part.ERROR)
            if result and is_reference(result):
                if in_list or payload_store is None:
                    return replace(job, result=None, missing=Missing.LARGE)
                result = await payload_store.get(result, job.id, Part.RESULT)
        except Unreadable:
            return replace(job, result=None, error=None, missing=Missing.UNREADABLE)
        except Unavailable:
            return replace(job, result=None, error=None, missing=Missing.AWAY)
        return job if result is job.result and error is job.error else replace(job, result=result, error=error)

    async def payload(self, job: UUID) -> bytes | None:
        """The payload of an accepted job, as Postgres has it now."""
        with postgres_errors():
            payload: bytes | None = await self._pool.fetchval(_SQL["payload_of_job"], job)
        return payload

    async def began_ms(self, job: UUID) -> float | None:
        """When the first attempt of a job began, in Unix milliseconds, by the records that Postgres has."""
        with postgres_errors():
            began: datetime | None = await self._pool.fetchval(_SQL["began"], time_of(job), job)
        return None if began is None else 1000 * began.timestamp()

    async def end_of(self, job: UUID) -> End | None:
        """How a job ended, sealed as it is stored; None if it was deleted."""
        with postgres_errors():
            row = await self._pool.fetchrow(_HOOKS["end_of_job"], job)
        return None if row is None else End(**dict(row))

    async def logs(self, job: UUID) -> Sequence[LogLine]:
        """The log lines of a job's attempts, in order."""
        with postgres_errors():
            rows = await self._pool.fetch(_SQL["logs_of_job"], time_of(job), job)
        keyring = self._keyring or Keyring()
        return [
            LogLine(
                epoch=row["epoch"],
                attempt=row["attempt"],
                stream=row["stream"],
                level=row["level"],
                message=keyring.shown(row["message"], job, Part.LOG) if row["sealed"] else row["message"],
            )
            for row in rows
        ]

    async def redrivable(
        self, user: UUID, *, function: UUID | None, reason: str | None, limit: int
    ) -> Sequence[tuple[UUID, UUID]]:
        """Failed invokes that no job repeats yet, oldest first, each with its function."""
        with postgres_errors():
            rows = await self._pool.fetch(_SQL["redrivable"], user, function, reason, limit)
        return [(row["id"], row["function_id"]) for row in rows]

    async def to_repeat(self, user: UUID, jobs: Sequence[UUID]) -> dict[UUID, Repeatable]:
        """Those of a user's jobs that failed and whose payload is kept."""
        with postgres_errors():
            rows = await self._pool.fetch(_SQL["to_repeat"], user, jobs)
        return {row["id"]: Repeatable(**dict(row)) for row in rows}

    async def repetition_of(self, job: UUID) -> UUID | None:
        """The job that repeats ``job``."""
        with postgres_errors():
            found: UUID | None = await self._pool.fetchval(_SQL["repetition_of"], job)
        return found

    async def cancel(self, job: UUID) -> bool:
        """Cancel a job that is on no queue; False if it ended or started before."""
        return await self._end("cancel_job", job)

    async def expired(self, *, after: UUID, limit: int) -> Sequence[tuple[UUID, JobKind]]:
        """A page of jobs that have not started by their ``expires_at``, in the order of their ids."""
        with postgres_errors():
            rows = await self._pool.fetch(_SQL["expired"], after, limit)
        return [(row["id"], JobKind(row["kind"])) for row in rows]

    async def expire(self, job: UUID) -> bool:
        """Fail a job that is on no queue and has not started by its ``expires_at``; False if it ended or started."""
        return await self._end("expire_job", job)

    async def _end(self, query: str, job: UUID) -> bool:
        """End a job by ``query``. The reconciler puts the jobs that follow it on the queue."""
        with postgres_errors():
            async with self._pool.acquire() as connection, connection.transaction():
                ended = await connection.fetchval(_SQL[query], job)
                if ended is not None:
                    await run_completion_hooks(connection, [ended])
        return ended is not None

    async def open_jobs(self, *, after: UUID, limit: int) -> Sequence[Job]:
        """A page of the jobs that are due and not final, in order of arrival, small enough to be held in memory."""
        with postgres_errors():
            rows = await self._pool.fetch(_SQL["open_jobs"], after, limit, _PAGE_BYTES)
        return [_job(row) for row in rows]

    async def open_of_function(self, function: UUID, *, limit: int) -> Sequence[UUID]:
        """Invoke jobs of a function that have not ended, the newest first."""
        with postgres_errors():
            rows = await self._pool.fetch(_SQL["open_of_function"], function, limit)
        return [row["id"] for row in rows]

    async def open_ids(self, *, after: UUID, limit: int, age_s: float) -> Sequence[tuple[UUID, JobKind]]:
        """A page of the same jobs without those younger than ``age_s``, as ids and kinds.

        Ages are by Postgres's clock; a job from its future does not count as young.
        """
        with postgres_errors():
            rows = await self._pool.fetch(_SQL["open_ids"], after, age_s, limit)
        return [(row["id"], JobKind(row["kind"])) for row in rows]

    async def settle(self, records: Sequence[Record]) -> Sequence[JobMessage]:
        """Write records of attempts; as :func:`shared.postgres.settle.settle`."""
        return await settle(self._pool, records)

    async def still_open(self, jobs: Sequence[UUID]) -> Sequence[Job]:
        with postgres_errors():
            rows = await self._pool.fetch(_SQL["still_open"], jobs)
        return [_job(row) for row in rows]


def _job(row: Any) -> Job:
    return Job(
        id=row["id"],
        kind=JobKind(row["kind"]),
        user_id=row["user_id"],
        function_id=row["function_id"],
        version_id=row["version_id"],
        version=row["version"],
        function_name=row.get("function_name"),
        status=JobStatus(row["status"]),
        reason=row["reason"],
        attempt=row["attempt"],
        lost=row["lost"],
        concurrency=row["concurrency"],
        payload=row["payload"],
        result=row["result"],
        error=row["error"],
        queue_ms=row["queue_ms"],
        sandbox_ms=row["sandbox_ms"],
        run_ms=row["run_ms"],
        total_ms=row["total_ms"],
        created_at=row["created_at"],
        run_at=row["run_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        priority=row["priority"],
        expires_at=row["expires_at"],
        redrive_of=row["redrive_of"],
        callback_url=row["callback_url"],
        chained_from=row["chained_from"],
        chain_refused=row["chain_refused"],
    )
