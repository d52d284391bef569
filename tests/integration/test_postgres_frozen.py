"""A Postgres that accepts and never answers: callers are told so within one time-out, however they ask."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest

from shared.embedded.postgres import EmbeddedPostgres
from shared.errors import Unavailable
from shared.postgres.pool import Pool, close_pool, open_pool, postgres_errors

TIMEOUT_S = 2.0
Ask = Callable[[Pool], Awaitable[object]]


@pytest.fixture(scope="module")
def own_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path_factory.mktemp("frozen"))
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


@pytest.fixture
async def own_pool(own_postgres: EmbeddedPostgres) -> AsyncIterator[Pool]:
    pool = await open_pool(own_postgres.dsn, size=2, timeout_s=TIMEOUT_S, name="frozen")
    yield pool
    await close_pool(pool)


@contextmanager
def frozen(postmaster: psutil.Process) -> Iterator[None]:
    processes = [postmaster, *postmaster.children(recursive=True)]
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGCONT)


async def a_statement(pool: Pool) -> object:
    return await pool.fetchval("SELECT 1")


async def a_row(pool: Pool) -> object:
    return await pool.fetchrow("SELECT 1")


async def rows(pool: Pool) -> object:
    return await pool.fetch("SELECT 1")


async def a_command(pool: Pool) -> object:
    return await pool.execute("SELECT 1")


async def a_transaction(pool: Pool) -> object:
    async with pool.acquire() as connection, connection.transaction():
        return await connection.fetchval("SELECT 1")


@pytest.mark.alone
@pytest.mark.parametrize("ask", [a_statement, a_row, rows, a_command, a_transaction])
@pytest.mark.parametrize("callers", [1, 6], ids=["alone", "more than connections"])
async def test_frozen_postgres_is_told_of_within_one_time_out(own_pool: Pool, ask: Ask, callers: int) -> None:
    async def asked() -> float:
        started = time.monotonic()
        with pytest.raises(Unavailable), postgres_errors():
            await ask(own_pool)
        return time.monotonic() - started

    backend = psutil.Process(await own_pool.fetchval("SELECT pg_backend_pid()"))
    postmaster = backend.parent()
    assert postmaster is not None
    with frozen(postmaster):
        took = await asyncio.gather(*(asked() for _ in range(callers)))
    # A transaction that waited for its connection has the time-out for its first statement, too.
    most = 2 if ask is a_transaction and callers > 1 else 1
    assert max(took) < most * TIMEOUT_S + 1, took
    with postgres_errors():
        assert await own_pool.fetchval("SELECT 2") == 2, "and it serves again as soon as it answers"
