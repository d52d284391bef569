"""Records on their way to Postgres: in batches, whatever dies on the way, each with one effect."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import pytest
from redis.asyncio import Redis

from shared.errors import Unavailable
from shared.jobs import JobStatus
from shared.postgres.jobs import Jobs
from shared.postgres.pool import Pool, close_pool, open_pool, postgres_errors
from shared.queue import drain as drain_module
from shared.queue.drain import BATCH, REJECTED, Drain
from shared.queue.message import JobMessage, now_ms
from shared.queue.queue import FINAL_CHANNEL, RECORDS, RECORDS_GROUP
from shared.queue.records import Record
from tests.seeds import accept, message, new_user, record


@pytest.fixture
def jobs(pool: Pool) -> Jobs:
    return Jobs(pool)


@pytest.fixture
async def drain(redis: Redis, jobs: Jobs) -> Drain:
    one = Drain(redis, jobs, consumer="one")
    assert await one.run_once() == 0  # makes the group
    return one


@pytest.fixture
async def user(pool: Pool) -> UUID:
    return await new_user(pool)


async def put(redis: Redis, *records: Record | bytes) -> None:
    for one in records:
        await redis.xadd(RECORDS, {"r": one if isinstance(one, bytes) else one.encode()})


async def row(pool: Pool, job: JobMessage) -> Any:
    return await pool.fetchrow("SELECT * FROM jobs WHERE id = $1", job.id)


async def attempts(pool: Pool, job: JobMessage) -> list[tuple[str, int]]:
    rows = await pool.fetch("SELECT outcome, attempt FROM invocations WHERE job_id = $1 ORDER BY epoch", job.id)
    return [(one["outcome"], one["attempt"]) for one in rows]


async def test_records_are_written_in_batches_and_the_stream_is_emptied(
    redis: Redis, drain: Drain, pool: Pool, user: UUID
) -> None:
    await put(redis, *(record(message(user), epoch=f"1-{n}") for n in range(BATCH + 10)))
    assert [await drain.run_once() for _ in range(3)] == [BATCH, 10, 0]
    assert await pool.fetchval("SELECT count(*) FROM jobs WHERE status = 'succeeded'") == BATCH + 10
    assert await drain.backlog() == 0
    assert (await redis.xpending(RECORDS, RECORDS_GROUP))["pending"] == 0


async def test_record_keeps_everything_to_the_byte(redis: Redis, drain: Drain, pool: Pool, user: UUID) -> None:
    job = message(user)
    printed = orjson.dumps([("stdout", "info", "ä\x00b"), ("stderr", "error", "x")])
    result = b'{"n":123456789012345678901234567890,"s":"\\u0000\\ud800"}'
    await put(redis, record(job, result=result, logs=printed, request={"path": "/ü"}, run_ms=1.5, exit_code=0))
    assert await drain.run_once() == 1
    assert (await row(pool, job))["result"] == result
    lines = await pool.fetch("SELECT stream, level, message FROM logs WHERE job_id = $1 ORDER BY seq", job.id)
    assert [tuple(line) for line in lines] == [("stdout", "info", "ä\\x00b"), ("stderr", "error", "x")]


async def test_duplicate_records_have_one_effect(redis: Redis, drain: Drain, pool: Pool, user: UUID) -> None:
    job = message(user)
    one = record(job, logs=orjson.dumps([("stdout", "info", "once")]))
    await put(redis, one, one)
    await drain.run_once()
    await put(redis, one)
    await drain.run_once()
    assert await attempts(pool, job) == [("succeeded", 1)]
    assert await pool.fetchval("SELECT count(*) FROM logs") == 1
    assert await pool.fetchval("SELECT count(*) FROM jobs") == 1


@pytest.mark.parametrize("together", [True, False])
async def test_attempts_that_arrive_out_of_order_only_move_a_job_forward(
    redis: Redis, drain: Drain, pool: Pool, user: UUID, together: bool
) -> None:
    job = message(user)
    await accept(pool, [job])
    lost = record(job, epoch="1-5", status=JobStatus.QUEUED, lost=1)
    lost_again = record(job, epoch="1-6", status=JobStatus.QUEUED, attempt=2, lost=2)
    done = record(job, epoch="2-1", attempt=3, lost=2)
    for one in (lost_again, lost, done, lost_again):
        await put(redis, one)
        if not together:
            await drain.run_once()
    await drain.run_once()
    found = await row(pool, job)
    assert (found["status"], found["attempt"], found["lost"], found["result"]) == ("succeeded", 3, 2, b"1")
    assert await attempts(pool, job) == [("lost", 1), ("lost", 2), ("succeeded", 3)]


@pytest.mark.parametrize("order", ["told first", "noted first", "at once"])
@pytest.mark.parametrize("outcome", ["cancelled", "lost"])
async def test_who_ended_an_attempt_and_who_ran_it_each_tell_what_they_know(
    redis: Redis, drain: Drain, pool: Pool, user: UUID, order: str, outcome: str
) -> None:
    job = message(user)
    await accept(pool, [job])
    reason = "worker_lost" if outcome == "lost" else None
    status = JobStatus.FAILED if outcome == "lost" else JobStatus.CANCELLED
    told = record(job, status=status, outcome=outcome, reason=reason, started_ms=1000, queue_ms=5, at_ms=3000)
    noted = replace(
        told, status=JobStatus.RUNNING, outcome="lost", reason=None, at_ms=3100, start_kind="warm", run_ms=7,
        timeout_ms=9, logs=orjson.dumps([("stdout", "info", "began")]), request={"method": "POST"},
    )  # fmt: skip
    records = [noted, told] if order == "noted first" else [told, noted]
    for one in records:
        await put(redis, one)
        if order != "at once":
            await drain.run_once()
    await drain.run_once()
    for one in records:  # again
        await put(redis, one)
        await drain.run_once()
    (left,) = await pool.fetch("SELECT * FROM invocations WHERE job_id = $1", job.id)
    assert (left["outcome"], left["reason"], left["started_at"].timestamp()) == (outcome, reason, 1)
    assert (left["start_kind"], left["queue_ms"], left["run_ms"], left["timeout_ms"]) == ("warm", 5, 7, 9)
    assert orjson.loads(left["request"]) == {"method": "POST"}
    assert await pool.fetchval("SELECT message FROM logs WHERE job_id = $1", job.id) == "began"
    found = await row(pool, job)
    assert (found["status"], found["reason"], found["run_ms"]) == (status, reason, None)
    assert found["finished_at"].timestamp() == 3


async def test_what_is_noted_of_an_attempt_leaves_its_job_alone(
    redis: Redis, drain: Drain, pool: Pool, user: UUID
) -> None:
    job, unknown = message(user), message(user)
    await accept(pool, [job])
    before = await row(pool, job)
    await put(redis, *(record(one, status=JobStatus.RUNNING, outcome="lost") for one in (job, unknown)))
    await drain.run_once()
    assert await row(pool, job) == before
    assert await row(pool, unknown) is None
    # Its worker was told nothing of a settle that was done: what that says counts.
    await put(redis, record(job))
    await drain.run_once()
    assert await attempts(pool, job) == [("succeeded", 1)]


async def test_lost_attempt_of_a_job_that_was_given_up_does_not_succeed_after_all(
    redis: Redis, drain: Drain, pool: Pool, user: UUID
) -> None:
    job = message(user)
    await put(redis, record(job, status=JobStatus.FAILED, outcome="lost", reason="worker_lost"))
    await drain.run_once()
    await put(redis, record(job))  # it told a rebuilt queue of it
    await drain.run_once()
    assert await attempts(pool, job) == [("lost", 1)]


@pytest.mark.parametrize("attempt", [3, 0])
async def test_attempt_that_was_handed_back_keeps_its_number_and_costs_its_job_nothing(
    redis: Redis, drain: Drain, pool: Pool, user: UUID, attempt: int
) -> None:
    job = message(user)
    await accept(pool, [job])
    await put(
        redis,
        record(job, status=JobStatus.QUEUED, outcome="handed_back", attempt=attempt, started_ms=1000, total_ms=2),
    )
    await drain.run_once()
    found = await row(pool, job)
    assert (found["status"], found["attempt"]) == ("queued", max(0, attempt - 1))
    assert (found["started_at"], found["total_ms"]) == (None, None)
    assert await attempts(pool, job) == [("handed_back", attempt)]


async def test_final_outcome_never_changes_afterwards(redis: Redis, drain: Drain, pool: Pool, user: UUID) -> None:
    job = message(user)
    await put(redis, record(job, epoch="1-5"))
    await drain.run_once()
    before = await row(pool, job)
    await put(redis, record(job, epoch="9-9", status=JobStatus.FAILED, attempt=2))
    await put(redis, record(job, epoch=None, status=JobStatus.CANCELLED, outcome=None))
    await drain.run_once()
    assert await row(pool, job) == before


async def test_record_that_comes_again_does_not_take_its_job_back(
    redis: Redis, drain: Drain, pool: Pool, user: UUID
) -> None:
    """Written by one whose acknowledgement was lost, and again by whoever took over."""
    job = message(user)
    await accept(pool, [job])
    retried = record(job, epoch="1-1", status=JobStatus.SCHEDULED, outcome="failed", run_at_ms=1)
    await put(redis, retried)
    await drain.run_once()
    (due,) = await Jobs(pool).fall_due(limit=10)
    assert due.id == job.id
    await put(redis, retried)
    await drain.run_once()
    assert (await row(pool, job))["status"] == "queued"
    assert await attempts(pool, job) == [("failed", 1)]


async def test_a_further_attempt_is_due_by_postgres_clock_whatever_its_workers_says(
    redis: Redis, drain: Drain, pool: Pool, user: UUID
) -> None:
    for skew_ms in (-3_600_000, 3_600_000):
        job, at_ms = message(user), now_ms() + skew_ms
        await accept(pool, [job])
        again = {"status": JobStatus.SCHEDULED, "outcome": "failed", "run_at_ms": at_ms + 5000}
        await put(redis, record(job, epoch="1-1", at_ms=at_ms, **again))
        await drain.run_once()
        left = await pool.fetchval("SELECT extract(epoch FROM run_at - now()) FROM jobs WHERE id = $1", job.id)
        assert 4 < left <= 5


async def test_stale_attempt_does_not_overwrite_a_later_one(redis: Redis, drain: Drain, pool: Pool, user: UUID) -> None:
    job = message(user)
    await accept(pool, [job])
    await put(redis, record(job, epoch="2-1", status=JobStatus.QUEUED, attempt=1, lost=1))
    await drain.run_once()
    # Settled in an older generation of the queue, whose Redis was emptied before the record got here.
    await put(redis, record(job, epoch="1-900", status=JobStatus.SUCCEEDED))
    await drain.run_once()
    assert (await row(pool, job))["status"] == "queued"


async def test_synchronous_job_meets_postgres_only_at_its_end(
    redis: Redis, drain: Drain, pool: Pool, user: UUID
) -> None:
    job = message(user, reply="api-1")
    await put(redis, record(job, epoch="1-1", status=JobStatus.QUEUED, lost=1))
    await drain.run_once()
    # Its payload is in Redis alone: a row would be an open job that nobody can run.
    assert await row(pool, job) is None
    assert await attempts(pool, job) == [("lost", 1)]
    await put(redis, record(job, epoch="1-2", attempt=2, lost=1))
    await drain.run_once()
    assert (await row(pool, job))["status"] == "succeeded"


async def test_payload_is_kept_of_a_failed_job_and_let_go_of_a_succeeded_one(
    redis: Redis, drain: Drain, pool: Pool, jobs: Jobs, user: UUID
) -> None:
    good, bad = message(user), message(user)
    await accept(pool, [good, bad])
    await put(redis, record(good), record(bad, status=JobStatus.FAILED))
    await drain.run_once()
    assert (await row(pool, good))["payload"] is None
    assert (await row(pool, bad))["payload"] == bad.payload


async def test_entries_of_a_dead_consumer_are_taken_over(
    redis: Redis, drain: Drain, jobs: Jobs, pool: Pool, user: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = message(user)
    await put(redis, record(job))
    await redis.xreadgroup(RECORDS_GROUP, "dead", {RECORDS: ">"})
    assert await drain.run_once() == 0
    assert await drain.take_over() == 0, "it may still be writing them"
    monkeypatch.setattr(drain_module, "STRANDED_MS", 0)
    assert await drain.take_over() == 1
    assert (await row(pool, job))["status"] == "succeeded"
    assert await drain.backlog() == 0


async def test_leaving_consumer_writes_what_it_had_read(redis: Redis, drain: Drain, pool: Pool, user: UUID) -> None:
    job = message(user)
    await put(redis, record(job))
    await redis.xreadgroup(RECORDS_GROUP, "one", {RECORDS: ">"})
    await drain.leave()
    assert (await row(pool, job))["status"] == "succeeded"
    assert await redis.xinfo_consumers(RECORDS, RECORDS_GROUP) == []


@pytest.mark.parametrize(
    "poison",
    [b"", b"null", b"[]\n", b"\xff\xfe", b'{"id":"x"}\n', b'{"id":1,"sizes":["a"]}\n'],
    ids=["empty", "null", "list", "binary", "short", "sizes"],
)
async def test_poison_is_put_aside_and_the_others_are_written(
    redis: Redis, drain: Drain, pool: Pool, user: UUID, poison: bytes
) -> None:
    good = [message(user) for _ in range(3)]
    await put(redis, record(good[0]), poison, record(good[1]), record(good[2]))
    assert await drain.run_once() == 4
    assert [(await row(pool, job))["status"] for job in good] == ["succeeded"] * 3
    assert [fields[b"r"] for _, fields in await redis.xrange(REJECTED)] == [poison]
    assert await drain.backlog() == 0


async def test_record_that_postgres_refuses_is_put_aside_once_with_poison_beside_it(
    redis: Redis, drain: Drain, pool: Pool, user: UUID
) -> None:
    good = [message(user) for _ in range(5)]
    odd = replace(record(message(user)), kind="juggle")  # refused, also without what it reports
    await put(redis, record(good[0]), b"poison", odd, *(record(job) for job in good[1:]))
    assert await drain.run_once() == 7
    assert [(await row(pool, job))["status"] for job in good] == ["succeeded"] * 5
    assert [fields[b"r"] for _, fields in await redis.xrange(REJECTED)] == [b"poison", odd.encode()]
    assert await drain.backlog() == 0


async def test_two_drains_share_the_stream_without_waiting_for_each_other(
    redis: Redis, drain: Drain, jobs: Jobs, pool: Pool, user: UUID
) -> None:
    other = Drain(redis, jobs, consumer="two")
    batch = [message(user) for _ in range(400)]
    # The same jobs in both orders, attempt by attempt, so that batches overlap in every row.
    await put(redis, *(record(job, epoch="1-1", status=JobStatus.QUEUED, lost=1) for job in batch))
    await put(redis, *(record(job, epoch="1-2", attempt=2, lost=1) for job in reversed(batch)))
    await put(redis, *(record(job, epoch="1-2", attempt=2, lost=1) for job in batch))

    async def work(one: Drain) -> None:
        while await one.run_once():
            pass

    async with asyncio.timeout(30):
        await asyncio.gather(work(drain), work(other))
    assert await pool.fetchval("SELECT count(*) FROM jobs WHERE status = 'succeeded' AND attempt = 2") == 400
    assert await pool.fetchval("SELECT count(*) FROM invocations") == 800
    assert await redis.exists(REJECTED) == 0


async def test_waiters_are_told_only_after_the_commit(redis: Redis, drain: Drain, pool: Pool, user: UUID) -> None:
    job = message(user)
    async with redis.pubsub() as pubsub, pool.acquire() as connection:
        await pubsub.subscribe(FINAL_CHANNEL)
        await pubsub.parse_response()
        await put(redis, record(job))
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("LOCK TABLE jobs IN SHARE ROW EXCLUSIVE MODE")
        writing = asyncio.create_task(drain.run_once())

        async def blocked() -> bool:
            return bool(await pool.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

        async with asyncio.timeout(10):
            while not await blocked():
                await asyncio.sleep(0.01)
        assert await pubsub.parse_response(block=False, timeout=0.05) is None
        assert await drain.backlog() == 1, "not acknowledged before the commit"
        await transaction.rollback()
        assert await writing == 1
        _, _, told = await pubsub.parse_response()
    assert told == str(job.id).encode()
    assert (await row(pool, job))["status"] == "succeeded"


async def test_each_record_that_is_written_is_told(
    redis: Redis, drain: Drain, user: UUID, jobs: Jobs, pool: Pool
) -> None:
    job, other = message(user), message(user)
    await accept(pool, [job, other])
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(FINAL_CHANNEL)
        await pubsub.parse_response()
        await put(redis, record(job, status=JobStatus.QUEUED, lost=1))
        await drain.run_once()
        await put(redis, record(other))
        await drain.run_once()
        # Also one that is not the end: its job may be due again, and a subscriber is to know when.
        assert [(await pubsub.parse_response())[2] for _ in range(2)] == [str(job.id).encode(), str(other.id).encode()]


@pytest.fixture
async def closed(database: str) -> Pool:
    """A pool to a Postgres that does not answer."""
    gone = await open_pool(database, size=1, timeout_s=5, name="test")
    await close_pool(gone)
    return gone


async def test_what_could_not_be_written_comes_first_when_postgres_is_back(
    redis: Redis, pool: Pool, closed: Pool, user: UUID
) -> None:
    class Switched:
        """A pool whose server goes away and comes back."""

        def __init__(self) -> None:
            self.now = closed

        def acquire(self) -> Any:
            return self.now.acquire()

    switched = Switched()
    drain = Drain(redis, Jobs(switched), consumer="one")
    await drain.run_once()
    await put(redis, *(record(message(user)) for _ in range(BATCH * 2)))
    with pytest.raises(Unavailable):
        await drain.run_once()
    with pytest.raises(Unavailable):
        await drain.run_once()
    assert (await redis.xpending(RECORDS, RECORDS_GROUP))["pending"] == BATCH, "read once, and not again and again"
    switched.now = pool
    assert [await drain.run_once() for _ in range(4)] == [BATCH, 0, BATCH, 0]
    assert await drain.backlog() == 0


async def test_written_up_to_tells_when_earlier_records_are_in(redis: Redis, drain: Drain, user: UUID) -> None:
    assert await drain.last() is None
    assert await drain.written_up_to(None)
    await put(redis, record(message(user)))
    last = await drain.last()
    assert not await drain.written_up_to(last)
    await drain.run_once()
    await put(redis, record(message(user)))
    assert await drain.written_up_to(last), "later ones do not count"


async def test_stream_that_vanished_is_read_again_from_its_start(
    redis: Redis, drain: Drain, pool: Pool, user: UUID
) -> None:
    await redis.flushall()
    job = message(user)
    await put(redis, record(job))
    assert await drain.run_once() == 0  # makes the group anew
    assert await drain.run_once() == 1
    assert (await row(pool, job))["status"] == "succeeded"


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.DeadlockDetectedError("deadlock detected"),
        asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress"),
    ],
    ids=["deadlock", "f13-broken-within-an-operation"],
)
async def test_what_may_succeed_another_time_is_no_reason_to_reject(error: Exception) -> None:
    with pytest.raises(Unavailable), postgres_errors():
        raise error


@pytest.mark.parametrize("fault", ["f23-lock-timeout", "table-away"])
async def test_a_fault_of_postgres_is_waited_out_and_no_record_is_put_aside(
    redis: Redis, pool: Pool, database: str, user: UUID, fault: str
) -> None:
    job = message(user)
    await accept(pool, [job])
    holder = await asyncpg.connect(database)
    name = await holder.fetchval("SELECT current_database()")
    await holder.execute(f"ALTER DATABASE {name} SET lock_timeout = '100ms'")
    own = await open_pool(database, size=1, timeout_s=5, name="drain")
    drain = Drain(redis, Jobs(own), consumer="patient")
    await drain.run_once()  # makes the group
    try:
        async with holder.transaction():
            if fault == "table-away":
                await holder.execute("ALTER TABLE invocations RENAME TO invocations_away")
                await holder.execute("COMMIT; BEGIN")
            else:
                await holder.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
            await put(redis, record(job, result=b"7"))
            with pytest.raises(Unavailable):
                await drain.run_once()
        if fault == "table-away":
            await holder.execute("ALTER TABLE invocations_away RENAME TO invocations")
        await drain.run_once()
        assert await redis.xlen(REJECTED) == 0
        assert (await row(pool, job))["result"] == b"7"
    finally:
        await holder.close()
        await close_pool(own)


async def test_attempt_that_succeeds_after_its_job_has_ended_by_another_one_was_lost(
    redis: Redis, drain: Drain, pool: Pool, user: UUID, jobs: Jobs
) -> None:
    durable, waited_for = message(user), message(user)
    await accept(pool, [durable])
    for job in (durable, waited_for):
        await put(redis, record(job, epoch="1-2"))
        await drain.run_once()
        await put(redis, record(job, epoch="1-1"), record(job, epoch="2-3"), record(job, epoch="1-2"))
        await drain.run_once()
        found = await pool.fetch("SELECT outcome FROM invocations WHERE job_id = $1 ORDER BY epoch", job.id)
        assert [one["outcome"] for one in found] == ["lost", "succeeded", "lost"]
