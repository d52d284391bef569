"""From the upload of a function that nobody has seen to its first answer."""

from __future__ import annotations

import time

from bench import functions
from bench.caller import Caller
from bench.figure import Better, Figure, median
from bench.measurement import Measurement


async def measure(measurement: Measurement) -> list[Figure]:
    baseline = await measurement.baselines.docker_build_and_run()
    async with measurement.platform() as platform, platform.caller() as caller:
        measurement.say("deploy to first result")
        await _deploy_and_call(caller, 0)  # the runtime's own layer is made once for an installation
        took = [await _deploy_and_call(caller, number) for number in range(1, measurement.pick(3, 10) + 1)]
    deploys = [deploy for deploy, _ in took]
    return [
        Figure(
            key="deploy_first_result",
            what="deploy without dependencies, upload to first answer, p50",
            value=median([deploy + call for deploy, call in took]),
            unit="ms",
            better=Better.LESS,
            target=1_000,
            baseline=baseline,
            details={"deploy_ms": deploys, "first_call_ms": [call for _, call in took]},
        )
    ]


async def _deploy_and_call(caller: Caller, number: int) -> tuple[float, float]:
    """Milliseconds until the version was active, and from there until the answer."""
    name = f"new-{number}"
    code = functions.unlike_any(functions.HELLO, number)
    started = time.perf_counter()
    await caller.deploy(name, code)
    deployed = time.perf_counter()
    await caller.invoke(name, functions.HELLO_BODY, functions.HELLO_RESULT)
    return 1000 * (deployed - started), 1000 * (time.perf_counter() - deployed)
