"""Each step of the queue on a real Redis: what it moves, what it refuses, whom it wakes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from shared.errors import Unavailable
from shared.ids import new_id, short
from shared.jobs import JobKind, RunningAttempt
from shared.postgres.pool import Pool
from shared.queue import scripts
from shared.queue.message import JobMessage, now_ms
from shared.queue.queue import (
    GENERATION,
    RECORDS,
    WATCHED,
    WORKERS,
    CancelledWhere,
    Claim,
    Enqueued,
    Queue,
    Settle,
    Verb,
)
from shared.queue.records import Record
from shared.queue.scripts import QueueClosed
from tests.conservation import complaints
from tests.seeds import message, settle

W = "worker-a"

OtherQueue = Callable[..., Queue]


@pytest.fixture
async def other_queue(redis: Redis) -> AsyncIterator[OtherQueue]:
    """Makes clients of the same queue that have bounds of their own."""
    async with AsyncExitStack() as stack:

        def make(**bounds: int) -> Queue:
            made = Queue(redis, **bounds)
            stack.push_async_callback(made.aclose)
            return made

        yield make


async def generation(queue: Queue) -> str:
    state = await queue.generation()
    assert state is not None
    return state[0]


async def claim(queue: Queue, want: int = 1, worker: str = W) -> list[Claim]:
    _, claims = await queue.exchange("invoke", worker, generation=await generation(queue), want=want)
    return claims


async def end(queue: Queue, *settles: Settle, worker: str = W) -> list[bool]:
    flags, _ = await queue.exchange("invoke", worker, generation=await generation(queue), want=0, settles=settles)
    return flags


async def records(redis: Redis) -> list[Record]:
    return [Record.decode(fields[b"r"]) for _, fields in await redis.xrange(RECORDS)]


async def conserved(redis: Redis, pool: Pool) -> None:
    """The queue's own books balance; these jobs were never in Postgres."""
    found = [line for line in await complaints(redis, pool) if "not open in Postgres" not in line]
    assert found == []


@asynccontextmanager
async def listening(redis: Redis, *channels: str) -> AsyncIterator[asyncio.Queue[tuple[str, bytes]]]:
    """What is published on ``channels`` from here on."""
    heard: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(*channels)
        for _ in channels:
            await pubsub.parse_response()

        async def listen() -> None:
            while True:
                answer = await pubsub.parse_response()
                heard.put_nowait((answer[1].decode(), answer[2]))

        task = asyncio.create_task(listen())
        try:
            yield heard
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_enqueue_twice_leaves_one_job(queue: Queue, redis: Redis, pool: Pool) -> None:
    job = message()
    assert await queue.enqueue("invoke", [job]) == [Enqueued.QUEUED]
    assert await queue.enqueue("invoke", [job, job]) == [Enqueued.THERE, Enqueued.THERE]
    assert [one.id for one in await claim(queue, 5)] == [str(job.id)]
    assert await queue.enqueue("invoke", [job]) == [Enqueued.THERE]
    assert await claim(queue, 5) == []
    await conserved(redis, pool)


async def test_f19_same_job_delivered_ten_times_runs_once_even_after_its_end(queue: Queue) -> None:
    job = message()
    runs = 0
    for _ in range(10):
        await queue.enqueue("invoke", [job])
        for one in await claim(queue):
            runs += 1
            assert await end(queue, settle(one)) == [True]
    assert runs == 1


async def test_claim_carries_the_message_verbatim(queue: Queue) -> None:
    job = message(payload='{"body":"ä\\u0000 12345678901234567890123"}'.encode())
    await queue.enqueue("invoke", [job])
    (one,) = await claim(queue)
    assert one.decode() == job


async def test_users_take_turns_whatever_each_has_queued(queue: Queue) -> None:
    many, few = uuid4(), uuid4()
    await queue.enqueue("invoke", [message(many) for _ in range(20)])
    late = [message(few), message(few)]
    await queue.enqueue("invoke", late)
    users = [one.decode().user_id for one in await claim(queue, 5)]
    assert users == [many, few, many, few, many]


async def test_jobs_of_one_user_come_in_order_of_arrival(queue: Queue) -> None:
    user = uuid4()
    jobs = []
    for _ in range(5):
        jobs.append(message(user))
        await asyncio.sleep(0.002)  # ids order by millisecond
    await queue.enqueue("invoke", jobs[::-1])
    assert [UUID(one.id) for one in await claim(queue, 5)] == [job.id for job in jobs]


async def test_user_limit_holds_over_workers_and_an_end_makes_room(
    redis: Redis, queue: Queue, pool: Pool, other_queue: OtherQueue
) -> None:
    narrow = other_queue(max_running_per_user=2)
    user = uuid4()
    await narrow.enqueue("invoke", [message(user) for _ in range(4)])
    first = await claim(narrow, 1, "worker-a") + await claim(narrow, 5, "worker-b")
    assert len(first) == 2
    assert await claim(narrow, 5, "worker-c") == []
    await end(narrow, settle(first[0]))
    assert len(await claim(narrow, 5, "worker-c")) == 1
    await conserved(redis, pool)


