"""Processes and servers are killed, stopped and starved under load; every accepted job ends once all the same."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from redis.asyncio import Redis

from shared.embedded.postgres import EmbeddedPostgres
from shared.embedded.redis import EmbeddedRedis
from shared.postgres.jobs import Jobs
from shared.postgres.migrate import migrate
from shared.postgres.pool import Pool
from shared.queue.queue import RECORDS
from tests.client import Answer, Client
from tests.conservation import assert_conserved
from tests.deployment import Platform
from tests.seeds import message

LEASE_S = 3
_PAUSE_S = 0.1
ENV = {
    "LEASE_SECONDS": str(LEASE_S),
    "HEARTBEAT_SECONDS": "1",
    "LEADER_SECONDS": "3",
    "RECONCILE_SECONDS": "2",
    "FUNCTION_MAX_CONCURRENT": "4",
    "DRAIN_SECONDS": "2",
}
NAP = """
import asyncio

async def handler(event, context):
    await asyncio.sleep(event["body"])
    return "slept"
"""


async def until(condition: Callable[[], Awaitable[Any]], within_s: float, why: Callable[[], str]) -> Any:
    """The first true answer of ``condition``."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while not (answer := await condition()):
        assert loop.time() < deadline, why()
        await asyncio.sleep(0.05)
    return answer


class Scene:
    """A running platform, an account with the function ``nap``, and a look behind the API."""

    def __init__(self, platform: Platform, client: Client, redis: Redis, database_url: str) -> None:
        self.platform = platform
        self.client = client
        self.redis = redis
        self.database_url = database_url
        self.accepted: list[str] = []

    async def accept(self, seconds: float) -> Answer:
        """Ask for a nap as a job; remembered if it was accepted."""
        answer = await self.client.invoke("nap", seconds, prefer="respond-async")
        if answer.status == 202:
            self.accepted.append(answer.json["job_id"])
        return answer

    async def accept_many(self, count: int, seconds: float) -> None:
        answers = await asyncio.gather(*(self.accept(seconds) for _ in range(count)))
        assert {answer.status for answer in answers} == {202}, (answers, self.platform.logs())

    async def holders(self) -> dict[str, set[str]]:
        """Worker process to the jobs that Redis holds it to be running."""
        held: dict[str, set[str]] = {}
        pids = {str(process.pid): name for name, process in self.platform.processes.items()} | self.killed
        for job, entry in (await self.redis.hgetall("cp:invoke:running")).items():  # type: ignore[misc]
            held.setdefault(pids[entry.split(b" ")[1].decode().split("-")[-2]], set()).add(job.decode())
        return held

    killed: dict[str, str] = {}  # noqa: RUF012 - replaced, never changed

    async def busy(self, count: int = 1) -> str:
        """A living worker that runs ``count`` jobs at least."""

        async def find() -> str | None:
            living = self.platform.processes
            return next(
                (name for name, jobs in (await self.holders()).items() if len(jobs) >= count and name in living), None
            )

        found: str = await until(find, 20, self.platform.logs)
        return found

    async def kill_worker(self, name: str) -> set[str]:
        """``kill -9``; the jobs it had."""
        self.killed = self.killed | {str(self.platform.processes[name].pid): name}
        self.platform.kill(name)
        return (await self.holders()).get(name, set())

    async def rows(self, query: str, *args: object) -> list[Any]:
        connection = await asyncpg.connect(self.database_url)
        try:
            return list(await connection.fetch(query, *args))
        finally:
            await connection.close()

    async def jobs(self) -> dict[str, Any]:
        """The accepted jobs as Postgres has them."""
        ids = [UUID(job) for job in self.accepted]
        return {str(row["id"]): row for row in await self.rows("SELECT * FROM jobs WHERE id = ANY ($1)", ids)}

    async def attempts(self) -> dict[str, list[Any]]:
        """Records of attempts of the accepted jobs, in order, once all that were on their way are written.

        Those that a killed worker had just read are taken over by another within six seconds.
        """

        async def written() -> bool:
            return not await self.redis.xlen(RECORDS)

        await until(written, 15, self.platform.logs)
        ids = [UUID(job) for job in self.accepted]
        found: dict[str, list[Any]] = {job: [] for job in self.accepted}
        for row in await self.rows("SELECT * FROM invocations WHERE job_id = ANY ($1) ORDER BY epoch", ids):
            found[str(row["job_id"])].append(row)
        return found

    async def all_ended(self, within_s: float) -> dict[str, Any]:
        """The accepted jobs, once all are final."""

        async def ended() -> dict[str, Any] | None:
            jobs = await self.jobs()
            return jobs if all(row["finished_at"] for row in jobs.values()) else None

        jobs: dict[str, Any] = await until(ended, within_s, self.platform.logs)
        assert len(jobs) == len(set(self.accepted)), "an accepted job is not in Postgres"
        return jobs

    async def one_outcome_each(self) -> None:
        """Every accepted job succeeded, with exactly one attempt that did, and the books balance."""
        jobs, attempts = await self.jobs(), await self.attempts()
        assert Counter(row["status"] for row in jobs.values()) == {"succeeded": len(self.accepted)}
        for job, records in attempts.items():
            outcomes = [record["outcome"] for record in records]
            assert outcomes.count("succeeded") == 1, (job, outcomes)
        await assert_conserved(self.redis, self.database_url)

    def nothing_exited(self) -> None:
        ends = {name: process.poll() for name, process in self.platform.processes.items()}
        if set(ends.values()) != {None}:
            pytest.fail(f"{ends}\n{self.platform.logs()}")  # whole: an assertion's message would be cut


