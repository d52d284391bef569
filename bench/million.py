"""A million queued jobs: what accepting, running and settling one costs then, and what it weighs in Redis."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from redis.asyncio import Redis

from bench import recorded
from bench.caller import Caller
from bench.figure import Baseline, Better, Figure
from bench.measurement import Measurement
from bench.platform import Platform

_NOOP = "def handler(event, context):\n    return None\n"
_BODY = "x" * 64
_BATCH = 1000
_SETTLE_TIMEOUT_S = 120.0


async def measure(measurement: Measurement) -> list[Figure]:
    """Accepted in batches, while there is no worker; then one worker runs a sample of them."""
    jobs, sample = measurement.pick((50_000, 5_000), (1_000_000, 20_000))
    env = {"MAX_QUEUED_PER_USER": str(2 * jobs), "MAX_RUNNING_PER_USER": "1000"}
    async with (
        measurement.platform(env=env) as platform,
        platform.caller() as caller,
        Redis.from_url(platform.redis.url) as redis,
    ):
        await caller.deploy("noop", _NOOP)
        await _run(platform, caller, sample)  # a first time: plans are made, sandboxes are there
        measurement.say(f"{sample:,} jobs on an empty queue")
        await platform.stop("worker-1")
        accept_empty = await _accept(caller, sample)
        run_empty = await _drain(platform, sample)
        await recorded.settled(platform, timeout_s=_SETTLE_TIMEOUT_S)
        await platform.stop("worker-1")
        before = await _used(redis)
        measurement.say(f"accepting {jobs:,} jobs")
        await _accept(caller, jobs - sample)
        accept_full = await _accept(caller, sample)
        weight = (await _used(redis) - before) / jobs
        measurement.say(f"running {sample:,} of them")
        run_full = await _drain(platform, sample)
        await recorded.all_succeeded(platform)
        await platform.stop("worker-1")
    return [
        Figure(
            key=f"million_{key}",
            what=f"{what} a job with {jobs:,} queued",
            value=full / empty,
            unit="x",
            better=Better.LESS,
            target=1.2,
            baseline=Baseline(name="itself, empty queue", value=1.0),
            details={"empty_us": empty * 1e6, "full_us": full * 1e6},
        )
        for key, what, empty, full in (
            ("accept", "accepting", accept_empty, accept_full),
            ("run", "claiming, running and settling", run_empty, run_full),
        )
    ] + [
        Figure(
            key="queued_job_bytes",
            what="Redis's memory a queued job with a body of 64 bytes",
            value=weight,
            unit="B",
            better=Better.LESS,
            target=500,
        )
    ]


async def _accept(caller: Caller, count: int) -> float:
    """Seconds a job."""
    items = {"items": [{"body": _BODY}] * _BATCH}
    started = time.perf_counter()
    for _ in range(count // _BATCH):
        await caller.call("POST", "/api/functions/noop/invoke-batch", 202, json=items)
    return (time.perf_counter() - started) / count


async def _run(platform: Platform, caller: Caller, count: int) -> None:
    await _accept(caller, count)
    await recorded.settled(platform, timeout_s=_SETTLE_TIMEOUT_S)


async def _drain(platform: Platform, count: int) -> float:
    """Start the worker; seconds a job, from the first record of one to that of the ``count``-th."""
    since = await platform.database.fetchval("SELECT clock_timestamp()")
    platform.start("worker-1")
    seen = await platform.database.fetchval("SELECT count(*) FROM invocations")
    await recorded.invocations_reach(platform, seen + count, timeout_s=_SETTLE_TIMEOUT_S)
    ends: list[Any] = await platform.database.fetch(
        "SELECT finished_at FROM invocations WHERE finished_at > $1 ORDER BY finished_at LIMIT $2", since, count
    )
    # The first ones wait for sandboxes.
    first, last = ends[count // 4]["finished_at"], ends[-1]["finished_at"]
    return float((last - first).total_seconds() / (len(ends) - count // 4))


async def _used(redis: Redis) -> float:
    """Redis's memory at rest: while it rewrites its file, it also holds everything that is written meanwhile."""
    while (await redis.info("persistence"))["aof_rewrite_in_progress"]:
        await asyncio.sleep(0.1)
    return float((await redis.info("memory"))["used_memory"])