async def test_user_at_the_limit_holds_up_nobody_else(queue: Queue, other_queue: OtherQueue) -> None:
    narrow = other_queue(max_running_per_user=1)
    busy, other = uuid4(), uuid4()
    await narrow.enqueue("invoke", [message(busy) for _ in range(3)])
    assert len(await claim(narrow, 3)) == 1
    await narrow.enqueue("invoke", [message(other)])
    assert [one.decode().user_id for one in await claim(narrow, 3)] == [other]


async def claim_keeping(queue: Queue, want: int, kept: int, worker: str = W) -> list[Claim]:
    _, claims = await queue.exchange("invoke", worker, generation=await generation(queue), want=want, kept=kept)
    return claims


async def test_q2_kept_slot_goes_only_to_users_with_nothing_running(redis: Redis, queue: Queue, pool: Pool) -> None:
    flood, other = uuid4(), uuid4()
    await queue.enqueue("invoke", [message(flood) for _ in range(20)])
    assert len(await claim_keeping(queue, 5, 1)) == 4
    assert await claim_keeping(queue, 1, 1) == []
    await queue.enqueue("invoke", [message(other), message(other)])
    first = await claim_keeping(queue, 1, 1)
    assert [one.decode().user_id for one in first] == [other]
    assert await claim_keeping(queue, 1, 1) == []  # now it has something running, as the flood has
    await conserved(redis, pool)
    # At its turn among all users it gets a slot that is nobody's in particular.
    assert [one.decode().user_id for one in await claim_keeping(queue, 3, 1)] == [flood, other]
    await end(queue, settle(first[0]))
    await conserved(redis, pool)


async def test_q2_one_user_alone_may_fill_a_worker_of_its_slots_but_the_kept_one(queue: Queue) -> None:
    await queue.enqueue("invoke", [message(uuid4())])
    assert len(await claim_keeping(queue, 1, 1)) == 1


async def test_q2_worker_with_only_its_kept_slot_is_woken_for_newcomers_alone(queue: Queue, redis: Redis) -> None:
    async with listening(redis, "cp:worker:spare", "cp:worker:idle") as heard:
        flood, other = uuid4(), uuid4()
        await queue.enqueue("invoke", [message(flood)])
        assert len(await claim_keeping(queue, 2, 1, "spare")) == 1
        await queue.enqueue("invoke", [message(flood)])
        # Whatever was published for the flood's second job would be heard before this marker.
        await redis.publish("cp:worker:spare", b"marker")
        assert await asyncio.wait_for(heard.get(), 5) == ("cp:worker:spare", b"marker")
        await queue.enqueue("invoke", [message(other)])
        assert await asyncio.wait_for(heard.get(), 5) == ("cp:worker:spare", b"wake invoke")


async def test_draining_worker_is_not_woken_in_the_place_of_another(queue: Queue, redis: Redis) -> None:
    async with listening(redis, "cp:worker:busy", "cp:worker:draining") as heard:
        assert await claim(queue, 1, "busy") == []
        assert await claim(queue, 1, "draining") == []
        assert await claim(queue, 0, "draining") == []
        await queue.enqueue("invoke", [message()])
        assert (await asyncio.wait_for(heard.get(), 5))[0] == "cp:worker:busy"


async def test_function_over_its_limit_parks_and_releases_in_order(queue: Queue, redis: Redis, pool: Pool) -> None:
    user, function = uuid4(), uuid4()
    jobs = []
    for _ in range(4):
        jobs.append(message(user, function=function, concurrency=2))
        await asyncio.sleep(0.002)
    await queue.enqueue("invoke", jobs)
    running = await claim(queue, 5)
    assert [UUID(one.id) for one in running] == [job.id for job in jobs[:2]]
    assert await redis.zcard(f"cp:invoke:parked:{short(function)}") == 2
    await conserved(redis, pool)
    await end(queue, settle(running[1]))
    (third,) = await claim(queue, 5)
    assert UUID(third.id) == jobs[2].id
    await end(queue, settle(running[0]), settle(third))
    (fourth,) = await claim(queue, 5)
    assert UUID(fourth.id) == jobs[3].id
    await end(queue, settle(fourth))
    await conserved(redis, pool)
    assert await redis.keys("cp:invoke:[aup]*:*") == []


async def test_settle_with_a_stale_epoch_changes_nothing(queue: Queue, redis: Redis, pool: Pool) -> None:
    await queue.enqueue("invoke", [message()])
    (one,) = await claim(queue)
    assert await queue.expire_worker(W, seen=0, max_lost=3) == (1, 0)
    (again,) = await claim(queue, worker="worker-b")
    before = len(await records(redis))
    assert await end(queue, settle(one)) == [False]
    assert await end(queue, settle(one, Verb.HAND_BACK)) == [False]
    assert len(await records(redis)) == before
    assert await end(queue, settle(again), worker="worker-b") == [True]
    assert await end(queue, settle(again), worker="worker-b") == [False]
    await conserved(redis, pool)


