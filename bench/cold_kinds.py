"""Cold starts of every kind of function, each beside ``docker run`` of its own image."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from bench import recorded
from bench.caller import Caller
from bench.figure import Baseline, Better, Figure, WrongAnswer, median, percentile
from bench.kinds import BASE_IMAGES, PLAIN, WITH_PACKAGES, Kind
from bench.measurement import Measurement
from bench.platform import Platform

_IDLE_S = 0.5
_CALM_S = 3.0
"""Between two calls: what stood idle is gone by then, and the engine at rest. A slow machine gets more, the records
prove it."""
_CALM_WITHIN_S = 60.0
_WARM_UP = 2
"""Calls after which the worker has read the version, its code, and has generic sandboxes of its size."""


async def plain(measurement: Measurement) -> list[Figure]:
    return await _measure(measurement, PLAIN)


async def with_packages(measurement: Measurement) -> list[Figure]:
    """Installs from the package indexes."""
    return await _measure(measurement, WITH_PACKAGES)


async def _measure(measurement: Measurement, kinds: Sequence[Kind]) -> list[Figure]:
    # Heartbeats tell what the pool holds.
    env = {"SANDBOX_IDLE_SECONDS": str(_IDLE_S), "HEARTBEAT_SECONDS": "1", "DOCKER_BASE_IMAGE": BASE_IMAGES}
    async with measurement.platform(env=env) as platform, platform.caller() as caller:
        return [figure for kind in kinds for figure in await _kind(measurement, platform, caller, kind)]


async def _kind(measurement: Measurement, platform: Platform, caller: Caller, kind: Kind) -> list[Figure]:
    measurement.say(f"cold start: {kind.what}")
    await kind.deploy(caller)
    for _ in range(_WARM_UP):
        await kind.call_ms(caller)
        await _calm(caller)
    began = time.time()
    took = []
    for _ in range(measurement.pick(5, 20)):
        took.append(await kind.call_ms(caller))
        await _calm(caller)
    kinds = await recorded.start_kinds_of(platform, began, len(took))
    if kinds != {"cold": len(took)}:
        raise WrongAnswer(f"{len(took)} cold starts were expected, these were recorded: {kinds}")
    details: dict[str, object] = {"all_ms": took, "median_phases_ms": await recorded.phases_ms(platform, began)}
    by_hand = await _by_hand(measurement, platform, kind)
    ordered = sorted(took)
    baselines: list[Baseline | None] = [None, None]
    if by_hand:
        details["docker_run_ms"] = by_hand
        baselines = [
            Baseline(name=f"docker run of the same image, {which}", value=percentile(sorted(by_hand), percent))
            for which, percent in (("p50", 50), ("p95", 95))
        ]
    return [
        Figure(
            key=f"cold_{kind.name.replace('-', '_')}_{which}",
            what=f"cold start, {kind.what}, {which}",
            value=value,
            unit="ms",
            better=Better.LESS,
            target=target,
            baseline=baseline,
            details=details if which == "p50" else {},
        )
        for which, value, target, baseline in (
            ("p50", median(took), kind.target_ms, baselines[0]),
            ("p95", percentile(ordered, 95), None, baselines[1]),
        )
    ]


async def _calm(caller: Caller) -> None:
    await asyncio.sleep(_CALM_S)
    async with asyncio.timeout(_CALM_WITHIN_S):
        while any([await caller.sandboxes(state) for state in ("busy", "idle", "paused")]):
            await asyncio.sleep(0.5)


async def _by_hand(measurement: Measurement, platform: Platform, kind: Kind) -> list[float]:
    if measurement.engine_name != "docker":
        return []
    measurement.say(f"baseline: docker run, {kind.what}")
    image = await platform.image_of(kind.name)
    assert image is not None
    return [await kind.docker_run_ms(image) for _ in range(measurement.pick(3, 10))]
