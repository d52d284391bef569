"""The scheduler's parts: one leader, lost workers, missing jobs, a queue that is rebuilt."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import orjson
import pytest
from redis.asyncio import Redis

from scheduler.leader import Leader
from scheduler.lease_reaper import LeaseReaper
from scheduler.rebuild import Rebuild
from scheduler.reconcile import Reconciler
from scheduler.service import make_partitions
from shared.embedded.redis import EmbeddedRedis
from shared.errors import Unavailable
from shared.ids import lowest_id, new_id, short
from shared.jobs import JobStatus
from shared.postgres.jobs import LOWEST_ID, Jobs
from shared.postgres.pool import Pool, close_pool, open_pool
from shared.queue.connection import connect
from shared.queue.drain import Drain
from shared.queue.message import now_ms
from shared.queue.queue import GENERATION, REBUILT_CHANNEL, RECORDS, Claim, Queue
from shared.queue.scripts import SCRIPTS, QueueClosed
from tests.clocks import WallClock
from tests.conservation import complaints
from tests.deployment import Platform
from tests.seeds import accept, message, new_user, record, settle

W = "worker-a"


@pytest.fixture
def jobs(pool: Pool) -> Jobs:
    return Jobs(pool)


@pytest.fixture
async def user(pool: Pool) -> UUID:
    return await new_user(pool)


@pytest.fixture
def rebuild(redis: Redis, queue: Queue, jobs: Jobs, pool: Pool) -> Rebuild:
    return Rebuild(redis, queue, jobs, pool, grace_s=0)


@pytest.fixture
async def drain(redis: Redis, jobs: Jobs) -> Drain:
    one = Drain(redis, jobs, consumer="scheduler")
    await one.run_once()
    return one


@pytest.fixture
def reconciler(queue: Queue, jobs: Jobs, drain: Drain) -> Reconciler:
    return Reconciler(queue, jobs, drain, age_s=0)


async def claim(queue: Queue, want: int = 1, worker: str = W) -> list[Claim]:
    state = await queue.generation()
    assert state is not None
    _, claims = await queue.exchange("invoke", worker, generation=state[0], want=want)
    return claims


async def end(queue: Queue, one: Claim, worker: str = W) -> bool:
    state = await queue.generation()
    assert state is not None
    flags, _ = await queue.exchange("invoke", worker, generation=state[0], want=0, settles=[settle(one)])
    return flags[0]


async def test_one_leads_at_a_time(pool: Pool) -> None:
    first, second = Leader(pool, "first", life_s=30), Leader(pool, "second", life_s=30)
    assert await first.run_once()
    assert not await second.run_once()
    assert await first.run_once(), "renewed"
    assert (first.leading, second.leading) == (True, False)


async def test_many_that_ask_at_once_are_led_by_one(pool: Pool) -> None:
    leaders = [Leader(pool, f"holder-{number}", life_s=30) for number in range(10)]
    assert sorted(await asyncio.gather(*(leader.run_once() for leader in leaders))) == [False] * 9 + [True]


async def test_silent_leader_is_replaced_and_knows_it(pool: Pool) -> None:
    dead, heir = Leader(pool, "dead", life_s=0.5), Leader(pool, "heir", life_s=30)
    async with asyncio.timeout(20):
        while not await dead.run_once():
            pass  # the answer took longer than the lease
        while not await heir.run_once():
            assert not heir.leading
    assert not dead.leading, "by its own clock, without asking"
    assert not await dead.run_once()


async def test_leader_that_resigns_is_followed_at_once(pool: Pool) -> None:
    first, second = Leader(pool, "first", life_s=30), Leader(pool, "second", life_s=30)
    await first.run_once()
    await first.resign()
    assert not first.leading
    assert await second.run_once()


async def test_f18_leader_that_died_before_the_clock_went_back_is_followed(pool: Pool) -> None:
    dead, heir = Leader(pool, "dead", life_s=30), Leader(pool, "heir", life_s=30)
    assert await dead.run_once()
    # Seen from Postgres after its clock went back by an hour, all times of before lie an hour ahead.
    await pool.execute("UPDATE leases SET expires_at = expires_at + interval '1 hour'")
    assert await heir.run_once()


async def test_nobody_resigns_for_another(pool: Pool) -> None:
    first, second = Leader(pool, "first", life_s=30), Leader(pool, "second", life_s=30)
    await first.run_once()
    await second.resign()
    assert not await second.run_once()


async def watch(
    lease_reaper: LeaseReaper, *, until_lost: int, within_s: float = 10, beat: Queue | None = None
) -> list[str]:
    lost: list[str] = []
    async with asyncio.timeout(within_s):
        while len(lost) < until_lost:
            if beat is not None:
                await beat.beat("alive")
            lost += await lease_reaper.run_once()
            await asyncio.sleep(0.05)
    return lost


async def test_worker_whose_heartbeat_moves_is_never_expired(queue: Queue) -> None:
    lease_reaper = LeaseReaper(queue, lease_s=1, max_lost=3)
    await queue.enqueue("invoke", [message() for _ in range(2)])
    for worker in ("alive", "silent"):
        await queue.beat(worker)
        await claim(queue, 1, worker)
    assert await watch(lease_reaper, until_lost=1, beat=queue) == ["silent"]
    assert set(await queue.beats()) == {"alive"}
    assert await queue.holders() == {"alive"}
    assert len(await claim(queue, 5)) == 1


async def test_new_observer_watches_for_a_whole_lease_before_it_judges(queue: Queue) -> None:
    loop = asyncio.get_running_loop()
    await queue.beat("silent")
    started = loop.time()
    await watch(LeaseReaper(queue, lease_s=1, max_lost=3), until_lost=1)
    assert loop.time() - started >= 1


async def test_worker_that_died_before_its_first_heartbeat_is_expired_too(queue: Queue) -> None:
    await queue.enqueue("invoke", [message()])
    await claim(queue, 1, "young")
    assert await watch(LeaseReaper(queue, lease_s=0.3, max_lost=3), until_lost=1) == ["young"]
    assert len(await claim(queue)) == 1


async def test_f12_observer_that_could_not_watch_starts_over(queue: Queue) -> None:
    lease_reaper = LeaseReaper(queue, lease_s=1, max_lost=3)
    loop = asyncio.get_running_loop()
    await queue.beat("paused")
    assert await lease_reaper.run_once() == []
    # As long as Redis stands still nobody can beat, and nobody can be watched.
    stood_still_until = loop.time() + 1.2
    while loop.time() < stood_still_until:
        await asyncio.sleep(0.05)
    assert await lease_reaper.run_once() == []
    await queue.beat("paused")
    assert await lease_reaper.run_once() == []


async def test_f18_clock_that_jumps_expires_nobody_early_and_nobody_late(
    queue: Queue, database: str, redis_url: str, tmp_path: Path
) -> None:
    clock, lease_s = WallClock(tmp_path), 4.0
    settings = {"LEASE_SECONDS": f"{lease_s:g}", "HEARTBEAT_SECONDS": "1", "LEADER_SECONDS": "2"}
    scheduler = Platform(database_url=database, redis_url=redis_url, engine="process", env=clock.env | settings)

    async def within(seconds: float, reached: Callable[[], Awaitable[bool]], beat: str) -> None:
        async with asyncio.timeout(seconds):
            while not await reached():
                await queue.beat(beat)
                await asyncio.sleep(0.1)

    async def leads() -> bool:
        return "leading" in scheduler.logs()

    try:
        scheduler.start("scheduler")
        await within(20, leads, "alive")
        for to in ("+3600", "+0"):
            before, after = f"before{to}", f"after{to}"
            for worker in ("alive", before):
                await queue.beat(worker)
            await asyncio.sleep(lease_s / 4)  # longer than between two looks: it has been seen
            clock.move(to)
            await asyncio.sleep(lease_s / 4)
            assert {"alive", before} <= set(await queue.beats())
            await queue.beat(after)

            async def both_gone(gone: frozenset[str] = frozenset((before, after))) -> bool:
                return not gone & set(await queue.beats())

            await within(lease_s + 5, both_gone, "alive")
        assert scheduler.log("scheduler").read_text().count("worker lost") == 4
    finally:
        await scheduler.stop()


async def test_f5_committed_job_that_redis_misses_is_enqueued(
    queue: Queue, jobs: Jobs, reconciler: Reconciler, redis: Redis, pool: Pool, user: UUID
) -> None:
    there, missing = message(user), message(user, payload='{"body":"ä"}'.encode())
    await accept(pool, [there, missing])
    await queue.enqueue("invoke", [there])
    await _until_past(missing.id)
    assert await reconciler.run_once() == 1
    assert await reconciler.run_once() == 0
    found = {one.id: one.decode() for one in await claim(queue, 5)}
    assert found.keys() == {str(there.id), str(missing.id)}
    assert found[str(missing.id)].payload == missing.payload
    assert await complaints(redis, pool) == []


@pytest.mark.parametrize("ahead_ms", [3_600_000, -3_600_000])
async def test_f18_job_accepted_by_a_clock_that_is_off_is_put_on_the_queue_all_the_same(
    queue: Queue, jobs: Jobs, drain: Drain, rebuild: Rebuild, redis: Redis, user: UUID, ahead_ms: int, pool: Pool
) -> None:
    batch = [message(user, id=UUID(int=new_id().int + (ahead_ms << 80))) for _ in range(2)]
    await accept(pool, batch[:1])
    assert await Reconciler(queue, jobs, drain, age_s=5).run_once() == 1
    await accept(pool, batch[1:])
    await redis.flushall()
    assert await rebuild.run_once() == 2
    assert {UUID(one.id) for one in await claim(queue, 5)} == {job.id for job in batch}


async def test_job_younger_than_the_bound_is_left_to_its_acceptor(
    queue: Queue, jobs: Jobs, drain: Drain, user: UUID, pool: Pool
) -> None:
    await accept(pool, [message(user)])
    assert await Reconciler(queue, jobs, drain, age_s=60).run_once() == 0


async def test_job_that_just_ended_is_not_enqueued_again(
    queue: Queue, jobs: Jobs, reconciler: Reconciler, drain: Drain, user: UUID, pool: Pool
) -> None:
    job = message(user)
    await accept(pool, [job])
    await queue.enqueue("invoke", [job])
    (one,) = await claim(queue)
    assert await end(queue, one)
    await _until_past(job.id)
    # Its record is on its way: open in Postgres, gone from Redis.
    reconciling = asyncio.create_task(reconciler.run_once())
    await drain.run_once()
    assert await reconciling == 0
    assert await queue.present("invoke", [job.id]) == [False]


async def test_reconciler_waits_for_records_and_gives_up_without_harm(
    queue: Queue, jobs: Jobs, reconciler: Reconciler, user: UUID, monkeypatch: pytest.MonkeyPatch, pool: Pool
) -> None:
    monkeypatch.setattr("scheduler.reconcile._SETTLED_BOUND_S", 0.1)
    job = message(user)
    await accept(pool, [job])
    await queue.enqueue("invoke", [job])
    (one,) = await claim(queue)
    await end(queue, one)
    await _until_past(job.id)
    assert await reconciler.run_once() == 0
    assert await queue.present("invoke", [job.id]) == [False]


async def test_long_backlog_is_looked_through_in_turns(
    queue: Queue, jobs: Jobs, reconciler: Reconciler, user: UUID, monkeypatch: pytest.MonkeyPatch, pool: Pool
) -> None:
    monkeypatch.setattr("scheduler.reconcile._PAGE", 2)
    monkeypatch.setattr("scheduler.reconcile._PAGES_OF_NEW", 0)
    batch = [message(user) for _ in range(7)]
    await accept(pool, batch)
    await _until_past(batch[-1].id)
    assert [await reconciler.run_once() for _ in range(3)] == [4, 3, 0]


async def test_f5_missing_job_is_found_at_once_behind_a_long_backlog(
    queue: Queue, redis: Redis, jobs: Jobs, user: UUID, reconciler: Reconciler, pool: Pool
) -> None:
    hour_ago, function = int(now_ms()) - 3_600_000, uuid4()
    for start in range(0, 22_000, 1000):
        ids = (UUID(int=(hour_ago + start + each << 80) | 7 << 76 | 0b10 << 62) for each in range(1000))
        batch = [message(user, function=function, id=each) for each in ids]
        await accept(pool, batch)
        await queue.enqueue("invoke", batch)
    lost = message(user)
    await accept(pool, [lost])
    assert await queue.present("invoke", [batch[0].id, lost.id]) == [True, False]
    await asyncio.sleep(0.01)
    assert await reconciler.run_once() == 1
    assert await queue.present("invoke", [lost.id]) == [True]


async def test_counts_of_lost_attempts_survive_the_way_through_postgres(
    queue: Queue, jobs: Jobs, reconciler: Reconciler, drain: Drain, redis: Redis, user: UUID, pool: Pool
) -> None:
    job = message(user, concurrency=2)
    await accept(pool, [job])
    await redis.xadd(RECORDS, {"r": record(job, status=JobStatus.QUEUED, lost=1).encode()})
    await drain.run_once()
    await _until_past(job.id)
    await reconciler.run_once()
    (one,) = await claim(queue)
    assert (one.decode().attempt, one.decode().lost, one.decode().concurrency) == (2, 1, 2)


async def _until_past(job: UUID) -> None:
    """Return once ``job`` was not accepted within this very millisecond."""
    while new_id().int >> 80 == job.int >> 80:
        await asyncio.sleep(0.001)


async def test_f9_emptied_redis_is_filled_from_postgres(
    queue: Queue, jobs: Jobs, rebuild: Rebuild, redis: Redis, pool: Pool, user: UUID
) -> None:
    function = uuid4()
    batch = [message(user, function=function, concurrency=1) for _ in range(3)] + [message(user) for _ in range(3)]
    await accept(pool, batch)
    assert not await rebuild.needed()
    await redis.flushall()
    assert await rebuild.needed()
    with pytest.raises(QueueClosed):
        await queue.enqueue("invoke", [message()])
    assert await rebuild.run_once() == 6
    assert not await rebuild.needed()
    assert await complaints(redis, pool) == []
    assert await redis.zcard(f"cp:invoke:parked:{short(function)}") == 2
    assert len(await claim(queue, 10)) == 4


async def test_jobs_that_ended_are_not_put_back(
    queue: Queue, jobs: Jobs, rebuild: Rebuild, redis: Redis, pool: Pool, user: UUID
) -> None:
    """Their records may still be in the stream when the copy is thrown away."""
    batch = [message(user) for _ in range(3)]
    await accept(pool, batch)
    await queue.enqueue("invoke", batch)
    for one in await claim(queue, 2):
        await end(queue, one)
    await redis.script_flush()
    assert await rebuild.run_once() == 1
    assert await complaints(redis, pool) == []
    assert await pool.fetchval("SELECT count(*) FROM jobs WHERE status = 'succeeded'") == 2


async def test_a_queue_is_not_opened_before_the_records_are_written(
    queue: Queue, jobs: Jobs, user: UUID, pool: Pool, database: str, rebuild: Rebuild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.rebuild._DRAIN_BOUND_S", 0.2)
    ended = message(user)
    await accept(pool, [ended])
    await queue.enqueue("invoke", [ended])
    (one,) = await claim(queue)
    assert await end(queue, one)
    own = await open_pool(database, size=1, timeout_s=0.5, name="slow")
    slow = Rebuild(queue.redis, queue, Jobs(own), own, grace_s=0)
    async with pool.acquire() as holder, holder.transaction():
        await holder.execute("LOCK TABLE invocations IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(Unavailable):
            await slow.run_once()
        assert not await queue.is_open()
    await close_pool(own)
    monkeypatch.undo()
    assert await rebuild.run_once() == 0
    assert await claim(queue) == []


async def test_large_jobs_are_put_back_in_small_pages(
    queue: Queue, jobs: Jobs, user: UUID, rebuild: Rebuild, pool: Pool
) -> None:
    batch = [message(user, payload=b'"%s"' % random.randbytes(60_000).hex().encode()) for _ in range(200)]
    await accept(pool, batch)
    page = await jobs.open_jobs(after=LOWEST_ID, limit=1000)
    assert 1 < len(page) < 200
    assert await rebuild.run_once() == 200
    assert all(await queue.present("invoke", [job.id for job in batch]))


async def test_running_attempts_that_register_meanwhile_stay_with_their_worker(
    redis: Redis, queue: Queue, jobs: Jobs, pool: Pool, user: UUID
) -> None:
    batch = [message(user) for _ in range(20)]
    await accept(pool, batch)
    await queue.enqueue("invoke", batch)
    running = await claim(queue, 5, "worker-a") + await claim(queue, 5, "worker-b")
    rebuild = Rebuild(redis, queue, jobs, pool, grace_s=5)
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(REBUILT_CHANNEL)
        await pubsub.parse_response()
        await redis.flushall()
        rebuilding = asyncio.create_task(rebuild.run_once())
        await pubsub.parse_response()  # this is how workers hear of it
        taken = await asyncio.gather(
            queue.register("invoke", "worker-a", running[:5]), queue.register("invoke", "worker-b", running[5:])
        )
        assert list(taken) == [5, 5]
        assert await rebuilding == 20
    assert await complaints(redis, pool) == []
    assert await queue.holders() == {"worker-a", "worker-b"}
    assert len(await claim(queue, 50, "worker-c")) == 10
    assert await end(queue, running[0], "worker-a"), "the epoch it had still counts"


async def test_attempts_that_nobody_registers_are_delivered_again_under_a_newer_epoch(
    queue: Queue, jobs: Jobs, rebuild: Rebuild, redis: Redis, user: UUID, pool: Pool
) -> None:
    job = message(user)
    await accept(pool, [job])
    await queue.enqueue("invoke", [job])
    (old,) = await claim(queue)
    await redis.flushall()
    await rebuild.run_once()
    (new,) = await claim(queue, worker="worker-b")
    assert int(new.epoch.split("-")[0]) > int(old.epoch.split("-")[0])
    assert not await end(queue, old)
    assert await end(queue, new, "worker-b")


async def test_rebuild_that_died_half_way_is_done_again(
    queue: Queue, jobs: Jobs, rebuild: Rebuild, redis: Redis, pool: Pool, user: UUID
) -> None:
    await accept(pool, [message(user) for _ in range(3)])
    await rebuild.run_once()
    await redis.hset(GENERATION, "open", "0")  # type: ignore[misc]
    assert await rebuild.needed()
    assert await rebuild.run_once() == 3
    assert await complaints(redis, pool) == []


async def test_rebuild_of_a_leader_that_slept_stops_at_the_newer_one(
    redis: Redis, queue: Queue, jobs: Jobs, pool: Pool, user: UUID
) -> None:
    await accept(pool, [message(user) for _ in range(3)])
    sleeper = Rebuild(redis, queue, jobs, pool, grace_s=5)
    await redis.flushall()
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(REBUILT_CHANNEL)
        await pubsub.parse_response()
        sleeping = asyncio.create_task(sleeper.run_once())
        await pubsub.parse_response()  # it waits for workers now
        await Rebuild(redis, queue, jobs, pool, grace_s=0).run_once()
        newer = await queue.generation()
        (one, *_) = await claim(queue, 3)
        with pytest.raises(Unavailable):
            await sleeping
    assert await queue.generation() == newer
    assert newer is not None
    assert newer[1], "the newer one stays open"
    assert await end(queue, one)


async def test_generation_is_above_what_redis_has_seen(rebuild: Rebuild, queue: Queue, redis: Redis) -> None:
    """A Postgres that was made anew starts to count from one; its epochs must not look stale."""
    await redis.hset(GENERATION, "gen", "1000")  # type: ignore[misc]
    await rebuild.run_once()
    assert await queue.generation() == ("1001", True)
    await rebuild.run_once()
    assert await queue.generation() == ("1002", True)


@pytest.fixture
async def own_redis(tmp_path: Path) -> AsyncIterator[EmbeddedRedis]:
    async with EmbeddedRedis(tmp_path / "redis") as server:
        yield server


async def test_f8_redis_that_came_back_with_its_file_is_rebuilt_all_the_same(
    own_redis: EmbeddedRedis, jobs: Jobs, pool: Pool, user: UUID
) -> None:
    async with connect(own_redis.url, timeout_s=5) as client, aclosing(Queue(client)) as queue:
        rebuild = Rebuild(client, queue, jobs, pool, grace_s=0)
        await rebuild.run_once()
        first = await queue.generation()
        batch = [message(user) for _ in range(4)]
        await accept(pool, batch)
        await queue.enqueue("invoke", batch[:2])
        assert len(await claim(queue)) == 1
        await own_redis.stop()
        await own_redis.start()
        # What the file holds may lack the last second: it is not believed, though the generation stands there.
        assert await queue.generation() == first
        assert await rebuild.needed()
        with pytest.raises(QueueClosed):
            await claim(queue)
        assert await rebuild.run_once() == 4
        assert await complaints(client, pool) == []
        assert len(await claim(queue, 10)) == 4


async def test_months_of_records_are_made_ahead_and_only_once(pool: Pool) -> None:
    await pool.execute("DO $$ DECLARE t text; BEGIN FOR t IN SELECT inhrelid::regclass::text FROM pg_inherits "
                       "WHERE inhrelid::regclass::text ~ '_\\d{4}_\\d{2}$' LOOP EXECUTE 'DROP TABLE ' || t; "
                       "END LOOP; END $$")  # fmt: skip
    assert await make_partitions(pool) == 6
    assert await make_partitions(pool) == 0
    now = datetime.now(UTC)
    for at in (now, now + timedelta(days=31)):
        assert await pool.fetchval("SELECT to_regclass($1)", f"invocations_{at:%Y_%m}") is not None


async def test_records_that_a_clock_months_ahead_left_are_told_of_and_get_their_month(
    pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    user = await new_user(pool)
    ahead = datetime.now(UTC) + timedelta(days=150)
    tail = new_id().int & ((1 << 80) - 1)
    job = message(user, id=UUID(int=lowest_id(ahead).int | tail))
    await Jobs(pool).settle([record(job, logs=orjson.dumps([("stdout", "info", "said")]))])
    assert await pool.fetchval("SELECT count(*) FROM invocations_default") == 1
    await make_partitions(pool)
    assert "records are months away from now: an API process's clock is wrong, or was" in caplog.messages
    caplog.clear()
    # The month comes.
    assert await pool.fetchval("SELECT make_month_partitions($1, 3)", ahead.date()) >= 2
    await make_partitions(pool)
    assert caplog.messages == []
    for table in ("invocations", "logs"):
        assert await pool.fetchval(f"SELECT count(*) FROM {table}_{ahead:%Y_%m} WHERE job_id = $1", job.id) == 1
        assert await pool.fetchval(f"SELECT count(*) FROM {table} WHERE job_id = $1", job.id) == 1
        found = await pool.fetch(
            "SELECT indexdef FROM pg_indexes WHERE tablename = ANY ($1)",
            [f"{table}_default", f"{table}_{ahead:%Y_%m}"],
        )
        assert len(found) == 2 * len({row["indexdef"].partition(" USING ")[2] for row in found}), "the same indexes"


async def test_record_of_a_month_without_a_partition_is_kept(pool: Pool, jobs: Jobs, user: UUID) -> None:
    job = message(user, id=UUID(int=(1 << 80) | 0x7 << 76 | 0b10 << 62))  # the first millisecond of 1970
    await jobs.settle([record(job)])
    assert await pool.fetchval("SELECT count(*) FROM invocations_default") == 1


async def test_f23_a_leader_of_another_release_goes_on_with_an_open_queue(
    redis: Redis, queue: Queue, rebuild: Rebuild
) -> None:
    before = await queue.generation()
    await redis.script_flush()
    assert not await rebuild.needed()
    assert await redis.script_exists(*(script.sha for script in SCRIPTS)) == [True] * len(SCRIPTS)
    assert await queue.generation() == before
    await redis.hset(GENERATION, "layout", "of another release")  # type: ignore[misc]
    assert await rebuild.needed()
    await rebuild.run_once()
    assert not await rebuild.needed()
