"""A running platform on the process engine, load on it, and a look behind its API: for tests that break things."""

from __future__ import annotations

import asyncio
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
from shared.postgres.migrate import migrate
from shared.queue.queue import RECORDS
from tests.client import Answer, Client
from tests.conservation import assert_conserved
from tests.deployment import Platform

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
_NAP = """
import asyncio

async def handler(event, context):
    with open({runs!r}, "a") as runs:
        runs.write(context.job_id + "\\n")
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

    async def empty_redis(self) -> int:
        """``FLUSHALL``; how many records, of attempts that had ended, went with it."""
        lost, _ = await self.redis.pipeline(transaction=True).xlen(RECORDS).flushall().execute()
        return int(lost)

    async def rows(self, query: str, *args: object) -> list[Any]:
        connection = await asyncpg.connect(self.database_url)
        try:
            return list(await connection.fetch(query, *args))
        finally:
            await connection.close()

    @property
    def ids(self) -> list[UUID]:
        return [UUID(job) for job in self.accepted]

    async def drained(self) -> None:
        """Return once all records that were on their way are written."""

        async def written() -> bool:
            return not await self.redis.xlen(RECORDS)

        await until(written, 15, self.platform.logs)

    async def jobs(self) -> dict[str, Any]:
        """The accepted jobs as Postgres has them."""
        ids = self.ids
        return {str(row["id"]): row for row in await self.rows("SELECT * FROM jobs WHERE id = ANY ($1)", ids)}

    async def attempts(self) -> dict[str, list[Any]]:
        """Records of attempts of the accepted jobs, in order, once all that were on their way are written.

        Those that a killed worker had just read are taken over by another within six seconds.
        """

        await self.drained()
        ids = self.ids
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

    @property
    def runs(self) -> Path:
        """Where ``nap`` notes each job whenever it begins one: a witness that the platform has no say in."""
        return self.platform.folder / "runs"

    @property
    def nap(self) -> str:
        """The code of ``nap``."""
        return _NAP.format(runs=str(self.runs))

    async def one_outcome_each(self, unrecorded: int = 0) -> None:
        """Every accepted job succeeded, with exactly one attempt that did, and the books balance.

        :param unrecorded: how many runs may be without a record, since that was lost with a server.
        """
        jobs, attempts = await self.jobs(), await self.attempts()
        runs = Counter(self.runs.read_text().split())
        more = {job: runs[job] - len(records) for job, records in attempts.items() if runs[job] > len(records)}
        assert sum(more.values()) <= unrecorded, f"runs without a record: {more}"
        assert all(runs[job] for job in attempts), "a job that never ran has an outcome"
        assert Counter(row["status"] for row in jobs.values()) == {"succeeded": len(self.accepted)}
        for job, records in attempts.items():
            outcomes = [record["outcome"] for record in records]
            assert outcomes.count("succeeded") == 1, (job, outcomes)
        await assert_conserved(self.redis, self.database_url)

    def nothing_exited(self) -> None:
        ends = {name: process.returncode for name, process in self.platform.processes.items()}
        if set(ends.values()) != {None}:
            pytest.fail(f"{ends}\n{self.platform.logs()}")  # whole: an assertion's message would be cut


@asynccontextmanager
async def scene(database_url: str, redis_url: str, *, workers: int = 1, **env: str) -> AsyncIterator[Scene]:
    async with (
        Redis.from_url(redis_url) as redis,
        Platform(
            database_url=database_url, redis_url=redis_url, engine="process", workers=workers, env=ENV | env
        ) as platform,
        platform.client() as client,
    ):
        await client.register()
        on = Scene(platform, client, redis, database_url)
        assert (await client.deploy("nap", {"main.py": on.nap}, settings={"timeout_s": 90})).status == 201
        yield on


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
        await self.stop()

    async def stop(self) -> None:
        """Ask for nothing more, and wait until every call was answered."""
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
