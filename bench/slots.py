"""More slots than sandboxes fit: 64 clients of one quick function on a worker with 10 slots, and on one with 64."""

from __future__ import annotations

from bench import events, functions, load, recorded
from bench.figure import Baseline, Better, Figure
from bench.measurement import Measurement

CLIENTS = 64
FEW, MANY = 10, 64
SANDBOXES = 28
"""So many fit into the worker's memory: fewer than there are slots."""
SANDBOX_MB = 128
REPLACED_AFTER = 1_000_000
"""Calls: no sandbox reaches them, so that every start that is counted is one that the pool decided on."""
P99_MS = 100.0


async def measure(measurement: Measurement) -> list[Figure]:
    few, few_starts = await _play(measurement, FEW)
    many, many_starts = await _play(measurement, MANY)
    details: dict[str, object] = {
        str(FEW): {**few.summary(), "containers_started": few_starts},
        str(MANY): {**many.summary(), "containers_started": many_starts},
    }
    name = f"itself, {FEW} slots"
    return [
        Figure(
            key="slots_throughput",
            what=f"{CLIENTS} clients of one function, {MANY} slots, room for {SANDBOXES} sandboxes",
            value=many.rate,
            unit="/s",
            better=Better.MORE,
            target=few.rate,
            baseline=Baseline(name=name, value=few.rate),
            details=details,
        ),
        Figure(
            key="slots_p99",
            what="the same, p99",
            value=many.p99_ms,
            unit="ms",
            better=Better.LESS,
            target=P99_MS,
            baseline=Baseline(name=name, value=few.p99_ms),
        ),
        Figure(
            key="slots_starts",
            what="the same, containers started a second once it is warm",
            value=many_starts / many.elapsed_s,
            unit="/s",
            better=Better.LESS,
            target=0.1,
            baseline=Baseline(name=name, value=few_starts / few.elapsed_s),
        ),
    ]


async def _play(measurement: Measurement, slots: int) -> tuple[load.Outcome, int]:
    """What the clients saw once the worker was warm, and how many containers were started meanwhile."""
    env = {
        "FUNCTION_MAX_CONCURRENT": str(slots),
        "WORKER_MEMORY_MB": str(SANDBOXES * SANDBOX_MB),
        "SANDBOX_MAX_USES": str(REPLACED_AFTER),
    }
    async with measurement.platform(env=env) as platform, platform.caller() as caller:
        await caller.deploy("hello", functions.HELLO, memory_mb=SANDBOX_MB)
        measurement.say(f"{CLIENTS} clients, {slots} slots")
        outcome = await load.run(
            load.Load(
                port=platform.port,
                request=caller.request("hello", functions.HELLO_BODY),
                connections=CLIENTS,
                warmup_s=measurement.pick(6, 15),
                duration_s=measurement.pick(6, 20),
                contains=functions.HELLO_ANSWER,
            )
        )
        started = await events.containers_started(measurement, platform, outcome)
        await recorded.settled(platform, timeout_s=60)
        await recorded.all_succeeded(platform)
    return outcome, started