async def test_epoch_that_is_a_prefix_of_the_current_one_is_stale(queue: Queue, redis: Redis) -> None:
    await redis.set("cp:epoch", 9)
    await queue.enqueue("invoke", [message()])
    (one,) = await claim(queue)
    assert one.epoch.endswith("-10")
    prefix = Claim(id=one.id, epoch=one.epoch[:-1], raw=one.raw)
    assert await end(queue, settle(prefix)) == [False]


async def test_hand_back_costs_no_attempt_and_is_recorded(queue: Queue, redis: Redis, pool: Pool) -> None:
    await queue.enqueue("invoke", [message()])
    (one,) = await claim(queue)
    assert await end(queue, settle(one, Verb.HAND_BACK)) == [True]
    (again,) = await claim(queue)
    assert (again.decode().attempt, again.decode().lost) == (1, 0)
    assert again.epoch != one.epoch
    (left,) = await records(redis)
    assert (left.status, left.outcome, left.attempt) == ("queued", "handed_back", 1)
    await conserved(redis, pool)


async def test_attempt_that_died_with_what_ran_it_counts_and_the_job_comes_again(
    queue: Queue, redis: Redis, pool: Pool
) -> None:
    job = message(concurrency=1)
    await queue.enqueue("invoke", [job, message(job.user_id, function=job.function_id, concurrency=1)])
    (one,) = await claim(queue)
    assert await end(queue, settle(one, Verb.LOSE, status="queued", outcome="lost", lost=1)) == [True]
    await conserved(redis, pool)
    (again,) = await claim(queue)
    assert (again.id, again.decode().attempt, again.decode().lost) == (one.id, 2, 1)
    assert again.decode().payload == job.payload
    assert await end(queue, settle(one, Verb.LOSE, status="queued", outcome="lost")) == [False], "the epoch is stale"
    (left,) = await records(redis)
    assert (left.status, left.outcome, left.attempt, left.lost) == ("queued", "lost", 1, 1)
    await conserved(redis, pool)


async def test_cancel_of_a_queued_job_ends_it_and_says_it_never_ran(queue: Queue, redis: Redis, pool: Pool) -> None:
    job = message()
    await queue.enqueue("invoke", [job])
    assert await queue.cancel("invoke", job.id) is CancelledWhere.QUEUED
    assert await claim(queue) == []
    (left,) = await records(redis)
    assert (left.id, left.status, left.outcome, left.attempt) == (job.id, "cancelled", None, 0)
    assert await queue.cancel("invoke", job.id) is CancelledWhere.ENDED
    await conserved(redis, pool)


async def test_a_job_that_is_cancelled_on_its_way_to_the_queue_is_not_let_in(queue: Queue, redis: Redis) -> None:
    job = message()
    assert await queue.cancel("invoke", job.id) is CancelledWhere.ABSENT
    assert await queue.enqueue("invoke", [job]) == [Enqueued.THERE]
    assert await claim(queue) == []
    assert await records(redis) == [], "Postgres is told by whoever cancelled"
    # If Postgres could not be told, the job goes on being open, and is let in again a minute later.
    await redis.zadd("cp:invoke:ended", {str(job.id): now_ms() - 61_000})
    assert await queue.enqueue("invoke", [job]) == [Enqueued.QUEUED]


async def test_nothing_is_absent_from_a_queue_that_is_not_whole_yet(queue: Queue, redis: Redis) -> None:
    job = message()
    await redis.hset(GENERATION, "open", "0")  # type: ignore[misc]
    with pytest.raises(QueueClosed):
        await queue.cancel("invoke", job.id)
    await redis.hset(GENERATION, "open", "1")  # type: ignore[misc]
    assert await queue.enqueue("invoke", [job]) == [Enqueued.QUEUED]


async def test_a_cancel_may_spare_what_runs(queue: Queue, redis: Redis, pool: Pool) -> None:
    jobs = [message(), message()]
    await queue.enqueue("invoke", jobs)
    (one,) = await claim(queue, want=1)
    answers = [await queue.cancel("invoke", job.id, queued=("failed", "expired"), running=None) for job in jobs]
    assert sorted(answers) == [CancelledWhere.QUEUED, CancelledWhere.RUNNING]
    assert await end(queue, settle(one)) == [True]
    await conserved(redis, pool)


async def test_a_durable_job_that_nobody_took_in_time_has_expired(queue: Queue, redis: Redis, pool: Pool) -> None:
    job = message(deadline_ms=1)
    await queue.enqueue("invoke", [job])
    assert await claim(queue) == []
    (left,) = await records(redis)
    assert (left.id, left.status, left.reason, left.outcome) == (job.id, "failed", "expired", None)
    await conserved(redis, pool)


