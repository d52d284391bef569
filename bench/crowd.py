"""Many more functions than sandboxes fit into a worker's memory: called at random, nobody may notice but the clock."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass

from aiodocker import Docker

from bench import functions, recorded
from bench.caller import Caller
from bench.figure import Better, Figure, WrongAnswer, percentile
from bench.footprint import Footprint, back, resting, sandboxes
from bench.measurement import Measurement
from bench.platform import Platform

MEMORY_MB = 128
_DEPLOYS_AT_ONCE = 4
_LOOK_EVERY_S = 0.2
_RECORDS_TIMEOUT_S = 30.0
REST_S = 3.0
"""Longer than whatever is put off for a moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """:param sandboxes: as many as the worker's memory holds. :param least: calls at least, however slow the machine.
    :param idle_s: after which an idle sandbox goes.
    :param back_within_s: how long after the last call everything must be as it was.
    """

    functions: int
    sandboxes: int
    clients: int
    seconds: float
    least: int
    idle_s: float
    back_within_s: float

    @property
    def env(self) -> dict[str, str]:
        return {
            "WORKER_MEMORY_MB": str(self.sandboxes * MEMORY_MB),
            "SANDBOX_IDLE_SECONDS": str(self.idle_s),
            "SANDBOX_PAUSE_SECONDS": "2",
        }


LONG = Size(functions=200, sandboxes=20, clients=8, seconds=180, least=400, idle_s=30, back_within_s=60)
SHORT = Size(functions=20, sandboxes=4, clients=3, seconds=8, least=20, idle_s=2, back_within_s=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """:param most: the most sandboxes and generic sandboxes that there were at any look; never more than fit in.
    :param back_s: how long after the last call nothing was left of it.
    """

    calls: int
    latencies_ms: list[float]  # sorted
    start_kinds: dict[str, int]
    most: int
    looks: int
    before: Footprint
    after: Footprint
    back_s: float


async def play(platform: Platform, caller: Caller, docker: Docker, size: Size) -> Outcome:
    """Raises :class:`WrongAnswer` for a wrong answer, a budget that was passed, and for what is left at the end."""
    names = [f"member-{number}" for number in range(size.functions)]
    await _each(names, _DEPLOYS_AT_ONCE, lambda name: _deploy(caller, name))
    # Once each, so that what is remembered of every function is there before the footprint is taken.
    await _each(names, size.clients, lambda name: _call(caller, name))
    before = await resting(platform, docker, size.idle_s + REST_S)

    began = time.time()
    looks: list[int] = []
    async with _beside(_watch(platform, docker, looks)):
        until = time.monotonic() + size.seconds
        ordered = await _called(caller, names, size, until)
    after, back_s = await back(platform, docker, before, size.back_within_s)

    await recorded.invocations_reach(platform, size.functions + len(ordered), timeout_s=_RECORDS_TIMEOUT_S)
    await recorded.all_succeeded(platform)
    if max(looks) > size.sandboxes:
        raise WrongAnswer(f"there were {max(looks)} sandboxes where {size.sandboxes} fit into the worker's memory")
    return Outcome(
        calls=len(ordered),
        latencies_ms=ordered,
        start_kinds=await recorded.start_kinds(platform, began),
        most=max(looks),
        looks=len(looks),
        before=before,
        after=after,
        back_s=back_s,
    )


async def measure(measurement: Measurement) -> list[Figure]:
    size = measurement.pick(SHORT, LONG)
    if measurement.engine_name != "docker":
        raise WrongAnswer("only containers can be counted: this needs a container engine")
    async with Docker() as docker, measurement.platform(env=size.env) as platform, platform.caller() as caller:
        measurement.say(f"{size.functions} functions where {size.sandboxes} sandboxes fit, {size.seconds:g} s")
        outcome = await play(platform, caller, docker, size)
    latencies = outcome.latencies_ms
    return [
        Figure(
            key="crowd_budget",
            what=f"sandboxes at most, {size.functions} functions, room for {size.sandboxes}",
            value=outcome.most,
            unit="sandboxes",
            better=Better.LESS,
            target=size.sandboxes,
            details={
                "calls": outcome.calls,
                "looks": outcome.looks,
                "start_kinds": outcome.start_kinds,
                "p50_ms": percentile(latencies, 50),
                "p99_ms": percentile(latencies, 99),
                "max_ms": latencies[-1],
            },
        ),
        Figure(
            key="crowd_back",
            what="everything back as it was, after the last call",
            value=outcome.back_s,
            unit="s",
            better=Better.LESS,
            target=60,
            details={"before": asdict(outcome.before), "after": asdict(outcome.after)},
        ),
    ]


async def _deploy(caller: Caller, name: str) -> None:
    await caller.deploy(name, functions.unlike_any(functions.HELLO, int(name.rpartition("-")[2])))


async def _call(caller: Caller, name: str) -> float:
    started = time.perf_counter()
    await caller.invoke(name, functions.HELLO_BODY, functions.HELLO_RESULT)
    return 1000 * (time.perf_counter() - started)


async def _called(caller: Caller, names: Sequence[str], size: Size, until: float) -> list[float]:
    """Call at random; the latencies, sorted."""
    latencies: list[float] = []

    async def client() -> None:
        while time.monotonic() < until or len(latencies) < size.least:
            latencies.append(await _call(caller, random.choice(names)))

    await asyncio.gather(*(client() for _ in range(size.clients)))
    return sorted(latencies)


async def _each(names: Sequence[str], at_once: int, work: Callable[[str], Awaitable[object]]) -> None:
    left = list(names)

    async def one() -> None:
        while left:
            await work(left.pop())

    await asyncio.gather(*(one() for _ in range(at_once)))


async def _watch(platform: Platform, docker: Docker, looks: list[int]) -> None:
    while True:
        looks.append(len(await sandboxes(platform, docker)))
        await asyncio.sleep(_LOOK_EVERY_S)


@asynccontextmanager
async def _beside(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run ``work`` meanwhile, and fail if it did."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))
    if not task.cancelled():
        await task