@asynccontextmanager
async def scene(database_url: str, redis_url: str, *, workers: int = 1, **env: str) -> AsyncIterator[Scene]:
    redis = Redis.from_url(redis_url)
    async with (
        Platform(
            database_url=database_url, redis_url=redis_url, engine="process", workers=workers, env=ENV | env
        ) as platform,
        platform.client() as client,
    ):
        await client.register()
        assert (await client.deploy("nap", {"main.py": NAP}, settings={"timeout_s": 90})).status == 201
        yield Scene(platform, client, redis, database_url)
    await redis.aclose()


@pytest.fixture
async def own_redis(tmp_path: Path) -> AsyncIterator[EmbeddedRedis]:
    async with EmbeddedRedis(tmp_path / "redis") as server:
        yield server


@pytest.fixture
async def own_postgres(tmp_path: Path) -> AsyncIterator[EmbeddedPostgres]:
    async with EmbeddedPostgres(tmp_path / "postgres") as server:
        await migrate(server.dsn)
        yield server


class Load:
    """Callers that ask for naps until told to stop, and remember what they were answered."""

    def __init__(self, on: Scene, *, asynchronous: int = 3, synchronous: int = 2, seconds: float = 0.02) -> None:
        self._scene = on
        self._seconds = seconds
        self._callers = [self._accept] * asynchronous + [self._invoke] * synchronous
        self._stop = asyncio.Event()
        self.accepts: list[Answer] = []
        self.invokes: list[Answer] = []

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._repeat(caller)) for caller in self._callers]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _repeat(self, call: Callable[[], Awaitable[Answer]]) -> None:
        while not self._stop.is_set():
            await call()
            await asyncio.sleep(_PAUSE_S)  # the load must stay below what the workers can do

    async def _accept(self) -> Answer:
        answer = await self._scene.accept(self._seconds)
        self.accepts.append(answer)
        return answer

    async def _invoke(self) -> Answer:
        try:
            answer = await self._scene.client.invoke("nap", self._seconds)
        except TimeoutError:
            raise AssertionError(f"a call was never answered\n{self._scene.platform.logs()}") from None
        self.invokes.append(answer)
        return answer

    async def served(self, count: int, within_s: float = 30) -> None:
        """Return once ``count`` more calls of each kind that there is were served."""
        goals = [(answers, self._good(answers) + count) for answers in (self.accepts, self.invokes)]
        goals = goals[: 2 if self._invoke in self._callers else 1]

        async def reached() -> bool:
            return all(self._good(answers) >= goal for answers, goal in goals)

        await until(reached, within_s, self._scene.platform.logs)

    async def refused(self, answers: list[Answer], within_s: float = 20) -> None:
        """Return once a call was refused."""
        start = len(answers)

        async def one() -> bool:
            return any(answer.status >= 400 for answer in answers[start:])

        await until(one, within_s, self._scene.platform.logs)

    def only_clean_refusals(self) -> None:
        for answer in (*self.accepts, *self.invokes):
            assert answer.status in (200, 202, 503), answer
            if answer.status == 503:
                assert answer.json["code"], answer

    @staticmethod
    def _good(answers: list[Answer]) -> int:
        return sum(answer.status < 300 for answer in answers)


