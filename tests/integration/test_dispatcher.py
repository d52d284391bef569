"""A worker's dispatcher on a real Redis: what it does with answers that got lost, attempts that break, shutdowns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from uuid import UUID

import pytest
from redis.asyncio import Redis

from scheduler.rebuild import Rebuild
from shared.embedded.redis import EmbeddedRedis
from shared.postgres.jobs import Jobs
from shared.postgres.pool import Pool
from shared.queue.connection import connect
from shared.queue.message import JobMessage
from shared.queue.queue import RECORDS, Claim, Queue
from shared.queue.records import Record
from tests.conservation import complaints
from tests.seeds import message, record
from worker.consume.dispatcher import POLL_S, Cleanup, Dispatcher

W = "worker-a"


class Work:
    """Attempts that end when they are told to."""

    def __init__(self) -> None:
        self.started: list[UUID] = []
        self.killed: list[UUID] = []
        self.may_end = asyncio.Event()
        self.error: Exception | None = None
        self.lost: set[UUID] = set()  # jobs whose first attempt is lost

    async def run(self, job: JobMessage, claim: Claim) -> tuple[Record, Cleanup]:
        self.started.append(job.id)
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.killed.append(job.id)
            raise
        if self.error is not None:
            raise self.error
        if job.id in self.lost and not job.lost:
            return record(job, epoch=claim.epoch, worker=W, status="queued", outcome="lost", lost=1), None
        return record(job, epoch=claim.epoch, worker=W), None


@asynccontextmanager
async def at_work(dispatcher: Dispatcher) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(dispatcher.work())
    try:
        yield task
    finally:
        dispatcher.drain()
        dispatcher.hand_back_all()
        async with asyncio.timeout(20):
            await task


async def until(condition: Callable[[], bool | Awaitable[bool]], within_s: float = 10) -> None:
    async with asyncio.timeout(within_s):
        while True:
            answer = condition()
            if await answer if isinstance(answer, Awaitable) else answer:
                return
            await asyncio.sleep(0.01)


async def records(redis: Redis) -> list[Record]:
    return [Record.decode(fields[b"r"]) for _, fields in await redis.xrange(RECORDS)]


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def dispatcher(queue: Queue, work: Work) -> Dispatcher:
    return Dispatcher(queue, "invoke", W, slots=2, run=work.run)


async def test_dispatcher_runs_no_more_than_its_slots(
    queue: Queue, dispatcher: Dispatcher, work: Work, redis: Redis
) -> None:
    await queue.enqueue("invoke", [message() for _ in range(5)])
    async with at_work(dispatcher):
        await until(lambda: len(work.started) == 2)
        assert dispatcher.busy == 2
        work.may_end.set()
        await until(lambda: dispatcher.settled == 5)
    assert len(await records(redis)) == 5


async def test_held_dispatcher_claims_nothing_and_settles_what_runs(
    queue: Queue, dispatcher: Dispatcher, work: Work, redis: Redis, pool: Pool
) -> None:
    first, second = message(), message()
    await queue.enqueue("invoke", [first])
    async with at_work(dispatcher):
        await until(lambda: work.started == [first.id])
        dispatcher.hold(True)
        await queue.enqueue("invoke", [second])
        work.may_end.set()
        await until(lambda: dispatcher.settled == 1)
        assert await queue.present("invoke", [first.id, second.id]) == [False, True]
        assert work.started == [first.id]
        dispatcher.hold(False)
        await until(lambda: dispatcher.settled == 2)
    assert work.started == [first.id, second.id]


async def test_attempt_whose_record_is_not_final_is_made_again(
    queue: Queue, dispatcher: Dispatcher, work: Work, redis: Redis, pool: Pool
) -> None:
    job = message()
    work.lost.add(job.id)
    await queue.enqueue("invoke", [job])
    work.may_end.set()
    async with at_work(dispatcher):
        await until(lambda: dispatcher.settled == 2)
    assert [(one.outcome, one.attempt, one.lost) for one in await records(redis)] == [
        ("lost", 1, 1),
        ("succeeded", 2, 1),
    ]
    assert await complaints(redis, pool) == []


async def test_claim_whose_answer_was_lost_is_handed_back(
    queue: Queue, dispatcher: Dispatcher, work: Work, redis: Redis, pool: Pool
) -> None:
    job = message()
    await queue.enqueue("invoke", [job])
    state = await queue.generation()
    assert state is not None
    await queue.exchange("invoke", W, generation=state[0], want=1)  # and its answer never arrives
    work.may_end.set()
    async with at_work(dispatcher):
        await until(lambda: work.started == [job.id])
    outcomes = [(one.outcome, one.attempt) for one in await records(redis)]
    assert outcomes == [("handed_back", 1), ("succeeded", 1)]


async def test_attempt_that_was_cancelled_while_nobody_listened_is_killed(
    queue: Queue, dispatcher: Dispatcher, work: Work, redis: Redis, pool: Pool
) -> None:
    job = message()
    await queue.enqueue("invoke", [job])
    async with at_work(dispatcher):
        await until(lambda: work.started == [job.id])
        await queue.cancel("invoke", job.id)  # the dispatcher has no push here
        dispatcher.look_again()
        await until(lambda: work.killed == [job.id])
        await until(lambda: dispatcher.settled == 1)
    told, noted = await records(redis)
    assert (told.status, told.outcome, told.worker, told.epoch) == ("cancelled", "cancelled", W, noted.epoch)
    assert (noted.status, noted.outcome, noted.started_ms) == ("running", "lost", told.started_ms)
    assert told.started_ms is not None
    assert told.queue_ms is not None
    assert told.total_ms is not None
    assert 0 <= told.total_ms - told.queue_ms == told.at_ms - told.started_ms


async def test_attempt_whose_lease_was_lost_settles_nothing(
    queue: Queue, dispatcher: Dispatcher, work: Work, redis: Redis
) -> None:
    job = message()
    await queue.enqueue("invoke", [job])
    async with at_work(dispatcher):
        await until(lambda: work.started == [job.id])
        dispatcher_saw = await queue.beats()
        await queue.expire_worker(W, seen=dispatcher_saw[W], max_lost=3)
        state = await queue.generation()
        assert state is not None
        _, claims = await queue.exchange("invoke", "worker-b", generation=state[0], want=1)
        assert [UUID(claim.id) for claim in claims] == [job.id]
        work.may_end.set()
        await until(lambda: dispatcher.busy == 0)
        await until(lambda: dispatcher.settled == 2)
    lost, noted = await records(redis)
    assert (lost.status, lost.outcome, lost.reason) == ("queued", "lost", None)
    # What it printed is told all the same; its result counts nowhere.
    assert (noted.status, noted.outcome, noted.epoch, noted.result) == ("running", "lost", lost.epoch, None)
    assert lost.started_ms is not None
    assert lost.total_ms is not None
    assert await queue.holders() == {"worker-b"}


async def test_attempt_that_breaks_ends_its_job_and_not_the_worker(
    queue: Queue, dispatcher: Dispatcher, work: Work, redis: Redis
) -> None:
    work.error = RuntimeError("a fault of ours")
    work.may_end.set()
    await queue.enqueue("invoke", [message()])
    async with at_work(dispatcher) as task:
        await until(lambda: dispatcher.settled == 1)
        assert not task.done()
    (left,) = await records(redis)
    assert (left.status, left.reason, left.attempt) == ("failed", "dependency_down", 1)
    assert b"a fault of ours" not in (left.error or b"")


async def test_unreadable_job_goes_back_unspent(
    queue: Queue, dispatcher: Dispatcher, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.consume.dispatcher.UNREADABLE_S", 0.01)
    job = message()
    await queue.enqueue("invoke", [job])
    raw = await redis.hget("cp:invoke:messages", str(job.id))  # type: ignore[misc]
    assert raw is not None
    await redis.hset("cp:invoke:messages", str(job.id), raw.replace(b" invoke ", b" juggle "))  # type: ignore[misc]
    async with at_work(dispatcher):
        await until(lambda: dispatcher.settled >= 2)
    assert {(one.outcome, one.attempt) for one in await records(redis)} == {("handed_back", 1)}
    assert await queue.present("invoke", [job.id]) == [True]


async def test_f23_unreadable_job_is_left_to_another_worker(
    queue: Queue, dispatcher: Dispatcher, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.consume.dispatcher.UNREADABLE_S", 0.01)
    monkeypatch.setattr("worker.consume.dispatcher.ASIDE_S", 60)
    job = message()
    await queue.enqueue("invoke", [job])
    await redis.hset("cp:invoke:messages", str(job.id), job.encode().replace(b"\n", b" of a later release\n", 1))  # type: ignore[misc]
    async with at_work(dispatcher):
        while not await records(redis):
            await asyncio.sleep(0.01)
        state = await queue.generation()
        assert state is not None
        _, claims = await queue.exchange("invoke", "worker-b", generation=state[0], want=1)
        assert [UUID(claim.id) for claim in claims] == [job.id]
        assert await queue.holders() == {"worker-b"}


async def test_f22_drain_lets_attempts_end_and_claims_nothing(
    queue: Queue, dispatcher: Dispatcher, work: Work, redis: Redis, pool: Pool
) -> None:
    await queue.enqueue("invoke", [message() for _ in range(3)])
    async with at_work(dispatcher) as task:
        await until(lambda: len(work.started) == 2)
        dispatcher.drain()
        work.may_end.set()
        async with asyncio.timeout(10):
            await task
    assert [one.outcome for one in await records(redis)] == ["succeeded", "succeeded"]
    assert await redis.hlen("cp:invoke:running") == 0  # type: ignore[misc]
    assert await redis.hlen("cp:invoke:messages") == 1  # type: ignore[misc]


async def test_f22_idle_dispatcher_that_drains_is_woken_no_more(
    queue: Queue, dispatcher: Dispatcher, redis: Redis
) -> None:
    async def listed() -> bool:
        return await redis.zscore("cp:invoke:idle", W) is not None

    async with at_work(dispatcher) as task:
        await until(listed)
        dispatcher.drain()
        async with asyncio.timeout(POLL_S / 2):  # nothing is left to wait for
            await task
        assert not await listed()


async def test_f22_idle_dispatcher_drains_while_the_queue_is_away(tmp_path: Path, work: Work, pool: Pool) -> None:
    async with (
        EmbeddedRedis(tmp_path / "redis") as server,
        aclosing(connect(server.url, timeout_s=2)) as client,
        aclosing(Queue(client)) as queue,
    ):
        await Rebuild(client, queue, Jobs(pool), pool, grace_s=0).run_once()
        dispatcher = Dispatcher(queue, "invoke", W, slots=2, run=work.run)

        async def listed() -> bool:
            return await client.zscore("cp:invoke:idle", W) is not None

        async with at_work(dispatcher) as task:
            await until(listed)
            await server.stop()
            dispatcher.drain()
            async with asyncio.timeout(POLL_S / 2):
                await task


async def test_f22_what_cannot_end_in_time_is_handed_back_unspent(
    queue: Queue, dispatcher: Dispatcher, work: Work, redis: Redis, pool: Pool
) -> None:
    await queue.enqueue("invoke", [message() for _ in range(2)])
    async with at_work(dispatcher):
        await until(lambda: len(work.started) == 2)
    assert sorted(work.killed) == sorted(work.started)
    assert [(one.outcome, one.attempt) for one in await records(redis)] == [("handed_back", 1)] * 2
    assert [line for line in await complaints(redis, pool) if "not open in Postgres" not in line] == []


async def test_emptied_redis_hears_of_running_attempts_even_if_every_slot_is_taken(
    queue: Queue, dispatcher: Dispatcher, work: Work, redis: Redis, pool: Pool
) -> None:
    await queue.enqueue("invoke", [message() for _ in range(2)])
    async with at_work(dispatcher):
        await until(lambda: len(work.started) == 2)
        await redis.flushall()
        rebuilding = asyncio.create_task(Rebuild(redis, queue, Jobs(pool), pool, grace_s=1).run_once())

        async def has_generation() -> bool:
            return await queue.generation() is not None

        await until(has_generation)
        dispatcher.look_again()  # what the push of the rebuild does
        await rebuilding
        assert await redis.hlen("cp:invoke:running") == 2  # type: ignore[misc]
        work.may_end.set()
        await until(lambda: dispatcher.settled == 2)
    assert [one.outcome for one in await records(redis)] == ["succeeded", "succeeded"]
    assert work.killed == []


async def test_shutdown_ends_also_when_redis_is_away(tmp_path: Path, pool: Pool, work: Work) -> None:
    async with (
        EmbeddedRedis(tmp_path / "redis") as server,
        connect(server.url, timeout_s=1) as client,
        aclosing(Queue(client)) as queue,
    ):
        await Rebuild(client, queue, Jobs(pool), pool, grace_s=0).run_once()
        await queue.enqueue("invoke", [message()])
        dispatcher = Dispatcher(queue, "invoke", W, slots=1, run=work.run)
        async with at_work(dispatcher) as task:
            await until(lambda: len(work.started) == 1)
            await server.stop()
            dispatcher.drain()
            dispatcher.hand_back_all()
            async with asyncio.timeout(15):
                await task
        assert len(work.killed) == 1
