"""Calls that find no running sandbox of their function, with the image on the machine."""

from __future__ import annotations

import asyncio
import time

from bench import functions, recorded
from bench.caller import Caller
from bench.figure import Baseline, Better, Figure, WrongAnswer, median, percentile
from bench.measurement import Measurement
from bench.platform import Platform

TARGET_MS = 60.0
_SHORT_S = 0.5
_CALM_S = 3.0
"""Between two calls: what stood idle is gone or frozen by then, and the engine at rest. The records prove it."""

# The worker that operators run, but one that lets go of idle sandboxes sooner than anybody wants to wait here.
_KINDS = (
    ("cold_start_evicted", "call after its sandboxes were evicted", "cold", {"SANDBOX_IDLE_SECONDS": str(_SHORT_S)}),
    (
        "cold_start_no_generic",
        "the same, and no generic sandbox stands ready",
        "cold",
        {"SANDBOX_IDLE_SECONDS": str(_SHORT_S), "SANDBOX_GENERICS": "0"},
    ),
    ("paused_start", "call to a paused sandbox", "paused", {"SANDBOX_PAUSE_SECONDS": str(_SHORT_S)}),
    (
        "cold_start_egress",
        "call of a function with a network after its sandboxes were evicted",
        "cold",
        {"SANDBOX_IDLE_SECONDS": str(_SHORT_S)},
    ),
    (
        "cold_start_egress_no_generic",
        "call of a function with a network, and no generic sandbox stands ready",
        "cold",
        {"SANDBOX_IDLE_SECONDS": str(_SHORT_S), "SANDBOX_GENERICS": "0"},
    ),
)


async def measure(measurement: Measurement) -> list[Figure]:
    async with measurement.platform() as platform, platform.caller() as caller:
        measurement.say("first call of a new function")
        await _first_call(caller, "old", 0)
        began = time.time()
        took = [await _first_call(caller, f"new-{number}", number) for number in range(1, measurement.pick(5, 20) + 1)]
        kinds = await recorded.start_kinds_of(platform, began, len(took))
        image = await platform.image_of()
        baseline = await measurement.baselines.docker_run(image)
        figures = [
            _figure(
                "cold_start_first",
                "first call of a new function",
                took,
                baseline,
                {"start_kinds": kinds, "median_phases_ms": await recorded.phases_ms(platform, began)},
            )
        ]
        await caller.deploy("outward", functions.HELLO, network="egress")
        worker = "worker-1"
        for number, (key, what, kind, env) in enumerate(_KINDS, 2):
            measurement.say(what)
            await platform.stop(worker)
            worker = f"worker-{number}"
            platform.start(worker, env)
            name = "outward" if "egress" in key else "old"
            figures.append(await _after_calm(measurement, platform, caller, baseline, key, what, kind, name))
    return figures


async def _after_calm(
    measurement: Measurement,
    platform: Platform,
    caller: Caller,
    baseline: Baseline | None,
    key: str,
    what: str,
    kind: str,
    name: str,
) -> Figure:
    await _call(caller, name)  # the worker has read the version and everything else it needs once
    await asyncio.sleep(_CALM_S)
    began = time.time()
    took = []
    for _ in range(measurement.pick(5, 15)):
        took.append(await _call(caller, name))
        await asyncio.sleep(_CALM_S)
    kinds = await recorded.start_kinds_of(platform, began, len(took))
    if kinds != {kind: len(took)}:
        raise WrongAnswer(f"{len(took)} {kind} starts were expected, these were recorded: {kinds}")
    return _figure(key, what, took, baseline, {"median_phases_ms": await recorded.phases_ms(platform, began)})


def _figure(key: str, what: str, took: list[float], baseline: Baseline | None, details: dict[str, object]) -> Figure:
    return Figure(
        key=key,
        what=f"{what}, p50",
        value=median(took),
        unit="ms",
        better=Better.LESS,
        target=TARGET_MS,
        baseline=baseline,
        details={"calls": len(took), "p95_ms": percentile(sorted(took), 95), "all_ms": took, **details},
    )


async def _first_call(caller: Caller, name: str, number: int) -> float:
    await caller.deploy(name, functions.unlike_any(functions.HELLO, number))
    return await _call(caller, name)


async def _call(caller: Caller, name: str) -> float:
    started = time.perf_counter()
    await caller.invoke(name, functions.HELLO_BODY, functions.HELLO_RESULT)
    return 1000 * (time.perf_counter() - started)
