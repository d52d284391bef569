"""What is dropped when, and what stays."""

from __future__ import annotations

import time
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import pytest

from scheduler.retention import Dropped, Kept, Retention
from shared.ids import lowest_id, new_id, time_of
from shared.jobs import JobStatus
from shared.jobview import job_view
from shared.postgres.jobs import Jobs
from shared.postgres.pool import Pool
from tests.seeds import accept, message, new_user, record

KEPT = Kept(result_days=7, redrive_days=14, record_days=90)
NOTHING = Dropped(**{one.name: 0 for one in fields(Dropped)})


def id_of(days_ago: float) -> UUID:
    """An id of a job that was accepted so long ago."""
    tail = new_id().int & ((1 << 80) - 1)
    return UUID(int=lowest_id(datetime.now(UTC) - timedelta(days=days_ago)).int | tail)


async def ended(pool: Pool, user: UUID, days_ago: float, status: str = JobStatus.SUCCEEDED, **fields: Any) -> UUID:
    """A job that ended so long ago, a moment after it was accepted."""
    job = message(user, id=id_of(days_ago))
    at_ms = time_of(job.id).timestamp() * 1000 + 5
    failed = {} if status == JobStatus.SUCCEEDED else {"error": b'{"message":"no"}', "payload": b'{"body":1}'}
    logs = orjson.dumps([("stdout", "info", "said")])
    await Jobs(pool).settle([record(job, status=status, at_ms=at_ms, logs=logs, **{**failed, **fields})])
    return job.id


@pytest.fixture
async def user(pool: Pool) -> UUID:
    return await new_user(pool)


async def content(pool: Pool, job: UUID) -> tuple[bool, ...] | None:
    """Whether there are payload, result and error; None without the job."""
    row = await pool.fetchrow(
        "SELECT payload IS NOT NULL, result IS NOT NULL, error IS NOT NULL FROM jobs WHERE id = $1", job
    )
    return None if row is None else tuple(row)


async def records(pool: Pool, job: UUID) -> tuple[int, int]:
    return (
        await pool.fetchval("SELECT count(*) FROM invocations WHERE job_id = $1", job),
        await pool.fetchval("SELECT count(*) FROM logs WHERE job_id = $1", job),
    )


async def test_results_go_before_payloads_and_jobs_go_last_with_their_records(pool: Pool, user: UUID) -> None:
    good = {days: await ended(pool, user, days) for days in (1, 6.9, 7.1, 89.9, 90.1)}
    bad = {days: await ended(pool, user, days, JobStatus.FAILED) for days in (1, 7.1, 13.9, 14.1, 89.9, 90.1)}
    dropped = await Retention(pool, KEPT).run_once()
    assert (dropped.results, dropped.payloads, dropped.jobs) == (8, 3, 2)
    assert (dropped.invocations, dropped.logs) == (2, 2)
    assert [await content(pool, job) for job in good.values()] == [
        *((False, True, False), (False, True, False), (False, False, False), (False, False, False)),
        None,
    ]
    assert [await content(pool, job) for job in bad.values()] == [
        *((True, False, True), (True, False, False), (True, False, False), (False, False, False)),
        *((False, False, False), None),
    ]
    for jobs in (good, bad):
        assert [await records(pool, job) for job in jobs.values()] == [(1, 1)] * (len(jobs) - 1) + [(0, 0)]
    assert await Retention(pool, KEPT).run_once() == NOTHING


async def test_a_job_says_that_what_it_ended_with_is_not_kept_any_more(pool: Pool, user: UUID) -> None:
    jobs = [
        await ended(pool, user, 8),
        await ended(pool, user, 8, JobStatus.FAILED),
        *[await ended(pool, user, days, JobStatus.FAILED, reason="expired", error=None) for days in (1, 8)],
        await ended(pool, user, 8, JobStatus.CANCELLED, error=None),
    ]

    async def missing() -> list[object]:
        found = [await Jobs(pool).get(user, job) for job in jobs]
        return [job_view(job)["missing"] for job in found if job is not None]

    assert await missing() == [None] * 5
    await Retention(pool, KEPT).run_once()
    assert await missing() == ["expired", "expired", None, None, None], "which never had an error"


async def test_a_job_that_did_not_end_is_kept_however_old(pool: Pool, user: UUID) -> None:
    jobs = Jobs(pool)
    waiting, late = message(user, id=id_of(200)), message(user, id=id_of(200))
    await accept(pool, [waiting, late])
    await pool.execute("UPDATE jobs SET status = 'scheduled', run_at = now() WHERE id = $1", late.id)
    assert await Retention(pool, KEPT).run_once() == NOTHING
    assert await content(pool, waiting.id) == await content(pool, late.id) == (True, False, False)
    # What waited for months counts from its end.
    await jobs.settle([record(waiting, status=JobStatus.FAILED, error=b"{}")])
    assert (await Retention(pool, KEPT).run_once()).jobs == 0
    assert await content(pool, waiting.id) == (True, False, True)