async def test_call_that_was_cancelled_on_its_way_to_the_queue_is_not_let_in(queue: Queue) -> None:
    call = message(reply="api-1")
    assert await queue.cancel("invoke", call.id) is CancelledWhere.ABSENT
    assert await queue.enqueue("invoke", [call]) == [Enqueued.THERE]
    assert await claim(queue) == []


async def test_subscribers_are_remembered_by_the_clock_of_redis(queue: Queue, redis: Redis) -> None:
    job = uuid4()
    await queue.subscribe("invoke", [job])
    seconds, _ = await redis.time()
    until = await redis.zscore(WATCHED, str(job))
    assert until is not None
    assert 55 <= until - seconds <= 60


async def test_cancel_of_a_parked_job_leaves_the_running_one_alone(queue: Queue, redis: Redis, pool: Pool) -> None:
    user, function = uuid4(), uuid4()
    jobs = [message(user, function=function, concurrency=1) for _ in range(2)]
    await queue.enqueue("invoke", jobs)
    (one,) = await claim(queue, 5)
    parked = next(job for job in jobs if str(job.id) != one.id)
    assert await queue.cancel("invoke", parked.id) is CancelledWhere.QUEUED
    await conserved(redis, pool)
    assert await end(queue, settle(one)) == [True]
    assert await claim(queue, 5) == []


async def test_parked_jobs_are_let_run_by_their_own_limit_and_none_stays_behind(
    queue: Queue, redis: Redis, pool: Pool
) -> None:
    user, function = uuid4(), uuid4()

    def of(limit: int, count: int) -> list[JobMessage]:
        return [message(user, function=function, concurrency=limit) for _ in range(count)]

    one, free, two = of(1, 2), of(0, 3), of(2, 2)
    await queue.stop_function(function)
    await queue.enqueue("invoke", [*one, *free, *two])
    assert await queue.start_function(function)
    started: list[UUID] = []
    for _ in range(20):
        claims = await claim(queue, 10)
        started += [UUID(one.id) for one in claims]
        limits = [one.decode().concurrency for one in claims]
        assert limits.count(1) <= 1
        assert limits.count(2) <= 2
        await conserved(redis, pool)
        if not claims:
            break
        for each in claims:
            await end(queue, settle(each))
    assert sorted(started) == sorted(job.id for job in (*one, *free, *two))
    assert await redis.keys("cp:invoke:[aup]*:*") == []


async def test_cancel_of_an_admitted_job_releases_a_parked_one_and_wakes_for_it(queue: Queue, redis: Redis) -> None:
    user, function = uuid4(), uuid4()
    jobs = [message(user, function=function, concurrency=1) for _ in range(2)]
    await queue.enqueue("invoke", jobs[:1])
    await queue.enqueue("invoke", jobs[1:])
    await redis.zadd("cp:invoke:idle", {W: 1})
    async with listening(redis, f"cp:worker:{W}") as heard:
        await queue.cancel("invoke", jobs[0].id)
        assert await asyncio.wait_for(heard.get(), 5) == (f"cp:worker:{W}", b"wake invoke")
    assert [UUID(one.id) for one in await claim(queue, 5)] == [jobs[1].id]


async def test_cancel_of_a_running_job_tells_its_worker_and_refuses_its_settle(
    queue: Queue, redis: Redis, pool: Pool
) -> None:
    job = message(reply="api-1")
    await queue.enqueue("invoke", [job])
    (one,) = await claim(queue)
    async with listening(redis, f"cp:worker:{W}", "cp:reply:api-1") as heard:
        answer = await queue.cancel("invoke", job.id, running=("failed", "queue_timeout"))
        assert answer is CancelledWhere.RUNNING
        told = dict([await asyncio.wait_for(heard.get(), 5) for _ in range(2)])
    assert told[f"cp:worker:{W}"] == f"cancel {job.id} {one.epoch}".encode()
    reply = Record.decode(told["cp:reply:api-1"])
    assert (reply.status, reply.reason, reply.outcome, reply.epoch) == (
        "failed",
        "queue_timeout",
        "cancelled",
        one.epoch,
    )
    assert await end(queue, settle(one)) == [False]
    await conserved(redis, pool)


async def test_job_past_its_deadline_is_dropped_with_a_record_and_a_reply(
    queue: Queue, redis: Redis, pool: Pool
) -> None:
    job = message(reply="api-1", deadline_ms=1)
    await queue.enqueue("invoke", [job])
    async with listening(redis, "cp:reply:api-1") as heard:
        assert await claim(queue) == []
        _, reply = await asyncio.wait_for(heard.get(), 5)
    (left,) = await records(redis)
    assert left == Record.decode(reply)
    assert (left.id, left.status, left.reason, left.outcome, left.attempt) == (
        job.id,
        "failed",
        "queue_timeout",
        None,
        0,
    )
    await conserved(redis, pool)


