"""What sandboxes cost and allow beside their cold start: fresh ones, calls that do nothing, memory."""

from __future__ import annotations

import asyncio
import re
import time

from bench import engine, functions, load, recorded
from bench.caller import Caller
from bench.figure import Baseline, Better, Figure, WrongAnswer, median, percentile
from bench.kinds import PLAIN
from bench.measurement import Measurement
from bench.platform import Platform

_CLIENTS = 64
_NOOP = "def handler(event, context):\n    return None\n"
_NOOP_ANSWER = '"success":true,"result":null'
_FRESH_EVERY_S = 1.5
"""Slower than sandboxes are started, so that one stands ready for each call: the records prove it."""
_PAUSE_S = 8.0
_PAUSED_WITHIN_S = 30.0
_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


async def measure(measurement: Measurement) -> list[Figure]:
    async with (
        measurement.platform(env={"SANDBOX_PAUSE_SECONDS": str(_PAUSE_S)}) as platform,
        platform.caller() as caller,
    ):
        figures = await _memory(measurement, platform, caller) if measurement.engine_name == "docker" else []
        figures.append(await _fresh(measurement, platform, caller))
        figures.append(await _noop(measurement, platform, caller))
    return figures


async def _fresh(measurement: Measurement, platform: Platform, caller: Caller) -> Figure:
    measurement.say("isolation: fresh, one client")
    await caller.deploy("fresh", functions.HELLO, isolation="fresh")
    await caller.deploy("reused", functions.HELLO)
    took: list[float] = []
    reused: list[float] = []
    began = 0.0
    for number in range(2 + measurement.pick(5, 30)):
        if number == 2:
            began = time.time()
            took.clear()
            reused.clear()
        for name, times in (("fresh", took), ("reused", reused)):
            started = time.perf_counter()
            await caller.invoke(name, functions.HELLO_BODY, functions.HELLO_RESULT)
            times.append(1000 * (time.perf_counter() - started))
            await asyncio.sleep(_FRESH_EVERY_S / 2)
    kinds = await recorded.start_kinds_of(platform, began, len(took) + len(reused))
    if set(kinds) - {"warm", "paused"}:
        raise WrongAnswer(f"sandboxes were to stand ready, but these starts were recorded: {kinds}")
    image = await platform.image_of()
    return Figure(
        key="fresh_p50",
        what="call that gets a sandbox of its own (fresh), p50",
        value=median(took),
        unit="ms",
        better=Better.LESS,
        target=4.0,
        baseline=await measurement.baselines.docker_run(image),
        # After as long a rest, a reused sandbox is slower as well: that is what the machine's sleep costs.
        details={
            "p95_ms": percentile(sorted(took), 95),
            "reused_p50_ms": median(reused),
            "all_ms": took,
            "start_kinds": kinds,
        },
    )


async def _noop(measurement: Measurement, platform: Platform, caller: Caller) -> Figure:
    measurement.say(f"one worker, a function that does nothing, {_CLIENTS} clients")
    await caller.deploy("noop", _NOOP)
    outcomes = [
        await load.run(
            load.Load(
                port=platform.port,
                request=caller.request("noop", None),
                connections=_CLIENTS,
                warmup_s=4,
                duration_s=measurement.pick(4, 10),
                contains=_NOOP_ANSWER,
            )
        )
        for _ in range(measurement.pick(1, 3))
    ]
    await recorded.settled(platform, timeout_s=60)
    await recorded.all_succeeded(platform)
    middle = sorted(outcomes, key=lambda outcome: outcome.rate)[len(outcomes) // 2]
    return Figure(
        key="noop_throughput",
        what=f"one worker, a function that does nothing, {_CLIENTS} clients",
        value=middle.rate,
        unit="/s",
        better=Better.MORE,
        target=4_000,
        floor=1_500,
        baseline=await measurement.baselines.arq_drained(),
        details={"rounds": [outcome.summary() for outcome in outcomes]},
    )


async def _memory(measurement: Measurement, platform: Platform, caller: Caller) -> list[Figure]:
    figures = []
    for kind in (one for one in PLAIN if one.name in ("python", "node")):
        measurement.say(f"memory of an idle sandbox: {kind.what}")
        await kind.deploy(caller)
        await kind.call_ms(caller)
        (name,) = await _containers(platform, kind.name)
        running = await _container_mb(name)
        async with asyncio.timeout(_PAUSED_WITHIN_S):
            while not await _containers(platform, kind.name, "status=paused"):
                await asyncio.sleep(0.2)
        bare = await _bare_mb(kind.name)
        figures += [
            Figure(
                key=f"sandbox_memory_{kind.name}_{state}",
                what=f"memory of an idle sandbox, {kind.what}, {state}",
                value=value,
                unit="MB",
                better=Better.LESS,
                target=None,
                baseline=Baseline(name=f"the bare interpreter in a container, {kind.what}", value=bare),
            )
            for state, value in (("running", running), ("paused", await _container_mb(name)))
        ]
    return figures


async def _containers(platform: Platform, function: str, *filters: str) -> list[str]:
    """Names of the containers that hold a function."""
    function_id = await platform.database.fetchval("SELECT id FROM functions WHERE name = $1", function)
    wanted = (f"label=containerpub.function={function_id}", *filters)
    return (
        await engine.docker("ps", "--format", "{{.Names}}", *(part for one in wanted for part in ("--filter", one)))
    ).split()


async def _container_mb(name: str) -> float:
    """What the engine says it uses, without the page cache."""
    told = (await engine.docker("stats", "--no-stream", "--format", "{{.MemUsage}}", name)).strip()
    used = re.match(r"([\d.]+)([A-Za-z]+) /", told)
    if used is None or used[2] not in _UNITS:
        raise WrongAnswer(f"the engine says {told!r} of a container's memory")
    return float(used[1]) * _UNITS[used[2]] / 1_000_000


async def _bare_mb(runtime: str) -> float:
    idle = {
        "python": (engine.BASE_IMAGE, "python3", "-c", "import time; time.sleep(600)"),
        "node": (engine.NODE_IMAGE, "node", "--eval", "setTimeout(() => {}, 600_000)"),
    }
    container = (await engine.docker("run", "--detach", "--network", "none", *idle[runtime])).strip()
    try:
        await asyncio.sleep(2)  # until it has started; it has no way to say so
        return await _container_mb(container)
    finally:
        await engine.docker("rm", "--force", container)