async def test_a_backlog_goes_in_portions(pool: Pool, user: UUID, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(7):
        await ended(pool, user, 100)
    monkeypatch.setattr("scheduler.retention._PORTIONS_A_TURN", 2)
    dropped = await Retention(pool, KEPT, portion=2).run_once()
    assert (dropped.jobs, dropped.logs) == (7, 7), "in two turns"
    assert await Retention(pool, KEPT, portion=2).run_once() == NOTHING


async def test_more_than_can_be_accepted_goes(pool: Pool, user: UUID) -> None:
    """A day at 4,000 a second is deleted faster than it came, and so are as many idempotency keys."""
    count = 60_000
    await pool.execute(
        """INSERT INTO jobs (id, kind, user_id, function_id, status, result, created_at, finished_at)
           SELECT (lpad(to_hex((extract(epoch FROM now() - interval '100 days') * 1000)::bigint + n), 12, '0')
                   || '7000800000000000' || lpad(to_hex(n % 65536), 4, '0'))::uuid,
                  'invoke', $1, $1, 'succeeded', '\\x31', now() - interval '100 days', now() - interval '100 days'
           FROM generate_series(1, $2) AS n""",
        user,
        count,
    )
    await pool.execute(
        """INSERT INTO idempotency_keys (user_id, key, fingerprint, job_id, expires_at)
           SELECT $1, n::text, '\\x00', $1, now() - interval '1 day' FROM generate_series(1, $2) AS n""",
        user,
        count,
    )
    began = time.monotonic()
    dropped = await Retention(pool, KEPT).run_once()
    assert (dropped.jobs, dropped.keys) == (count, count)
    assert 2 * count / (time.monotonic() - began) > 4_000


async def test_sessions_and_functions_that_nobody_can_use_again_go(pool: Pool, user: UUID) -> None:
    for name, expires, revoked in (("kept", 1, None), ("over", -2, None), ("ended", 1, -2), ("just", 1, -0.5)):
        await pool.execute(
            """INSERT INTO sessions (id, user_id, refresh_hash, expires_at, revoked_at)
               VALUES ($1, $2, $3, now() + $4 * interval '1 day', now() + $5 * interval '1 day')""",
            *(new_id(), user, name.encode(), float(expires), revoked),
        )
    functions = {name: new_id() for name in ("live", "young", "with_a_job", "gone")}
    days = {"live": None, "young": 80.0, "with_a_job": 100.0, "gone": 100.0}
    for name, function in functions.items():
        await pool.execute(
            """INSERT INTO functions (id, user_id, name, deleted_at)
               VALUES ($1, $2, $3, now() - $4 * interval '1 day')""",
            *(function, user, name, days[name]),
        )
    await accept(pool, [message(user, function_id=functions["with_a_job"])])
    dropped = await Retention(pool, KEPT).run_once()
    assert (dropped.sessions, dropped.functions) == (2, 1)
    left = await pool.fetch("SELECT convert_from(refresh_hash, 'UTF8') AS name FROM sessions")
    assert {row["name"] for row in left} == {"kept", "just"}
    assert {row["name"] for row in await pool.fetch("SELECT name FROM functions")} == {"live", "young", "with_a_job"}


async def test_months_that_are_over_go_as_a_whole(pool: Pool, user: UUID) -> None:
    first = (datetime.now(UTC) - timedelta(days=200)).date()
    await pool.execute("SELECT make_month_partitions($1, 3)", first)
    job = await ended(pool, user, 200)
    assert await records(pool, job) == (1, 1)
    dropped = await Retention(pool, KEPT).run_once()
    assert dropped.months >= 4, "those that are wholly over, of records and of logs"
    assert (dropped.jobs, dropped.invocations, dropped.logs) == (1, 0, 0)
    assert await records(pool, job) == (0, 0)
    left = {row[0] for row in await pool.fetch("SELECT relname FROM pg_class WHERE relname ~ '_\\d{4}_\\d{2}$'")}
    assert f"logs_{first:%Y_%m}" not in left
    assert f"logs_{datetime.now(UTC):%Y_%m}" in left


async def test_a_month_that_is_in_use_waits_for_the_next_run(pool: Pool, database: str) -> None:
    first = (datetime.now(UTC) - timedelta(days=200)).date()
    await pool.execute("SELECT make_month_partitions($1, 1)", first)
    other = await asyncpg.connect(database)
    try:
        async with other.transaction():
            await other.execute("SELECT count(*) FROM logs")
            assert (await Retention(pool, KEPT).run_once()).months == 1, "that of the invocations"
        assert (await Retention(pool, KEPT).run_once()).months == 1
    finally:
        await other.close()


async def test_what_is_to_be_dropped_is_found_by_an_index(pool: Pool, user: UUID) -> None:
    plan = await pool.fetch(
        "EXPLAIN SELECT id FROM jobs WHERE finished_at < now() - make_interval(secs => 1)"
        " AND (result IS NOT NULL OR error IS NOT NULL) ORDER BY finished_at LIMIT 10"
    )
    assert any("jobs_with_content" in row[0] for row in plan)
