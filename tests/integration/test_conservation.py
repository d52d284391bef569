"""The check that every job is where it belongs: it sees every kind of damage, and takes no movement for one."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import aiohttp
import pytest
from redis.asyncio import Redis

from api.metrics import prometheus_text
from scheduler.conserve import Conserve
from scheduler.due import Due
from scheduler.rebuild import Rebuild
from shared.ids import short
from shared.jobs import JobStatus
from shared.postgres.jobs import Jobs
from shared.postgres.pool import Pool
from shared.queue import conservation as module
from shared.queue.conservation import Conservation, Finding
from shared.queue.drain import Drain
from shared.queue.message import JobMessage, now_ms
from shared.queue.queue import GENERATION, Queue, Verb
from shared.queue.scripts import QueueClosed
from tests.deployment import ROOT, Platform
from tests.seeds import accept, message, new_user, settle

PATIENCE_S = 0.5


@pytest.fixture
def jobs(pool: Pool) -> Jobs:
    return Jobs(pool)


@pytest.fixture
def conservation(redis: Redis, queue: Queue, pool: Pool) -> Conservation:
    return Conservation(redis, queue, pool)


class Books:
    """A queue with one job in every place: ``runs``, ``waits``, ``parked`` of a limited function, and ``free``, which
    waits and has no limit."""

    def __init__(self, redis: Redis, pool: Pool, user: UUID) -> None:
        self.redis = redis
        self.pool = pool
        self.user = user
        self.function = uuid4()
        self.runs, self.waits, self.parked = (message(user, function=self.function, concurrency=2) for _ in range(3))
        self.free = message(user)

    async def open(self, queue: Queue, jobs: Jobs) -> None:
        batch = [self.runs, self.waits, self.parked, self.free]
        await accept(self.pool, batch)
        await queue.enqueue("invoke", [self.runs])
        state = await queue.generation()
        assert state is not None
        _, claims = await queue.exchange("invoke", "worker-a", generation=state[0], want=1)
        assert [one.id for one in claims] == [str(self.runs.id)]
        await queue.enqueue("invoke", batch)

    def key(self, place: str, owner: UUID | None = None) -> str:
        return f"cp:invoke:{place}" + (f":{short(owner)}" if owner else "")


@pytest.fixture
async def books(redis: Redis, queue: Queue, jobs: Jobs, pool: Pool) -> Books:
    made = Books(redis, pool, await new_user(pool))
    await made.open(queue, jobs)
    return made


async def test_whole_queue_is_counted_and_nothing_found(conservation: Conservation, books: Books, jobs: Jobs) -> None:
    later = message(books.user)
    await books.pool.execute(
        "INSERT INTO jobs (id, kind, user_id, function_id, status, created_at, run_at)"
        " VALUES ($1, 'invoke', $2, $3, 'scheduled', now(), now() + interval '1 hour')",
        later.id,
        later.user_id,
        later.function_id,
    )
    balance = await conservation.run_once(patience_s=PATIENCE_S)
    assert balance.findings == set()
    assert (balance.open, balance.later) == (4, 1)
    assert (balance.running, balance.waiting, balance.parked) == (1, 2, 1)


Damage = Callable[[Books], Awaitable[object]]
STRANGER = uuid4()
DAMAGES: dict[str, tuple[Damage, Callable[[Books], set[str]]]] = {
    "job forgotten by Redis": (
        lambda b: b.redis.eval(
            "redis.call('HDEL', KEYS[1], ARGV[1]) redis.call('ZREM', KEYS[2], ARGV[1])",
            2, b.key("messages"), b.key("user", b.user), str(b.free.id),
        ),
        lambda b: {f"{b.free.id} is open and not on the queue"},
    ),
    "job ended in Postgres only": (
        lambda b: b.pool.execute(
            "UPDATE jobs SET status = 'succeeded', finished_at = now() WHERE id = $1", b.runs.id
        ),
        lambda b: {f"{b.runs.id} is on the queue and not open in Postgres"},
    ),
    "job that Postgres never knew": (
        lambda b: b.pool.execute("DELETE FROM jobs WHERE id = $1", b.free.id),
        lambda b: {f"{b.free.id} is on the queue and not open in Postgres"},
    ),
    "job due later on the queue": (
        lambda b: b.pool.execute(
            "UPDATE jobs SET status = 'scheduled', run_at = now() + interval '1 hour' WHERE id = $1", b.free.id
        ),
        lambda b: {f"{b.free.id} is on the queue and not open in Postgres"},
    ),
    "job in no place": (
        lambda b: b.redis.zrem(b.key("user", b.user), str(b.free.id)),
        lambda b: {f"{b.free.id} has a message and no place"},
    ),
    "job in two places": (
        lambda b: b.redis.zadd(b.key("parked", b.free.function_id), {str(b.free.id): 1}),
        lambda b: {
            f"{b.free.id} is in 2 places",
            f"{b.free.id} is parked, and nothing that ends will let it run",
        },
    ),
    "message gone": (
        lambda b: b.redis.hdel(b.key("messages"), str(b.free.id)),
        lambda b: {f"{b.free.id} is open and not on the queue", f"{b.free.id} is on the queue without a message"},
    ),
    "message spoilt": (
        lambda b: b.redis.hset(b.key("messages"), str(b.free.id), "nonsense"),
        lambda b: {f"{b.free.id} has a message that cannot be read", f"{b.free.id} is on the queue without a message"},
    ),
    "job with another user": (
        lambda b: b.redis.eval(
            "redis.call('ZADD', KEYS[1], 1, ARGV[1]) redis.call('ZADD', KEYS[2], 1, ARGV[2])",
            2, b.key("user", STRANGER), b.key("newcomers"), str(b.free.id), short(STRANGER),
        ),
        lambda b: {f"{b.free.id} stands in the queue of another user"},
    ),
    "job parked at another function": (
        lambda b: b.redis.eval(
            "redis.call('ZREM', KEYS[1], ARGV[1]) redis.call('ZADD', KEYS[2], 1, ARGV[1])",
            2, b.key("parked", b.function), b.key("parked", STRANGER), str(b.parked.id),
        ),
        lambda b: {f"{b.parked.id} is parked at another function", f"{b.parked.id} has a message and no place"},
    ),
    "running job not counted for its user": (
        lambda b: b.redis.srem(b.key("using", b.user), str(b.runs.id)),
        lambda b: {
            f"{b.runs.id} runs and does not count against its user",
            f"user {b.user} has jobs, runs nothing and does not stand in line for that",
        },
    ),
    "slot of a user that nothing uses": (
        lambda b: b.redis.sadd(b.key("using", b.user), str(b.free.id)),
        lambda b: {f"{b.free.id} counts against its user and does not run"},
    ),
    "slot of another user": (
        lambda b: b.redis.sadd(b.key("using", STRANGER), str(b.runs.id)),
        lambda b: {f"{b.runs.id} counts against another user"},
    ),
    "place of a function that nothing uses": (
        lambda b: b.redis.sadd(b.key("admitted", b.function), str(b.parked.id)),
        lambda b: {f"{b.parked.id} counts against its function and is not admitted"},
    ),
    "admitted job not counted for its function": (
        lambda b: b.redis.srem(b.key("admitted", b.function), str(b.waits.id)),
        lambda b: {f"{b.waits.id} is admitted and does not count against its function"},
    ),
    "user in both lines": (
        lambda b: b.redis.zadd(b.key("newcomers"), {short(b.user): 1}),
        lambda b: {f"user {b.user} stands in both lines"},
    ),
    "newcomer in no line": (
        lambda b: b.redis.eval(
            "redis.call('ZREM', KEYS[1], ARGV[1]) redis.call('DEL', KEYS[2]) redis.call('HDEL', KEYS[3], ARGV[2])"
            " redis.call('ZADD', KEYS[4], 1, ARGV[2])",
            4, b.key("ring"), b.key("using", b.user), b.key("running"), b.key("user", b.user), short(b.user),
            str(b.runs.id),
        ),
        lambda b: {f"user {b.user} has jobs, runs nothing and does not stand in line for that"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
async def test_damage_is_found_and_named(conservation: Conservation, books: Books, damage: str) -> None:
    make, expected = DAMAGES[damage]
    await make(books)
    balance = await conservation.run_once(patience_s=PATIENCE_S)
    assert {str(one) for one in balance.findings} == expected(books)


async def test_command_tells_by_its_status_and_names_what_it_found(
    database: str, redis_url: str, books: Books, queue: Queue, redis: Redis
) -> None:
    async def check(*options: str) -> tuple[int | None, str, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cli", "check", "--patience", "0.5", *options,
            cwd=ROOT, env={**os.environ, "DATABASE_URL": database, "REDIS_URL": redis_url},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()

    status, out, _ = await check("--json")
    assert (status, json.loads(out)["out_of_place"], json.loads(out)["running"]) == (0, 0, 1)
    await redis.zrem(books.key("user", books.user), str(books.free.id))
    await redis.zrem(books.key("parked", books.function), str(books.parked.id))
    status, out, _ = await check()
    assert status == 1
    assert f"{books.free.id} has a message and no place\n" in out
    status, out, _ = await check("--json", "--limit", "1")
    assert (status, json.loads(out)["out_of_place"], len(json.loads(out)["findings"])) == (1, 2, 1)
    status, out, _ = await check("--limit", "1")
    assert out.endswith("and more\n")
    await redis.hset(GENERATION, "open", "0")  # type: ignore[misc]
    status, _, err = await check()
    assert (status, "rebuilt" in err) == (6, True)


async def test_job_on_its_way_to_the_queue_is_not_out_of_place(
    conservation: Conservation, queue: Queue, jobs: Jobs, pool: Pool
) -> None:
    job = message(await new_user(pool))
    await accept(pool, [job])
    looking = asyncio.create_task(conservation.run_once(patience_s=20))
    while not looking.done() and not (await conservation.look()).findings:
        await asyncio.sleep(0.01)
    await queue.enqueue("invoke", [job])
    assert (await looking).findings == set()


@pytest.mark.parametrize("verb", [Verb.FINAL, Verb.RETRY])
async def test_job_whose_record_is_on_its_way_is_not_out_of_place(
    conservation: Conservation, queue: Queue, redis: Redis, jobs: Jobs, books: Books, verb: Verb
) -> None:
    state = await queue.generation()
    assert state is not None
    (one,) = await queue.held("invoke", "worker-a", generation=state[0])
    ending = settle(one, verb) if verb is Verb.FINAL else settle(
        one, verb, status=JobStatus.SCHEDULED, outcome="failed", run_at_ms=now_ms() + 60_000
    )  # fmt: skip
    await queue.exchange("invoke", "worker-a", generation=state[0], want=0, settles=[ending])
    looking = asyncio.create_task(conservation.run_once(patience_s=0))
    drain = Drain(redis, jobs, consumer="test")
    while not looking.done():
        await drain.run_once(block_ms=10)
    assert (await looking).findings == set()


async def test_check_says_so_when_the_queue_is_rebuilt_under_it(
    redis: Redis, queue: Queue, pool: Pool, jobs: Jobs, books: Books
) -> None:
    conservation = Conservation(redis, queue, pool)
    await redis.hdel(books.key("messages"), str(books.free.id))
    looking = asyncio.create_task(conservation.run_once(patience_s=1.5))
    await asyncio.sleep(0)
    await Rebuild(redis, queue, jobs, pool, grace_s=0).run_once()
    with pytest.raises(QueueClosed):
        await looking
    assert (await conservation.run_once(patience_s=PATIENCE_S)).findings == set()


async def test_long_queue_is_looked_at_in_pages_and_findings_are_bounded(
    conservation: Conservation, queue: Queue, jobs: Jobs, redis: Redis, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAGE", 50)
    monkeypatch.setattr(module, "_MESSAGES", 10)
    user, function = await new_user(pool), uuid4()
    batch = [message(user, function=function, concurrency=300 * (number % 2)) for number in range(1500)]
    await accept(pool, batch)
    await queue.enqueue("invoke", batch)
    balance = await conservation.run_once(patience_s=PATIENCE_S)
    assert (balance.open, balance.waiting, balance.parked, balance.findings) == (1500, 1050, 450, set())
    lost = random.Random(1).sample(batch, 40)
    await redis.hdel("cp:invoke:messages", *(str(job.id) for job in lost))  # type: ignore[misc]
    balance = await conservation.run_once(patience_s=PATIENCE_S)
    what = "is open and not on the queue"
    assert {one for one in balance.findings if one.what == what} == {
        Finding(queue="invoke", subject=str(job.id), what=what) for job in lost
    }
    assert not balance.cut
    monkeypatch.setattr(module, "_MOST", 30)
    balance = await conservation.run_once(patience_s=PATIENCE_S)
    assert (len(balance.findings), balance.cut) == (30, True)


async def test_what_the_leader_found_last_is_a_metric(
    conservation: Conservation, queue: Queue, redis: Redis, books: Books
) -> None:
    def shown(text: bytes) -> list[str]:
        return [line for line in text.decode().splitlines() if line.startswith("containerpub_jobs_out_of_place ")]

    assert shown(prometheus_text(await queue.figures())) == []
    conserve = Conserve(queue, conservation, every_s=60)
    assert await conserve.run_once() == 0
    assert shown(prometheus_text(await queue.figures())) == ["containerpub_jobs_out_of_place 0.0"]
    await redis.zrem(books.key("user", books.user), str(books.free.id))
    assert await conserve.run_once() == 1
    assert shown(prometheus_text(await queue.figures())) == ["containerpub_jobs_out_of_place 1.0"]


async def test_running_platform_checks_itself(database: str, redis_url: str, redis: Redis) -> None:
    async with (
        Platform(
            database_url=database, redis_url=redis_url, engine="process", env={"CONSERVATION_SECONDS": "0.1"}
        ) as platform,
        aiohttp.ClientSession() as http,
    ):

        async def shows(value: str) -> None:
            async with asyncio.timeout(20):
                while True:
                    async with http.get(platform.url + "/metrics") as answer:
                        if f"containerpub_jobs_out_of_place {value}\n" in await answer.text():
                            return
                    await asyncio.sleep(0.05)

        await shows("0.0")
        await redis.sadd(f"cp:invoke:using:{short(STRANGER)}", "ghost")  # type: ignore[misc]
        await shows("1.0")
        assert "jobs are out of place" in platform.log("scheduler").read_text()
        await redis.delete(f"cp:invoke:using:{short(STRANGER)}")
        await shows("0.0")


class Traffic:
    """Acceptors, workers of which some lose what they have, a drain and whoever moves what is due, all at once."""

    def __init__(self, redis: Redis, queue: Queue, pool: Pool, users: list[UUID]) -> None:
        self.queue = queue
        self.pool = pool
        self.jobs = Jobs(pool)
        self.users = users
        self.functions = {user: [uuid4() for _ in range(3)] for user in users}
        self.ended = 0
        self._drain = Drain(redis, self.jobs, consumer="traffic")
        self._due = Due(queue, self.jobs)
        self._dice = random.Random(7)

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        stop = asyncio.Event()

        async def repeat(work: Callable[[], Awaitable[object]]) -> None:
            while not stop.is_set():
                await work()
                await asyncio.sleep(0)

        work = [
            self._accept,
            self._accept,
            *(self._worker(number) for number in range(3)),
            self._write,
            self._due.run_once,
        ]
        tasks = [asyncio.create_task(repeat(one)) for one in work]
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*tasks)

    async def _accept(self) -> None:
        if await self.queue.redis.hlen("cp:invoke:messages") > 300:  # type: ignore[misc]
            return
        batch = [self._message() for _ in range(10)]
        await accept(self.pool, batch)
        await asyncio.sleep(self._dice.choice((0, 0.02)))
        await self.queue.enqueue("invoke", batch)
        if self.ended and self._dice.random() < 0.3:
            await self.queue.cancel("invoke", batch[0].id)

    def _message(self) -> JobMessage:
        user, limit = self._dice.choice(self.users), self._dice.randrange(3)
        return message(user, function=self.functions[user][limit], concurrency=4 * limit)

    def _worker(self, number: int) -> Callable[[], Awaitable[None]]:
        name = f"worker-{number}"

        async def run() -> None:
            state = await self.queue.generation()
            assert state is not None
            _, claims = await self.queue.exchange("invoke", name, generation=state[0], want=8)
            if self._dice.random() < 0.1:
                await self.queue.expire_worker(name, seen=0, max_lost=3)
                return
            await asyncio.sleep(0.005)
            settles = []
            for one in claims:
                verb = self._dice.choice((Verb.FINAL, Verb.FINAL, Verb.RETRY, Verb.HAND_BACK, Verb.LOSE))
                again: dict[str, object] = {}
                if verb is Verb.RETRY:
                    again = {"status": JobStatus.SCHEDULED, "outcome": "failed", "run_at_ms": now_ms()}
                elif verb is Verb.LOSE:
                    again = {"status": JobStatus.QUEUED, "outcome": "lost", "lost": one.decode().lost + 1}
                settles.append(settle(one, verb, **again))
            flags, _ = await self.queue.exchange("invoke", name, generation=state[0], want=0, settles=settles)
            self.ended += sum(flags)

        return run

    async def _write(self) -> None:
        await self._drain.run_once(block_ms=20)


async def test_nothing_that_moves_is_taken_for_damage(
    conservation: Conservation, redis: Redis, queue: Queue, pool: Pool
) -> None:
    users = [await new_user(pool) for _ in range(4)]
    traffic = Traffic(redis, queue, pool, users)
    async with traffic.flowing(), asyncio.timeout(60):
        for _ in range(10):
            ended = traffic.ended
            balance = await conservation.run_once()
            assert balance.findings == set()
            while traffic.ended < ended + 30:
                await asyncio.sleep(0.01)
        glances = [await conservation.look() for _ in range(20)]
    assert any(one.findings for one in glances), "it was not busy enough to say anything"
