"""A burst: 16 clients at once on a function that has one warm sandbox."""

from __future__ import annotations

from bench import events, functions, load, recorded
from bench.caller import Caller
from bench.figure import Baseline, Better, Figure
from bench.measurement import Measurement
from bench.platform import Platform

CLIENTS = 16
FIRST_S = 10.0
P99_MS = 60.0


async def measure(measurement: Measurement) -> list[Figure]:
    rounds = []
    for number in range(measurement.pick(1, 3)):
        measurement.say(f"burst of {CLIENTS} on one warm sandbox, {number + 1}")
        async with measurement.platform() as platform, platform.caller() as caller:
            await caller.deploy("hello", functions.HELLO)
            await _load(platform, caller, 1, measurement.pick(2, 4))
            first = await _load(platform, caller, CLIENTS, FIRST_S)
            starts = await events.containers_started(measurement, platform, first)
            settled = await _load(platform, caller, CLIENTS, measurement.pick(4, FIRST_S))
            settled_starts = await events.containers_started(measurement, platform, settled)
            await recorded.settled(platform, timeout_s=60)
            await recorded.all_succeeded(platform)
        rounds.append((first, starts, settled, settled_starts))
    rounds.sort(key=lambda one: one[0].p99_ms)
    first, _, settled, _ = rounds[len(rounds) // 2]
    return [
        Figure(
            key="burst_p99",
            what=f"burst of {CLIENTS} on one warm sandbox, p99 of the first {FIRST_S:g} s",
            value=first.p99_ms,
            unit="ms",
            better=Better.LESS,
            target=P99_MS,
            baseline=Baseline(name="itself, settled", value=settled.p99_ms),
            details={
                "rounds": [
                    {
                        "first": {**first.summary(), "containers_started": starts},
                        "settled": {**settled.summary(), "containers_started": settled_starts},
                    }
                    for first, starts, settled, settled_starts in rounds
                ]
            },
        )
    ]


async def _load(platform: Platform, caller: Caller, clients: int, duration_s: float) -> load.Outcome:
    return await load.run(
        load.Load(
            port=platform.port,
            request=caller.request("hello", functions.HELLO_BODY),
            connections=clients,
            duration_s=duration_s,
            contains=functions.HELLO_ANSWER,
        )
    )