@pytest.mark.parametrize("workers", [2, 4])
async def test_f1_killed_worker_loses_attempts_and_no_job(database: str, redis_url: str, workers: int) -> None:
    async with scene(database, redis_url, workers=workers) as on:
        await on.accept_many(8 * workers, 0.5)
        lost = await on.kill_worker(await on.busy(2))
        assert lost
        jobs = await on.all_ended(LEASE_S + 5)
        attempts = await on.attempts()
        for job, row in jobs.items():
            outcomes = [(record["outcome"], record["attempt"]) for record in attempts[job]]
            if job in lost:
                assert (row["attempt"], row["lost"]) == (2, 1)
                assert outcomes == [("lost", 1), ("succeeded", 2)]
                assert len({record["worker_id"] for record in attempts[job]}) == 2
            else:
                assert (row["attempt"], row["lost"], outcomes) == (1, 0, [("succeeded", 1)])
        assert len({record["worker_id"] for records in attempts.values() for record in records}) == workers
        await on.one_outcome_each()


async def test_f4_worker_that_slept_beyond_its_lease_settles_nothing(database: str, redis_url: str) -> None:
    async with scene(database, redis_url, workers=2) as on:
        await on.accept_many(4, 1.0)
        sleeper = await on.busy()
        on.platform.signal(sleeper, signal.SIGSTOP)
        mine = (await on.holders())[sleeper]
        # A stopped worker may also have been handed records, which others take over after five seconds.
        await on.all_ended(LEASE_S + 10)
        on.platform.signal(sleeper, signal.SIGCONT)
        log = on.platform.log(sleeper)

        async def told() -> bool:
            text = log.read_text()
            return "settle refused" in text or "not ours any more" in text

        await until(told, 15, on.platform.logs)
        attempts = await on.attempts()
        for job in mine:
            assert [record["outcome"] for record in attempts[job]] == ["lost", "succeeded"]
        await on.one_outcome_each()
        # It serves on, as the same process.
        await on.accept_many(12, 0.3)
        await on.all_ended(10)
        attempts = await on.attempts()
        assert len({record["worker_id"] for records in attempts.values() for record in records[-1:]}) == 2
        on.nothing_exited()


async def test_f20_job_that_costs_worker_after_worker_is_given_up(database: str, redis_url: str) -> None:
    async with scene(database, redis_url, workers=2) as on:
        await on.accept(60)
        for number in range(3):
            lost = await on.kill_worker(await on.busy())
            assert lost == set(on.accepted)
            on.platform.start(f"worker-{number + 3}")
        (row,) = (await on.all_ended(LEASE_S + 5)).values()
        assert (row["status"], row["reason"], row["attempt"], row["lost"]) == ("failed", "worker_lost", 3, 3)
        (records,) = (await on.attempts()).values()
        assert [(record["outcome"], record["attempt"]) for record in records] == [("lost", 1), ("lost", 2), ("lost", 3)]
        view = await on.client.job(on.accepted[0])
        assert (view["status"], view["reason"]) == ("failed", "worker_lost")
        await assert_conserved(on.redis, database)


async def test_f5_job_committed_and_never_enqueued_is_found(database: str, redis_url: str, pool: Pool) -> None:
    async with scene(database, redis_url) as on:
        version = (await on.rows("SELECT id, function_id FROM versions"))[0]
        user = (await on.rows("SELECT id FROM users"))[0]["id"]
        job = message(user, function=version["function_id"], version_id=version["id"], payload=b'{"body":0}')
        await Jobs(pool).accept([job])
        on.accepted.append(str(job.id))
        await on.all_ended(10)
        await on.one_outcome_each()


async def _lose_aof(server: EmbeddedRedis) -> None:
    server.kill()
    await server.wait()
    await asyncio.to_thread(shutil.rmtree, server.data)


@pytest.mark.parametrize("fault", ["f8-killed-without-aof", "f8-killed-with-aof", "f9-flushed"])
async def test_redis_that_lost_everything_loses_no_job(database: str, own_redis: EmbeddedRedis, fault: str) -> None:
    async with scene(database, own_redis.url, workers=2) as on:
        # Long ones run through the outage: their workers tell the new queue of them.
        await on.accept_many(3, 4)
        await on.busy()
        async with Load(on) as load:
            await load.served(20)
            if fault == "f9-flushed":
                await on.redis.flushall()
            else:
                if fault == "f8-killed-without-aof":
                    await _lose_aof(own_redis)
                else:
                    own_redis.kill()
                    await own_redis.wait()
                await load.refused(load.invokes)
                await own_redis.start()
            await load.served(20)
        load.only_clean_refusals()
        if fault != "f9-flushed":
            assert all(answer.status == 202 for answer in load.accepts), "Redis away must not refuse a durable job"
        on.nothing_exited()
        await on.all_ended(60)
        await on.one_outcome_each()
        attempts = await on.attempts()
        for job in on.accepted[:3]:
            assert [record["outcome"] for record in attempts[job]] == ["succeeded"], "a running attempt was lost"