@pytest.mark.parametrize("ahead_ms", [3_600_000, -3_600_000])
async def test_f18_a_caller_waits_as_long_as_it_said_by_whatever_clock(queue: Queue, ahead_ms: int) -> None:
    now = now_ms() + ahead_ms
    waiting, over = (message(reply="api-1", deadline_ms=now + left_ms) for left_ms in (60_000, -60_000))
    for job in (waiting, over):
        await queue._run(scripts.ENQUEUE, "invoke", 100, now, str(job.id), job.encode())
    assert [UUID(one.id) for one in await claim(queue, 5)] == [waiting.id]


async def test_many_expired_jobs_do_not_hide_a_live_one(queue: Queue) -> None:
    user = uuid4()
    for _ in range(3):
        await queue.enqueue("invoke", [message(user, reply="api-1", deadline_ms=1) for _ in range(100)])
    alive = message(user)
    await queue.enqueue("invoke", [alive])
    claims: list[Claim] = []
    for _ in range(5):  # each call is bounded
        claims += await claim(queue)
    assert [UUID(one.id) for one in claims] == [alive.id]


async def test_final_settle_replies_and_records_the_same_bytes(queue: Queue, redis: Redis) -> None:
    job = message(reply="api-1")
    await queue.enqueue("invoke", [job])
    (one,) = await claim(queue)
    ending = settle(one, result=b'{"n":12345678901234567890123}')
    async with listening(redis, "cp:reply:api-1") as heard:
        await end(queue, ending)
        assert await asyncio.wait_for(heard.get(), 5) == ("cp:reply:api-1", ending.record)
    assert [fields[b"r"] for _, fields in await redis.xrange(RECORDS)] == [ending.record]


async def test_lost_worker_requeues_with_one_more_loss_and_gives_up_at_the_most(
    queue: Queue, redis: Redis, pool: Pool
) -> None:
    job = message()
    await queue.enqueue("invoke", [job])
    for number in (1, 2):
        (one,) = await claim(queue)
        assert (one.decode().attempt, one.decode().lost) == (number, number - 1)
        assert await queue.expire_worker(W, seen=0, max_lost=3) == (1, 0)
        await conserved(redis, pool)
    (one,) = await claim(queue)
    assert await queue.expire_worker(W, seen=0, max_lost=3) == (0, 1)
    assert await claim(queue) == []
    ends = [(left.status, left.outcome, left.reason, left.attempt, left.lost) for left in await records(redis)]
    assert ends == [
        ("queued", "lost", None, 1, 1),
        ("queued", "lost", None, 2, 2),
        ("failed", "lost", "worker_lost", 3, 3),
    ]
    await conserved(redis, pool)


async def test_worker_that_beat_meanwhile_is_not_expired(queue: Queue) -> None:
    await queue.beat(W)
    await queue.enqueue("invoke", [message()])
    await claim(queue)
    await queue.beat(W)
    assert await queue.expire_worker(W, seen=1, max_lost=3) is None
    assert await queue.beats() == {W: 2}
    assert await queue.expire_worker(W, seen=2, max_lost=3) == (1, 0)
    assert await queue.beats() == {}


async def test_worker_that_never_beat_is_known_by_what_it_holds(queue: Queue) -> None:
    await queue.enqueue("invoke", [message()])
    await claim(queue, worker="worker-z")
    assert await queue.beats() == {}
    assert await queue.holders() == {"worker-z"}


async def test_expiry_takes_only_what_the_lost_worker_held(queue: Queue, redis: Redis, pool: Pool) -> None:
    await queue.enqueue("invoke", [message() for _ in range(4)])
    mine, theirs = await claim(queue, 2), await claim(queue, 2, "worker-b")
    assert await queue.expire_worker(W, seen=0, max_lost=3) == (2, 0)
    assert await end(queue, *(settle(one) for one in mine)) == [False, False]
    assert await end(queue, *(settle(one) for one in theirs), worker="worker-b") == [True, True]
    await conserved(redis, pool)


async def test_attempts_register_only_while_the_queue_is_closed(queue: Queue, redis: Redis, pool: Pool) -> None:
    job = message(concurrency=1)
    mine = Claim(id=str(job.id), epoch="1-7", raw=job.encode())
    assert await queue.register("invoke", W, [mine]) == 0
    await redis.hset(GENERATION, "open", "0")  # type: ignore[misc]
    assert await queue.register("invoke", W, [mine, mine]) == 1
    assert await queue.register("invoke", "worker-b", [mine]) == 0
    await conserved(redis, pool)
    assert await end(queue, settle(mine)) == [True]


