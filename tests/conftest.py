"""Real servers for every test that needs one: started once a run, emptied for each test."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, aclosing
from functools import cache
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from redis.asyncio import Redis

from scheduler.rebuild import Rebuild
from shared.embedded.postgres import EmbeddedPostgres
from shared.embedded.redis import EmbeddedRedis
from shared.postgres.jobs import Jobs
from shared.postgres.migrate import migrate
from shared.postgres.pool import Pool, close_pool, open_pool
from shared.queue.connection import connect
from shared.queue.queue import Queue
from tests.blocking import loop_kept_free
from tests.deployment import Platform


@cache
def engine_answers() -> bool:
    """Whether a container engine answers on this machine."""
    try:
        done = subprocess.run(["docker", "version"], capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--podman", action="store_true", help="run every test of engines on Podman too, not a choice only")


def pytest_configure() -> None:
    """Ctrl-C means the same to what tests start when the run itself was started to ignore it, in a shell's
    background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what needs containers where there are none, and say so; in CI that is a failure."""
    if item.get_closest_marker("docker") is None or engine_answers():
        return
    if os.environ.get("CI") or os.environ.get("CONTAINERPUB_REQUIRE_DOCKER"):
        pytest.fail("no container engine answers")
    pytest.skip("no container engine answers; start Docker to run this")


@pytest.fixture(scope="session", autouse=True)
def loop_stays_free() -> Iterator[None]:
    """Whatever blocks the event loop fails the test, in all code of ours that runs in this process."""
    with loop_kept_free():
        yield


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path_factory.mktemp("postgres"))
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


@pytest.fixture(scope="session")
def template(postgres_server: EmbeddedPostgres) -> str:
    """The name of a migrated database that tests clone."""

    async def make() -> None:
        connection = await asyncpg.connect(postgres_server.dsn)
        await connection.execute("CREATE DATABASE template_migrated")
        await connection.close()
        await migrate(dsn_of(postgres_server, "template_migrated"))

    asyncio.run(make())
    return "template_migrated"


def dsn_of(server: EmbeddedPostgres, database: str) -> str:
    base, _, query = server.dsn.partition("?")
    return f"{base.rsplit('/', 1)[0]}/{database}?{query}"


@pytest.fixture
def database(postgres_server: EmbeddedPostgres, template: str) -> Iterator[str]:
    """The address of a migrated, empty database."""
    name = f"test_{uuid4().hex[:12]}"

    async def run(statement: str) -> None:
        connection = await asyncpg.connect(postgres_server.dsn)
        await connection.execute(statement)
        await connection.close()

    asyncio.run(run(f"CREATE DATABASE {name} TEMPLATE {template}"))
    yield dsn_of(postgres_server, name)
    asyncio.run(run(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    """The address of an empty Redis that knows no script."""

    async def empty() -> None:
        client = Redis.from_url(redis_server.url)
        await client.flushall()
        await client.script_flush()
        await client.aclose()

    asyncio.run(empty())
    return redis_server.url


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    opened = await open_pool(database, size=4, timeout_s=10, name="test")
    yield opened
    await close_pool(opened)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = connect(redis_url, timeout_s=5)
    yield client
    await client.aclose()


@pytest.fixture
async def queue(redis: Redis, pool: Pool) -> AsyncIterator[Queue]:
    """An open, empty queue."""
    async with aclosing(Queue(redis)) as opened:
        await Rebuild(redis, opened, Jobs(pool), pool, grace_s=0).run_once()
        yield opened


@pytest.fixture
async def platform(database: str, redis_url: str) -> AsyncIterator[Platform]:
    """All processes with one worker, on the process engine."""
    async with Platform(database_url=database, redis_url=redis_url, engine="process") as running:
        yield running


@pytest.fixture(scope="session")
def shared_platform(
    postgres_server: EmbeddedPostgres, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    """One running platform on the process engine for all tests that harm nobody: own database, own Redis."""
    redis = EmbeddedRedis(tmp_path_factory.mktemp("redis-shared"))
    name = f"shared_{uuid4().hex[:12]}"

    async def start() -> Platform:
        connection = await asyncpg.connect(postgres_server.dsn)
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        await connection.close()
        await redis.start()
        platform = Platform(
            database_url=dsn_of(postgres_server, name), redis_url=redis.url, engine="process", env=SHARED_ENV
        )
        return await platform.__aenter__()

    with ExitStack() as stack:
        platform = asyncio.run(start())
        stack.callback(lambda: asyncio.run(redis.stop()))
        stack.callback(lambda: asyncio.run(platform.stop()))
        yield platform


SHARED_ENV = {"LOGIN_ATTEMPTS_PER_MINUTE": "1000"}


@pytest.fixture
def api_url(shared_platform: Platform) -> str:
    return shared_platform.url


@pytest.fixture(scope="session")
def examples() -> Path:
    return Path(__file__).parents[1] / "examples"
