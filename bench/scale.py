"""Jobs a second of 100 ms sleepers as workers are added: what the slots allow, or what the platform holds back."""

from __future__ import annotations

from bench import functions, load, recorded
from bench.caller import Caller
from bench.figure import Baseline, Better, Figure
from bench.measurement import Measurement
from bench.platform import Platform

SLOTS = 10
SLEEP_S = 0.1


async def measure(measurement: Measurement) -> list[Figure]:
    counts = measurement.pick((1, 2, 4), (1, 2, 4, 8))
    rates: dict[int, float] = {}
    starts: dict[str, object] = {}
    env = {"FUNCTION_MAX_CONCURRENT": str(SLOTS)}
    async with measurement.platform(env=env) as platform, platform.caller() as caller:
        # Eighty sandboxes take their time: nobody may be turned away while they start.
        await caller.deploy("sleeper", functions.SLEEP, timeout_s=60)
        running = 1
        for workers in counts:
            for number in range(running + 1, workers + 1):
                platform.start(f"worker-{number}")
            running = workers
            measurement.say(f"100 ms sleepers, {workers} worker{'s' if workers > 1 else ''}")
            outcome = await _load(measurement, platform, caller, workers)
            rates[workers] = outcome.rate
            await recorded.settled(platform, timeout_s=60)
            starts[str(workers)] = await recorded.start_kinds(platform, outcome.started)
        await recorded.all_succeeded(platform)
    most = counts[-1]
    return [
        Figure(
            key="scale",
            what=f"100 ms sleepers, 1 to {most} workers of {SLOTS} slots",
            value=rates[most] / rates[1],
            unit="x",
            better=Better.MORE,
            target=0.9 * most,
            baseline=Baseline(name=f"itself, {most} times one worker", value=float(most)),
            details={
                "per_second": {str(workers): rate for workers, rate in rates.items()},
                "slots_allow_per_second": {str(workers): workers * SLOTS / SLEEP_S for workers in counts},
                "start_kinds": starts,
            },
        )
    ]


async def _load(measurement: Measurement, platform: Platform, caller: Caller, workers: int) -> load.Outcome:
    """More callers than slots, so that a slot never waits for one; the warm-up starts all the sandboxes."""
    return await load.run(
        load.Load(
            port=platform.port,
            request=caller.request("sleeper", SLEEP_S),
            connections=SLOTS * workers + 8,
            warmup_s=5 + 4 * workers,
            duration_s=measurement.pick(4, 10),
            contains=functions.SLEEP_ANSWER,
        )
    )