async def test_registering_a_job_that_was_put_back_takes_it_from_there(queue: Queue, redis: Redis, pool: Pool) -> None:
    function = uuid4()
    jobs = [message(function=function, concurrency=1) for _ in range(2)]
    await redis.hset(GENERATION, "open", "0")  # type: ignore[misc]
    await queue.enqueue("invoke", jobs)
    claims = [Claim(id=str(job.id), epoch=f"1-{n}", raw=job.encode()) for n, job in enumerate(jobs)]
    assert await queue.register("invoke", W, claims) == 2
    await conserved(redis, pool)
    await redis.hset(GENERATION, "open", "1")  # type: ignore[misc]
    assert await claim(queue, 5, "worker-b") == []


async def test_closed_queue_takes_jobs_and_settles_but_gives_none_out(queue: Queue, redis: Redis) -> None:
    await queue.enqueue("invoke", [message()])
    (one,) = await claim(queue)
    await redis.hset(GENERATION, "open", "0")  # type: ignore[misc]
    assert await queue.enqueue("invoke", [message()]) == [Enqueued.QUEUED]
    assert await claim(queue) == []
    assert await end(queue, settle(one)) == [True]
    await redis.hset(GENERATION, "open", "1")  # type: ignore[misc]
    assert len(await claim(queue)) == 1


async def test_queue_without_a_generation_refuses_every_step(queue: Queue, redis: Redis) -> None:
    gen = await generation(queue)
    await redis.delete(GENERATION)
    with pytest.raises(QueueClosed):
        await queue.enqueue("invoke", [message()])
    with pytest.raises(QueueClosed):
        await queue.exchange("invoke", W, generation=gen, want=1)
    with pytest.raises(QueueClosed):
        await queue.register("invoke", W, [])
    with pytest.raises(QueueClosed):
        await queue.held("invoke", W, generation=gen)


async def test_worker_of_an_older_generation_must_join_first(queue: Queue) -> None:
    gen = await generation(queue)
    with pytest.raises(QueueClosed):
        await queue.exchange("invoke", W, generation=str(int(gen) - 1), want=1)
    with pytest.raises(QueueClosed):
        await queue.held("invoke", W, generation=str(int(gen) - 1))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run", "of the process before"),  # Redis was started again, with what its file had
        ("layout", "of another release"),
        ("open", "0"),
    ],
)
async def test_redis_that_forgot_the_scripts_has_a_closed_queue_unless_it_lost_nothing_else(
    queue: Queue, redis: Redis, field: str, value: str
) -> None:
    gen = await generation(queue)
    await redis.script_flush()
    await redis.hset(GENERATION, field, value)  # type: ignore[misc]
    for _ in range(2):
        for step in (
            queue.enqueue("invoke", [message()]),
            queue.exchange("invoke", W, generation=gen, want=1),
            queue.cancel("invoke", uuid4()),
            queue.expire_worker(W, seen=0, max_lost=3),
            queue.register("invoke", W, []),
            queue.held("invoke", W, generation=gen),
        ):
            with pytest.raises(QueueClosed):
                await step


async def test_steps_of_another_release_run_beside_ours(queue: Queue, redis: Redis, pool: Pool) -> None:
    """As after an upgrade: the leader has loaded its scripts, and a process of the older release comes with its own."""
    await redis.script_flush()
    first, second = message(), message()
    assert await queue.enqueue("invoke", [first]) == [Enqueued.QUEUED]
    assert [one.id for one in await claim(queue)] == [str(first.id)]
    await asyncio.gather(*(queue.enqueue("invoke", [message()]) for _ in range(20)), queue.enqueue("invoke", [second]))
    assert len(await claim(queue, 50)) == 21
    await conserved(redis, pool)


async def test_held_names_what_a_worker_runs_and_nothing_else(queue: Queue) -> None:
    await queue.enqueue("invoke", [message() for _ in range(3)])
    mine = await claim(queue, 2)
    await claim(queue, 1, "worker-b")
    held = await queue.held("invoke", W, generation=await generation(queue))
    assert sorted(held, key=lambda one: one.id) == sorted(mine, key=lambda one: one.id)


async def test_new_job_wakes_exactly_one_idle_worker(queue: Queue, redis: Redis) -> None:
    names = ["worker-a", "worker-b", "worker-c"]
    async with listening(redis, *(f"cp:worker:{name}" for name in names), "mark") as heard:
        for name in names:
            assert await claim(queue, worker=name) == []
        await queue.enqueue("invoke", [message()])
        await redis.publish("mark", "end")
        first, second = await asyncio.wait_for(heard.get(), 5), await asyncio.wait_for(heard.get(), 5)
    assert first[1] == b"wake invoke"
    assert second == ("mark", b"end")


async def test_idle_worker_that_no_longer_listens_is_passed_over(queue: Queue, redis: Redis) -> None:
    async with listening(redis, "cp:worker:alive") as heard:
        for name in ("alive", "dead-1", "dead-2"):
            await claim(queue, worker=name)
        await queue.enqueue("invoke", [message()])
        assert await asyncio.wait_for(heard.get(), 5) == ("cp:worker:alive", b"wake invoke")


