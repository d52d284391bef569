"""Cold starts with the image on the machine: the first call of a new function, and a call after an eviction."""

from __future__ import annotations

import asyncio
import time

from bench import functions, recorded
from bench.caller import Caller
from bench.figure import Better, Figure, WrongAnswer, median, percentile
from bench.platform import Platform
from bench.run import Run

_IDLE_S = 0.5
_EVICTION_TIMEOUT_S = 30.0


async def measure(run: Run) -> list[Figure]:
    async with run.platform() as platform, platform.caller() as caller:
        run.say("cold start, first call of a new function")
        await _first_call(caller, "warm-up", 0)
        began = time.time()
        first = [await _first_call(caller, f"new-{number}", number) for number in range(1, run.pick(5, 20) + 1)]
        await _all_cold(platform, began, len(first))
        first_phases = await recorded.phases_ms(platform, began)
        image = await platform.database.fetchval("SELECT image FROM versions LIMIT 1")
        baseline = await run.baselines.docker_run(image)
        # The same worker program, but one that lets go of idle sandboxes sooner than anybody wants to wait here.
        await platform.stop("worker-1")
        platform.start("worker-2", {"SANDBOX_IDLE_SECONDS": str(_IDLE_S)})
        run.say("cold start, call after an eviction")
        await _call(caller, "warm-up")  # the worker has read the version and everything else it needs once
        await _evicted(platform)
        began = time.time()
        again = []
        for _ in range(run.pick(5, 15)):
            again.append(await _call(caller, "warm-up"))
            await _evicted(platform)
        await _all_cold(platform, began, len(again))
        again_phases = await recorded.phases_ms(platform, began)
    return [
        Figure(
            key=key,
            what=f"cold start, {what}, p50",
            value=median(took),
            unit="ms",
            better=Better.LESS,
            target=60,
            baseline=baseline,
            details={
                "calls": len(took),
                "p95_ms": percentile(sorted(took), 95),
                "all_ms": took,
                "median_phases_ms": phases,
            },
        )
        for key, what, took, phases in (
            ("cold_start_first", "first call of a new function", first, first_phases),
            ("cold_start_evicted", "call after its sandboxes were evicted", again, again_phases),
        )
    ]


async def _first_call(caller: Caller, name: str, number: int) -> float:
    await caller.deploy(name, functions.unlike_any(functions.HELLO, number))
    return await _call(caller, name)


async def _call(caller: Caller, name: str) -> float:
    started = time.perf_counter()
    await caller.invoke(name, functions.HELLO_BODY, functions.HELLO_RESULT)
    return 1000 * (time.perf_counter() - started)


async def _evicted(platform: Platform) -> None:
    async with asyncio.timeout(_EVICTION_TIMEOUT_S):
        while await platform.sandboxes():
            await asyncio.sleep(0.1)


async def _all_cold(platform: Platform, since: float, count: int) -> None:
    """The records of the calls since then, which must all be there, say that each was a cold start."""
    async with asyncio.timeout(_EVICTION_TIMEOUT_S):
        while sum((kinds := await recorded.start_kinds(platform, since)).values()) < count:
            await asyncio.sleep(0.05)
    if kinds != {"cold": count}:
        raise WrongAnswer(f"{count} cold starts were expected, these were recorded: {kinds}")
