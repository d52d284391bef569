"""Ten thousand asynchronous jobs, from the first accept to the moment when all their records are in Postgres."""

from __future__ import annotations

import json
import time

from bench import functions, load, recorded
from bench.figure import Better, Figure
from bench.measurement import Measurement
from bench.warmth import warm_hello

JOBS = 10_000
CLIENTS = 64
_TIMEOUT_S = 180.0


async def measure(measurement: Measurement) -> list[Figure]:
    jobs = measurement.pick(2_000, JOBS)
    baseline = await measurement.baselines.arq_end_to_end(jobs)
    async with measurement.platform() as platform, platform.caller() as caller:
        await warm_hello(platform, caller)
        before = await platform.database.fetchval("SELECT count(*) FROM invocations")
        measurement.say(f"asynchronous end to end, {jobs:,} jobs")
        accepted = await load.run(
            load.Load(
                port=platform.port,
                request=caller.request("hello", functions.HELLO_BODY, prefer="respond-async"),
                connections=CLIENTS,
                duration_s=_TIMEOUT_S,
                count=jobs,
                status=202,
                contains=functions.ACCEPTED_ANSWER,
                collect=True,
            )
        )
        await recorded.invocations_reach(platform, before + jobs, timeout_s=_TIMEOUT_S)
        elapsed = time.time() - accepted.started
        await recorded.all_succeeded(platform)
        ids = [json.loads(body)["job_id"] for body in accepted.bodies]
        await recorded.all_committed(platform, ids)
        await recorded.settled(platform, timeout_s=1)
    return [
        Figure(
            key="async_end_to_end",
            what=f"asynchronous end to end, {jobs:,} jobs, accepted to recorded",
            value=jobs / elapsed,
            unit="/s",
            better=Better.MORE,
            target=3_000,
            baseline=baseline,
            details={"elapsed_s": elapsed, "accepts": accepted.summary()},
        )
    ]
