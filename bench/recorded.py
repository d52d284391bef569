"""What Postgres says about the invocations that were measured: no figure counts without its records."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

from redis.asyncio import Redis

from bench.figure import WrongAnswer
from bench.platform import Platform
from shared.queue.conservation import Conservation
from shared.queue.queue import RECORDS, Queue

_POLL_S = 0.05
_RECORDS_TIMEOUT_S = 30.0


async def all_committed(platform: Platform, jobs: Sequence[str]) -> None:
    """Raise :class:`WrongAnswer` unless each of ``jobs`` is there, once."""
    if len(set(jobs)) != len(jobs):
        raise WrongAnswer("an id was given out twice")
    found = await platform.database.fetchval("SELECT count(*) FROM jobs WHERE id = ANY ($1::uuid[])", list(jobs))
    if found != len(jobs):
        raise WrongAnswer(f"{len(jobs)} jobs were accepted, Postgres knows {found} of them")


async def settled(platform: Platform, *, timeout_s: float) -> None:
    """Wait until no job is open any more."""
    async with asyncio.timeout(timeout_s):
        while await platform.unfinished():
            await asyncio.sleep(_POLL_S)


async def all_written(platform: Platform) -> None:
    """Wait for the end of the last records' way to Postgres."""
    async with Redis.from_url(platform.redis.url) as redis, asyncio.timeout(_RECORDS_TIMEOUT_S):
        while await redis.xlen(RECORDS):
            await asyncio.sleep(_POLL_S)


async def balanced(platform: Platform) -> None:
    """Raise :class:`WrongAnswer` unless the queue is empty, and Postgres says the same."""
    async with Redis.from_url(platform.redis.url) as redis, aclosing(Queue(redis)) as queue:
        balance = await Conservation(redis, queue, platform.database).run_once()
    if balance.findings or balance.open or balance.running or balance.waiting or balance.parked:
        raise WrongAnswer(f"the books do not balance: {balance}")


async def invocations_reach(platform: Platform, count: int, *, timeout_s: float) -> None:
    """Wait until ``count`` invocations are recorded."""
    async with asyncio.timeout(timeout_s):
        while await platform.database.fetchval("SELECT count(*) FROM invocations") < count:
            await asyncio.sleep(_POLL_S)


async def all_succeeded(platform: Platform) -> None:
    """Raise :class:`WrongAnswer` when a recorded invocation was no success."""
    bad = await platform.database.fetchrow(
        "SELECT outcome, reason, error, count(*) OVER () AS bad FROM invocations WHERE outcome <> 'succeeded' LIMIT 1"
    )
    if bad is not None:
        raise WrongAnswer(f"{bad['bad']} invocations failed, one as {bad['outcome']}, {bad['reason']}: {bad['error']}")


async def start_kinds(platform: Platform, since: float) -> dict[str, int]:
    """Invocations accepted since a Unix time, by how their sandbox was started."""
    rows = await platform.database.fetch(
        "SELECT start_kind, count(*) AS count FROM invocations WHERE accepted_at >= to_timestamp($1) GROUP BY 1", since
    )
    return {row["start_kind"]: row["count"] for row in rows}


async def start_kinds_of(platform: Platform, since: float, count: int) -> dict[str, int]:
    """The same, once all records of the ``count`` invocations are there."""
    async with asyncio.timeout(_RECORDS_TIMEOUT_S):
        while sum((kinds := await start_kinds(platform, since)).values()) < count:
            await asyncio.sleep(_POLL_S)
    return kinds


async def phases_ms(platform: Platform, since: float, seconds: float = 86_400.0) -> dict[str, float]:
    """Median milliseconds by phase of the invocations accepted since a Unix time, or within ``seconds`` of it."""
    row = await platform.database.fetchrow(
        """
        SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY queue_ms) AS queue,
               percentile_cont(0.5) WITHIN GROUP (ORDER BY sandbox_ms) AS sandbox,
               percentile_cont(0.5) WITHIN GROUP (ORDER BY run_ms) AS run,
               percentile_cont(0.5) WITHIN GROUP (ORDER BY total_ms) AS total
        FROM invocations WHERE accepted_at >= to_timestamp($1) AND accepted_at < to_timestamp($1 + $2)
        """,
        since,
        seconds,
    )
    return {name: round(value, 3) for name, value in row.items() if value is not None}