async def test_woken_worker_wakes_the_next_while_there_is_work(queue: Queue, redis: Redis) -> None:
    async with listening(redis, "cp:worker:worker-a", "cp:worker:worker-b") as heard:
        await claim(queue, worker="worker-a")
        await claim(queue, worker="worker-b")
        await queue.enqueue("invoke", [message(), message()])
        woken, _ = await asyncio.wait_for(heard.get(), 5)
        assert len(await claim(queue, worker=woken.removeprefix("cp:worker:"))) == 1
        assert (await asyncio.wait_for(heard.get(), 5))[0] != woken


async def test_full_stream_refuses_synchronous_jobs_and_takes_durable_ones(
    queue: Queue, redis: Redis, other_queue: OtherQueue
) -> None:
    bounded = other_queue(max_stream_backlog=2)
    for _ in range(3):
        await redis.xadd(RECORDS, {"r": b"x"})
    waited_for, durable = message(reply="api-1"), message()
    assert await bounded.enqueue("invoke", [waited_for, durable]) == [Enqueued.BACKLOG, Enqueued.QUEUED]
    assert await queue.present("invoke", [waited_for.id, durable.id]) == [False, True]


async def test_job_that_vanished_from_under_its_place_is_skipped(queue: Queue, redis: Redis) -> None:
    user = uuid4()
    gone, there = message(user), message(user)
    await queue.enqueue("invoke", [gone, there])
    await redis.hdel("cp:invoke:messages", str(gone.id))  # type: ignore[misc]
    claims = await claim(queue, 2) + await claim(queue, 2)
    assert [UUID(one.id) for one in claims] == [there.id]


async def test_builds_have_slots_of_their_own(queue: Queue) -> None:
    build = message(kind=JobKind.DEPLOY, payload=b"")
    await queue.enqueue("build", [build])
    assert await claim(queue) == []
    gen = await generation(queue)
    _, claims = await queue.exchange("build", W, generation=gen, want=1)
    assert [one.decode().kind for one in claims] == [JobKind.DEPLOY]


async def test_reads_tell_running_from_waiting(queue: Queue) -> None:
    jobs: list[JobMessage] = [message(), message()]
    await queue.enqueue("invoke", jobs)
    (one,) = await claim(queue)
    runs = await queue.running("invoke", [job.id for job in jobs])
    run = RunningAttempt(epoch=one.epoch, attempt=1, claimed_ms=one.claimed_ms)
    assert runs == [run if str(job.id) == one.id else None for job in jobs]
    assert abs(one.claimed_ms - now_ms()) < 60_000
    assert await queue.running_of_user("invoke", one.decode().user_id) == [UUID(one.id)]
    assert await queue.present("invoke", [jobs[0].id, uuid4()]) == [True, False]


async def test_retired_worker_is_forgotten(queue: Queue, redis: Redis) -> None:
    await queue.beat(W)
    await claim(queue)
    await queue.retire(W)
    assert await queue.beats() == {}
    assert await redis.exists(WORKERS, "cp:invoke:idle") == 0


async def test_f10_redis_without_memory_still_hears_heartbeats_and_settles(queue: Queue, redis: Redis) -> None:
    await queue.enqueue("invoke", [message(), message()])
    (one,) = await claim(queue)
    await redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(Unavailable):
            await queue.enqueue("invoke", [message()])
        with pytest.raises(Unavailable):
            await queue.report(W, {})  # by the other client, which words it in another way
        await queue.beat(W)
        assert await end(queue, settle(one)) == [True]
    finally:
        await redis.config_set("maxmemory", 0)
    assert await queue.beats() == {W: 1}
    assert [left.status for left in await records(redis)] == ["succeeded"]


async def test_retry_takes_the_job_off_the_queue_and_lets_it_come_back(queue: Queue, redis: Redis, pool: Pool) -> None:
    user, function = uuid4(), uuid4()
    first, second = (message(user, function=function, concurrency=1) for _ in range(2))
    await queue.enqueue("invoke", [first, second])
    (running,) = await claim(queue, 2)
    assert running.id == str(first.id)
    assert await end(queue, settle(running, verb=Verb.RETRY, status="scheduled")) == [True]
    assert await queue.present("invoke", [first.id, second.id]) == [False, True]
    assert [(left.id, left.status) for left in await records(redis)] == [(first.id, "scheduled")]
    await conserved(redis, pool)
    # Its place among its function's attempts is free, the same settle is stale, and it is no job that has ended.
    (parked,) = await claim(queue, 2)
    assert parked.id == str(second.id)
    assert await end(queue, settle(running, verb=Verb.RETRY, status="scheduled"), settle(parked)) == [False, True]
    assert await queue.enqueue("invoke", [replace(first, attempt=2)]) == [Enqueued.QUEUED]
    assert [again.id for again in await claim(queue, 2)] == [str(first.id)]
    await conserved(redis, pool)


