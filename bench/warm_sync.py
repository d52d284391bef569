"""Warm synchronous invokes: how long one takes, and how many there are in a second."""

from __future__ import annotations

from bench import functions, load, recorded
from bench.figure import Better, Figure
from bench.measurement import Measurement
from bench.platform import Platform

CLIENTS = 64


async def measure(measurement: Measurement) -> list[Figure]:
    arq_latency, arq_drained = await measurement.baselines.arq_latency(), await measurement.baselines.arq_drained()
    redis = await measurement.baselines.redis_round_trip()
    async with measurement.platform() as platform, platform.caller() as caller:
        await caller.deploy("hello", functions.HELLO)
        request = caller.request("hello", functions.HELLO_BODY)
        image = await platform.image_of()
        measurement.say("warm synchronous, 1 client")
        ones = [await _load(platform, request, 1, measurement.pick(3, 6)) for _ in range(measurement.pick(1, 3))]
        measurement.say(f"warm synchronous, {CLIENTS} clients")
        manies = [
            await _load(platform, request, CLIENTS, measurement.pick(4, 10)) for _ in range(measurement.pick(1, 3))
        ]
        await recorded.settled(platform, timeout_s=60)
        await recorded.all_succeeded(platform)
        phases = await recorded.phases_ms(platform, ones[-1].started, ones[-1].elapsed_s)
        bare = await measurement.baselines.bare_call(image)
    one = sorted(ones, key=lambda outcome: outcome.p50_ms)[len(ones) // 2]
    many = sorted(manies, key=lambda outcome: outcome.rate)[len(manies) // 2]
    details: dict[str, object] = {
        "rounds": [outcome.summary() for outcome in ones],
        "median_phases_ms": phases,
        "limits": {limit.name: limit.value for limit in (bare, redis) if limit is not None},
    }
    return [
        Figure(
            key="warm_sync_p50",
            what="warm synchronous invoke, 1 client, p50",
            value=one.p50_ms,
            unit="ms",
            better=Better.LESS,
            target=1.2,
            floor=2.0,
            baseline=arq_latency,
            details=details,
        ),
        Figure(
            key="warm_sync_p99",
            what="warm synchronous invoke, 1 client, p99",
            value=one.p99_ms,
            unit="ms",
            better=Better.LESS,
            target=4.0,
            baseline=arq_latency,
        ),
        Figure(
            key="warm_sync_throughput",
            what=f"warm synchronous throughput, {CLIENTS} clients",
            value=many.rate,
            unit="/s",
            better=Better.MORE,
            target=4_000,
            floor=1_500,
            baseline=arq_drained,
            details={"rounds": [outcome.summary() for outcome in manies]},
        ),
    ]


async def _load(platform: Platform, request: str, clients: int, duration_s: float) -> load.Outcome:
    return await load.run(
        load.Load(
            port=platform.port,
            request=request,
            connections=clients,
            warmup_s=1 if clients == 1 else 4,  # ten containers have to start
            duration_s=duration_s,
            contains=functions.HELLO_ANSWER,
        )
    )
