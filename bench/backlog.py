"""What one user's full queue does to another user's calls."""

from __future__ import annotations

from bench import functions, load, recorded
from bench.caller import Caller
from bench.figure import Baseline, Better, Figure, WrongAnswer
from bench.measurement import Measurement
from bench.platform import Platform

JOBS = 100_000
_SLEEP_S = 1.0
_LIMITED = 5
_STARTS = 10


async def measure(measurement: Measurement) -> list[Figure]:
    """Once with jobs that may all run and take every slot they get, once with jobs parked on their function's limit.

    They sleep, so that what is measured is the queue, and not two users' shares of two cores.
    """
    jobs = measurement.pick(5_000, JOBS)
    return [
        *await _measure(
            measurement, "backlog_parked", jobs, {"concurrency": _LIMITED}, f"over its function's limit of {_LIMITED}"
        ),
        *await _measure(measurement, "backlog_runnable", jobs, {}, "free to run"),
    ]


async def _measure(measurement: Measurement, key: str, jobs: int, settings: dict[str, int], which: str) -> list[Figure]:
    async with measurement.platform() as platform, platform.caller() as flood, platform.caller() as other:
        await other.deploy("hello", functions.HELLO)
        await flood.deploy("sleeper", functions.SLEEP, **settings)
        measurement.say(f"{jobs:,} jobs of another user, {which}")
        empty = await _call(measurement, platform, other)
        await _fill(platform, flood, jobs)
        measurement.say(f"calls beside {await platform.unfinished():,} waiting jobs")
        full = await _call(measurement, platform, other)
        starts = [await _start_ms(other) for _ in range(_STARTS)]
        waiting = await platform.unfinished()
        if waiting < jobs / 2:
            raise WrongAnswer(f"only {waiting} of {jobs} jobs were still waiting after the measurement")
        await recorded.all_succeeded(platform)
    return [
        Figure(
            key=key,
            what=f"synchronous p50 with {jobs:,} jobs of another user, {which}",
            value=full.p50_ms / empty.p50_ms,
            unit="x",
            better=Better.LESS,
            target=1.2,
            baseline=Baseline(name="itself, empty queue", value=1.0),
            details={"empty": empty.summary(), "full": full.summary(), "jobs_waiting": waiting},
        ),
        Figure(
            key=f"{key}_first_job",
            what=f"accepted job starts with {jobs:,} jobs of another user, {which}: at the latest",
            value=max(starts),
            unit="ms",
            better=Better.LESS,
            target=50,
            details={"all_ms": starts},
        ),
    ]


async def _start_ms(caller: Caller) -> float:
    """How long an accepted job of a user who has nothing else waits for its start."""
    request = {"json": {"body": functions.HELLO_BODY}, "headers": {"Prefer": "respond-async"}}
    job = (await caller.call("POST", "/api/functions/hello/invoke", 202, **request))["job_id"]
    ended = await caller.call("GET", f"/api/jobs/{job}?wait=30", 200)
    return float(ended["timings"]["queue_ms"] + ended["timings"]["sandbox_ms"])


async def _call(measurement: Measurement, platform: Platform, caller: Caller) -> load.Outcome:
    return await load.run(
        load.Load(
            port=platform.port,
            request=caller.request("hello", functions.HELLO_BODY),
            connections=1,
            warmup_s=2,
            duration_s=measurement.pick(4, 10),
            contains=functions.HELLO_ANSWER,
        )
    )


async def _fill(platform: Platform, caller: Caller, jobs: int) -> None:
    outcome = await load.run(
        load.Load(
            port=platform.port,
            request=caller.request("sleeper", _SLEEP_S, prefer="respond-async"),
            connections=64,
            duration_s=300,
            count=jobs,
            status=202,
            contains=functions.ACCEPTED_ANSWER,
        )
    )
    if outcome.answers != jobs:
        raise WrongAnswer(f"{outcome.answers} of {jobs} jobs were accepted")
