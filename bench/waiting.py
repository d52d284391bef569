"""Thousands who wait for the ends of jobs: how late each is told, and what a waiter costs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any

import aiohttp

from bench import functions
from bench.caller import Caller
from bench.figure import Better, Figure, WrongAnswer, percentile
from bench.measurement import Measurement
from bench.platform import Platform

_SLEEP_S = 0.05
_WAIT_S = 280
_AT_ONCE = 50
_SETTLE_S = 3.0
_STANDING_S = 60.0

Waiter = Callable[[aiohttp.ClientSession, str, asyncio.Semaphore], Coroutine[Any, Any, tuple[float, Any]]]
"""Waits for a job's end; the Unix time at which it was told, and the job."""


async def measure(measurement: Measurement) -> list[Figure]:
    """Half of them wait with ``?wait=N``, half read events. There is no worker until all of them stand there."""
    count = measurement.pick(200, 2000)
    async with measurement.platform() as platform, platform.caller() as caller:
        await caller.deploy("sleeper", functions.SLEEP)
        await platform.stop("worker-1")
        jobs: list[str] = []
        while len(jobs) < count:
            items = [{"body": _SLEEP_S}] * min(1000, count - len(jobs))
            answer = await caller.call("POST", "/api/functions/sleeper/invoke-batch", 202, json={"items": items})
            jobs += [item["job_id"] for item in answer["items"]]
        return await _watch(measurement, platform, caller, jobs)


async def _watch(measurement: Measurement, platform: Platform, caller: Caller, jobs: list[str]) -> list[Figure]:
    api = platform.processes()["api"]
    measurement.say(f"{len(jobs):,} waiters")
    entering = asyncio.Semaphore(_AT_ONCE)
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        f"http://127.0.0.1:{platform.port}", headers=caller.headers, connector=connector, timeout=timeout
    ) as http:
        await asyncio.sleep(_SETTLE_S)
        before, idle = api.memory_info().rss, api.num_fds()
        ways: tuple[Waiter, Waiter] = (_poll, _read)
        waiting = [asyncio.create_task(ways[number % 2](http, job, entering)) for number, job in enumerate(jobs)]
        async with asyncio.timeout(_STANDING_S):
            while api.num_fds() < idle + len(jobs):
                await asyncio.sleep(0.2)
        await asyncio.sleep(_SETTLE_S)
        standing = api.memory_info().rss
        platform.start("worker-1")
        started = time.monotonic()
        told = await asyncio.gather(*waiting)
        took = time.monotonic() - started
    late: list[list[float]] = [[], []]
    for number, (at, job) in enumerate(told):
        if job["status"] != "succeeded":
            raise WrongAnswer(f"a job that was waited for ended as {job}")
        late[number % 2].append(1000 * (at - datetime.fromisoformat(job["finished_at"]).timestamp()))
    both = sorted(late[0] + late[1])
    return [
        Figure(
            key="waiters_told",
            what=f"{len(jobs):,} waiters: told after their job's end, p99",
            value=percentile(both, 99),
            unit="ms",
            better=Better.LESS,
            target=100,
            details={
                "jobs_per_second": len(jobs) / took,
                "max_ms": both[-1],
                **{
                    name: {f"p{percent}_ms": percentile(sorted(those), percent) for percent in (50, 90, 99, 100)}
                    for name, those in zip(("wait", "events"), late, strict=True)
                },
            },
        ),
        Figure(
            key="waiter_memory",
            what="memory of the API process a waiter",
            value=(standing - before) / len(jobs) / 1000,
            unit="kB",
            better=Better.LESS,
            target=None,
            details={"before_mb": before / 1e6, "standing_mb": standing / 1e6},
        ),
    ]


async def _poll(http: aiohttp.ClientSession, job: str, entering: asyncio.Semaphore) -> tuple[float, Any]:
    async with entering:
        asked = asyncio.create_task(_get(http, f"/api/jobs/{job}?wait={_WAIT_S}"))
        await asyncio.sleep(0.02)
    return await asked


async def _get(http: aiohttp.ClientSession, path: str) -> tuple[float, Any]:
    async with http.get(path) as response:
        body = await response.read()
        at = time.time()
        if response.status != 200:
            raise WrongAnswer(f"a waiter was answered {response.status}: {body[:300]!r}")
        return at, json.loads(body)


async def _read(http: aiohttp.ClientSession, job: str, entering: asyncio.Semaphore) -> tuple[float, Any]:
    async with entering:
        response = await http.get(f"/api/jobs/{job}/events")
    async with response:
        if response.status != 200:
            raise WrongAnswer(f"a waiter was answered {response.status}: {await response.text()}")
        last, at = b"", 0.0
        async for line in response.content:
            if line.startswith(b"data: "):
                last, at = line, time.time()
        return at, json.loads(last.removeprefix(b"data: "))
