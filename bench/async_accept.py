"""Asynchronous accepts: 202s a second, each of a job that Postgres has by then."""

from __future__ import annotations

import json

from bench import functions, load, recorded
from bench.caller import Caller
from bench.figure import Better, Figure
from bench.measurement import Measurement
from bench.platform import Platform
from bench.warmth import warm_hello

_TARGETS = ((16, 6_000.0, 1_500.0), (64, 9_000.0, None))


async def measure(measurement: Measurement) -> list[Figure]:
    """With the worker at work on what is accepted; and, for comparison in the details, with the worker stopped."""
    figures = []
    for clients, target, floor in _TARGETS:
        baseline = await measurement.baselines.inserts(clients)
        async with measurement.platform() as platform, platform.caller() as caller:
            await warm_hello(platform, caller)
            measurement.say(f"asynchronous accept, {clients} clients")
            rounds = []
            for _ in range(measurement.pick(1, 3)):
                rounds.append(await _accept(measurement, platform, caller, clients))
                await recorded.settled(platform, timeout_s=180)
            working = sorted(rounds, key=lambda outcome: outcome.rate)[len(rounds) // 2]
            await recorded.all_succeeded(platform)
            measurement.say(f"asynchronous accept, {clients} clients, worker stopped")
            await platform.stop("worker-1")
            stopped = await _accept(measurement, platform, caller, clients)
        figures.append(
            Figure(
                key=f"async_accept_{clients}",
                what=f"asynchronous accept, {clients} clients, each committed",
                value=working.rate,
                unit="/s",
                better=Better.MORE,
                target=target,
                floor=floor,
                baseline=baseline,
                details={"rounds": [outcome.summary() for outcome in rounds], "worker_stopped": stopped.summary()},
            )
        )
    return figures


async def _accept(measurement: Measurement, platform: Platform, caller: Caller, clients: int) -> load.Outcome:
    outcome = await load.run(
        load.Load(
            port=platform.port,
            request=caller.request("hello", functions.HELLO_BODY, prefer="respond-async"),
            connections=clients,
            duration_s=measurement.pick(3, 8),
            count=40_000,
            status=202,
            contains=functions.ACCEPTED_ANSWER,
            collect=True,
        )
    )
    await recorded.all_committed(platform, [json.loads(body)["job_id"] for body in outcome.bodies])
    return outcome