async def test_acceptor_slower_than_an_attempt_does_not_start_that_attempt_again(queue: Queue) -> None:
    job = message()
    await queue.enqueue("invoke", [job])  # by the reconciler
    (one,) = await claim(queue)
    await end(queue, settle(one, Verb.LOSE, status="queued", outcome="lost"))
    (one,) = await claim(queue)
    await end(queue, settle(one, verb=Verb.RETRY, status="scheduled"))
    for attempt in (1, 2):
        assert await queue.enqueue("invoke", [replace(job, attempt=attempt)]) == [Enqueued.THERE]
    assert await queue.enqueue("invoke", [replace(job, attempt=3, lost=1)]) == [Enqueued.QUEUED]


async def test_of_two_that_register_a_job_the_later_attempt_counts(queue: Queue, redis: Redis, pool: Pool) -> None:
    job = message(concurrency=1)
    early, late = (Claim(id=str(job.id), epoch=epoch, raw=job.encode()) for epoch in ("1-9", "1-10"))
    await redis.hset(GENERATION, "open", "0")  # type: ignore[misc]
    assert await queue.register("invoke", "slept", [early]) == 1
    assert await queue.register("invoke", W, [late]) == 1
    assert await queue.register("invoke", "slept", [early]) == 0
    await conserved(redis, pool)
    assert await end(queue, settle(early), worker="slept") == [False]
    assert await end(queue, settle(late)) == [True]


async def test_an_attempt_that_registers_keeps_the_time_it_was_claimed_at(queue: Queue, redis: Redis) -> None:
    known, unknown = message(), message()
    claims = [Claim(id=str(known.id), epoch="1-7", raw=known.encode(), claimed_ms=known.enqueued_ms + 500)]
    claims += [Claim(id=str(unknown.id), epoch="1-8", raw=unknown.encode())]
    await redis.hset(GENERATION, "open", "0")  # type: ignore[misc]
    before = now_ms()
    assert await queue.register("invoke", W, claims) == 2
    held = await queue.held("invoke", W, generation=await generation(queue))
    kept = {one.epoch: one.claimed_ms for one in held}
    assert kept["1-7"] == known.enqueued_ms + 500
    assert before - 1000 <= kept["1-8"] <= now_ms() + 1000
    await queue.cancel("invoke", known.id)
    (left,) = await records(redis)
    assert (left.epoch, left.started_ms, left.queue_ms) == ("1-7", known.enqueued_ms + 500, 500)


async def test_an_attempt_that_an_older_release_began_ends_without_its_times(queue: Queue, redis: Redis) -> None:
    jobs = [message(), message()]
    await queue.enqueue("invoke", jobs)
    one, other = await claim(queue, 2)
    for held in (one, other):
        entry = (await redis.hget("cp:invoke:running", held.id)).split(b" ")  # type: ignore[misc]
        await redis.hset("cp:invoke:running", held.id, b" ".join(entry[:4]))  # type: ignore[misc]
    assert await queue.running("invoke", [UUID(one.id)]) == [
        RunningAttempt(epoch=one.epoch, attempt=None, claimed_ms=None)
    ]
    assert {held.claimed_ms for held in await queue.held("invoke", W, generation=await generation(queue))} == {0}
    await queue.cancel("invoke", UUID(one.id))
    assert await queue.expire_worker(W, seen=0, max_lost=3) == (1, 0)
    cancelled, lost = await records(redis)
    assert (cancelled.outcome, cancelled.epoch, cancelled.started_ms) == ("cancelled", one.epoch, None)
    assert (lost.outcome, lost.epoch, lost.started_ms) == ("lost", other.epoch, None)


async def test_priority_orders_one_user_s_jobs_with_a_head_start_and_no_more(queue: Queue) -> None:
    user = uuid4()

    def job(minutes: float, priority: int, by: UUID = user) -> JobMessage:
        at_ms = now_ms() + round(minutes * 60_000)
        # The time is in the id.
        return message(by, id=UUID(int=at_ms << 80 | new_id().int & (1 << 80) - 1), priority=priority)

    jobs = [job(0, 0), job(1, -1), job(2, 1), job(9.9, 1), job(10.1, 1), job(11.2, 0)]
    await queue.enqueue("invoke", jobs)
    order = [UUID(one.id) for _ in jobs for one in await claim(queue)]
    assert order == [jobs[index].id for index in (2, 3, 0, 4, 1, 5)]


async def test_priority_holds_among_parked_jobs_and_gives_nothing_over_other_users(queue: Queue) -> None:
    user, function = uuid4(), uuid4()
    first, low, high = (message(user, function=function, concurrency=1, priority=level) for level in (0, -1, 1))
    other = message(uuid4(), priority=-1)
    await queue.enqueue("invoke", [first, low, high, other])
    one, two = await claim(queue, want=2)
    assert {UUID(one.id), UUID(two.id)} == {first.id, other.id}
    await end(queue, settle(one if UUID(one.id) == first.id else two))
    assert [UUID(claimed.id) for claimed in await claim(queue, want=2)] == [high.id]
