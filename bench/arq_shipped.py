"""arq as it ships: its own client, worker, queue, poll and serializer. A baseline, and no part of the platform.

python -m bench.arq_shipped    a worker; the address of its Redis comes on standard input
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from arq import create_pool
from arq.connections import ArqRedis, RedisSettings
from arq.jobs import Job
from arq.worker import run_worker

from bench.figure import WrongAnswer, median
from bench.platform import ROOT

_RESULT_S = 120.0
_PRODUCERS = 16
_DEFAULT_POLL_S = 0.5  # of the worker, and of Job.result


async def nothing(ctx: dict[Any, Any], number: int) -> int:
    """The job: it does nothing at all."""
    return number


async def latency_ms(url: str, count: int) -> float:
    """Median time from enqueue to result, one job after the other, with everything at its default."""
    took = []
    async with _client(url) as client, _worker(url):
        for number in range(count):
            # Spread over the worker's poll: one job after the other would fall in step with it.
            await asyncio.sleep(_DEFAULT_POLL_S * number / count)
            started = time.perf_counter()
            await _result(await client.enqueue_job("nothing", number), number, poll_s=_DEFAULT_POLL_S)
            took.append(1000 * (time.perf_counter() - started))
    return median(took)


async def drained_per_second(url: str, count: int) -> float:
    """Jobs a second from a worker's start on a full queue to the last result."""
    async with _client(url) as client:
        jobs = await _enqueue(client, count)
        async with _worker(url) as worker:
            await _until(client, worker, count - 1)
            before, started = await client.zcard("arq:queue"), time.perf_counter()
            await _until(client, worker, 0)
            elapsed = time.perf_counter() - started
        await _result(jobs[-1], count - 1)
    return float(before) / elapsed


async def end_to_end_per_second(url: str, count: int) -> float:
    """Jobs a second from the first enqueue to the last result, the worker running all the time."""
    async with _client(url) as client, _worker(url) as worker:
        await _result(await client.enqueue_job("nothing", 0), 0)  # it has started
        started = time.perf_counter()
        jobs = await _enqueue(client, count)
        await _until(client, worker, 0)
        elapsed = time.perf_counter() - started
        await _result(jobs[-1], count - 1)
    return count / elapsed


async def _enqueue(client: ArqRedis, count: int) -> list[Job | None]:
    jobs: list[Job | None] = [None] * count
    numbers = iter(range(count))

    async def produce() -> None:
        for number in numbers:
            jobs[number] = await client.enqueue_job("nothing", number)

    await asyncio.gather(*(produce() for _ in range(_PRODUCERS)))
    return jobs


async def _result(job: Job | None, expected: int, *, poll_s: float = 0.005) -> None:
    if job is None:
        raise WrongAnswer("arq did not take a job")
    if await job.result(timeout=_RESULT_S, poll_delay=poll_s) != expected:
        raise WrongAnswer("arq answered something else")


async def _until(client: ArqRedis, worker: asyncio.subprocess.Process, most: int) -> None:
    """Wait until at most ``most`` jobs are queued or running."""
    deadline = asyncio.get_running_loop().time() + _RESULT_S
    while await client.zcard("arq:queue") > most:
        if worker.returncode is not None or asyncio.get_running_loop().time() > deadline:
            raise WrongAnswer("arq's worker ended or took too long")
        await asyncio.sleep(0.005)


@asynccontextmanager
async def _client(url: str) -> AsyncIterator[ArqRedis]:
    client = await create_pool(_settings(url))
    await client.flushall()
    try:
        yield client
    finally:
        await client.aclose()


@asynccontextmanager
async def _worker(url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.arq_shipped", stdin=asyncio.subprocess.PIPE, cwd=ROOT
    )
    assert process.stdin is not None
    process.stdin.write(url.encode())
    process.stdin.close()
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def _settings(url: str) -> RedisSettings:
    """For ``unix://PATH?password=…``, which is not how arq spells it."""
    parts = urlsplit(url)
    return RedisSettings(unix_socket_path=unquote(parts.path), password=parse_qs(parts.query)["password"][0])


if __name__ == "__main__":
    run_worker({"functions": [nothing]}, redis_settings=_settings(sys.stdin.read()))