async def test_f9_a_waited_for_call_that_was_lost_with_redis_is_told_so_and_one_that_runs_is_not(
    database: str, redis_url: str
) -> None:
    async with scene(database, redis_url, FUNCTION_MAX_CONCURRENT="1") as on:
        runs = asyncio.create_task(on.client.invoke("nap", 4))

        async def at(key: bytes) -> int:
            return int(await on.redis.hlen(key))

        async def one_runs() -> bool:
            return await at(b"cp:invoke:running") == 1

        async def both_are_there() -> bool:
            return (await at(b"cp:invoke:running"), await at(b"cp:invoke:messages")) == (1, 2)

        await until(one_runs, 10, on.platform.logs)
        waits = asyncio.create_task(on.client.invoke("nap", 0))
        await until(both_are_there, 10, on.platform.logs)
        await on.redis.flushall()
        async with asyncio.timeout(15):  # the function's own time-out is 90 s
            lost = await waits
            assert (lost.status, lost.json["code"], lost.json["may_have_run"]) == (503, "dependency_down", True)
            assert (await runs).status == 200
        assert (await on.client.invoke("nap", 0)).status == 200


async def test_f13_postgres_killed_hard_comes_back_and_nothing_acknowledged_is_lost(
    own_postgres: EmbeddedPostgres, redis_url: str
) -> None:
    async with scene(own_postgres.dsn, redis_url, workers=2) as on:
        async with Load(on) as load:
            await load.served(20)
            own_postgres.kill()
            await own_postgres.wait()
            await load.refused(load.accepts)
            await own_postgres.start()
            await load.served(20, within_s=10)
        load.only_clean_refusals()
        on.nothing_exited()
        await on.all_ended(30)
        await on.one_outcome_each()


async def test_f22_worker_told_to_stop_under_load_fails_nobody(database: str, redis_url: str) -> None:
    async with scene(database, redis_url, workers=2) as on:
        # Longer than the drain: these are handed back.
        await on.accept_many(2, 5)
        name = await on.busy()
        process = on.platform.processes[name]
        async with Load(on) as load:
            await load.served(10)
            on.platform.signal(name, signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 30) == 0
            del on.platform.processes[name]
            await load.served(10)
        assert {answer.status for answer in load.invokes} == {200}
        assert {answer.status for answer in load.accepts} == {202}
        jobs = await on.all_ended(30)
        assert {row["attempt"] for row in jobs.values()} == {1}
        attempts = await on.attempts()
        outcomes = {(record["outcome"], record["reason"]) for records in attempts.values() for record in records}
        assert set(outcomes) == {("succeeded", None), ("handed_back", None)}
        await on.one_outcome_each()


async def test_f10_redis_without_memory_delays_durable_jobs_and_loses_none(database: str, redis_url: str) -> None:
    async with scene(database, redis_url) as on:
        await on.redis.config_set("maxmemory", 1)
        try:
            await on.accept_many(5, 0)
            refused = await on.client.invoke("nap", 0)
            assert (refused.status, refused.json["code"]) == (503, "dependency_down")
            await asyncio.sleep(3 * float(ENV["HEARTBEAT_SECONDS"]))
        finally:
            await on.redis.config_set("maxmemory", 0)
        await on.all_ended(15)
        assert (await on.client.invoke("nap", 0)).status == 200
        on.nothing_exited()
        await on.one_outcome_each()


async def test_f11_redis_that_evicts_is_refused_at_the_start(database: str, redis_url: str) -> None:
    redis = Redis.from_url(redis_url)
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    platform = Platform(database_url=database, redis_url=redis_url, engine="process")
    try:
        started = {name: platform.start(name) for name in ("api", "scheduler", "worker-1")}
        for name, process in started.items():
            assert await asyncio.to_thread(process.wait, 30) == 1
            assert "maxmemory-policy allkeys-lru" in platform.log(name).read_text()
            del platform.processes[name]
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")
        await redis.aclose()
        await platform.stop()
