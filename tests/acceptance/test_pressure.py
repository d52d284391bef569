"""The short forms of the proofs that take minutes in ``bench``: crowds, misbehaviour, an engine that goes away.

What is played is the same, with real processes and containers; there it is longer, and measured.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiodocker import Docker
from engines import engine_socket, short_dir
from scenes import until

from bench import crash, crowd, dockerd, engine_restart, functions, misbehaviour, outages, rolling
from bench.dockerd import PrivateDockerd
from bench.engine import BASE_IMAGE
from bench.engine_restart import Restart
from bench.platform import Platform
from bench.relay import Relay
from tests.machine import lacks
from worker.engine.docker.hardening import LABEL_INSTALLATION, LABEL_WORKER

pytestmark = pytest.mark.docker

__all__ = ["short_dir"]  # a fixture

ENGINE_TIMEOUT_S = 2
COLD = "/api/functions/cold/invoke"
NO_TIME = {"body": 0}


@pytest.fixture
async def machine() -> AsyncIterator[Docker]:
    """This machine's container engine, for a look at what is there."""
    async with Docker() as docker:
        yield docker


@pytest.fixture
async def private(request: pytest.FixtureRequest) -> AsyncIterator[PrivateDockerd]:
    """An engine that may be stopped, with the base image of Python functions."""
    if (why := dockerd.missing()) is not None:
        lacks(why)
    async with PrivateDockerd() as engine:
        await engine.load(BASE_IMAGE)
        yield engine


async def test_many_functions_share_little_memory_without_an_error_and_leave_nothing(machine: Docker) -> None:
    size = crowd.SHORT
    async with Platform("docker", env=size.env) as platform, platform.caller() as caller:
        outcome = await crowd.play(platform, caller, machine, size)
    assert outcome.calls >= size.least
    assert outcome.most == size.sandboxes, "the budget was not reached, so that it was not passed says nothing"


@pytest.mark.alone
async def test_r1_r22_whoever_misbehaves_is_told_the_true_reason_and_leaves_nothing(machine: Docker) -> None:
    size = misbehaviour.SHORT
    async with (
        Platform("docker", env=size.env) as platform,
        platform.caller() as hostile,
        platform.caller() as neighbour,
    ):
        outcome = await misbehaviour.play(platform, hostile, neighbour, machine, size)
    assert outcome.wrong == []
    assert sum(outcome.ways.values()) == size.calls
    assert len(outcome.loops_ms) == size.loops
    assert outcome.loops_ms[-1] <= 1000 * size.timeout_s + 500
    assert outcome.alive == 0


async def test_f1_f9_f13_whatever_is_killed_every_accepted_job_ends_once_and_nothing_is_left() -> None:
    size = crash.SHORT
    async with Platform("docker", workers=size.workers, env=size.env) as platform, platform.caller() as caller:
        outcome = await crash.play(platform, caller, size, seed=1)
    assert outcome.accepted == size.jobs
    assert outcome.done.keys() == {"worker", "api", "redis", "postgres"}
    assert outcome.lost > 0, "no worker was killed at its work"
    assert outcome.recovery_p99_s <= size.recovery_s


async def test_f8_f13_stores_that_go_away_again_and_again_cost_no_job_and_no_process() -> None:
    size = outages.SHORT
    async with Platform("docker", workers=size.workers, env=size.env) as platform, platform.caller() as caller:
        outcome = await outages.play(platform, caller, size, seed=1)
    assert outcome.jobs.accepted == size.jobs
    assert outcome.jobs.done == {"redis": 2, "postgres": 2}
    assert outcome.ended_s <= outages.ENDED_S
    assert outcome.back_s("postgres") <= outages.BACK_S


async def test_f22_rolling_restarts_cost_no_call_and_no_attempt() -> None:
    size = rolling.SHORT
    async with Platform("docker", workers=size.workers, env=size.env) as platform, platform.caller() as caller:
        outcome = await rolling.play(platform, caller, size)
    assert outcome.failures == []
    assert outcome.consumed == 0
    assert outcome.restarts == {"worker": 4, "api": 2, "scheduler": 2}
    assert outcome.drain_p99_s <= 30


async def test_f15_restarted_engine_costs_attempts_and_no_job(private: PrivateDockerd) -> None:
    restarts = [Restart(live=False, kill=False), Restart(live=True, kill=True)]
    env = {**engine_restart.ENV, "DOCKER_HOST": private.url}
    async with Platform("docker", env=env) as platform, platform.caller() as caller:
        outcome = await engine_restart.play(platform, caller, private, restarts)
    assert outcome.lost > 0, "nothing ran when the engine went away"


HANGING = {
    "ENGINE_TIMEOUT_SECONDS": str(ENGINE_TIMEOUT_S),
    "SWEEP_SECONDS": "2",
    "DRAIN_SECONDS": "2",
    "SANDBOX_PAUSE_SECONDS": "60",
    "SANDBOX_GENERICS": "0",
}
"""For an engine that hangs: short bounds, and nothing that it is asked for by the way."""


async def test_f16_engine_that_hangs_holds_up_nobody_beyond_the_bounds(short_dir: Path) -> None:
    env = HANGING | {
        "QUEUE_TIMEOUT_SECONDS": "2",
        "LEASE_SECONDS": "3",
        "HEARTBEAT_SECONDS": "1",
        "WORKER_MEMORY_MB": "256",
    }
    async with (
        Relay(short_dir / "engine", engine_socket()) as proxy,
        Platform("docker", env={**env, "DOCKER_HOST": proxy.url}) as platform,
        platform.caller() as caller,
    ):
        for name in ("warm", "cool", "cold"):
            await caller.deploy(name, functions.SLEEP, timeout_s=1)
        for name in ("warm", "cool"):
            await caller.invoke(name, 0, functions.SLEEP_RESULT)

        proxy.stall()
        await caller.invoke("warm", 0, functions.SLEEP_RESULT)
        accepted = (await caller.call("POST", COLD, 202, json=NO_TIME, headers={"Prefer": "respond-async"}))["job_id"]
        started = time.monotonic()
        status, answer = await caller.ask("POST", COLD, json=NO_TIME)
        assert status in (503, 504), answer
        assert time.monotonic() - started < 1 + 2 + 1 + 1, "longer than function, queue and a second may take"
        # Beyond lease and engine's bound: the worker must be alive, and the job waiting, not used up.
        await asyncio.sleep(5)
        assert (await caller.call("GET", f"/api/jobs/{accepted}", 200))["status"] in ("queued", "running")

        proxy.flow()
        answer = await caller.call("GET", f"/api/jobs/{accepted}?wait=20", 200)
        assert (answer["status"], answer["result"]) == ("succeeded", functions.SLEEP_RESULT), (answer, platform.logs())
        assert "worker lost" not in platform.logs()

        proxy.stall()
        started = time.monotonic()
        await platform.stop("worker-1")
        assert time.monotonic() - started < 20, f"told to stop, the worker waits for the engine\n{platform.logs()}"
        proxy.flow()


async def test_f16_job_cancelled_while_the_engine_hangs_is_final_at_once_and_its_sandbox_goes_later(
    machine: Docker, short_dir: Path
) -> None:
    env = HANGING | {"FUNCTION_MAX_CONCURRENT": "1"}
    async with (
        Relay(short_dir / "engine", engine_socket()) as proxy,
        Platform("docker", env={**env, "DOCKER_HOST": proxy.url}) as platform,
        platform.caller() as caller,
    ):
        await caller.deploy("nap", functions.SLEEP, timeout_s=60)
        await caller.invoke("nap", 0, functions.SLEEP_RESULT)
        labels = json.dumps({"label": [f"{LABEL_INSTALLATION}={platform.installation}", LABEL_WORKER]})

        async def sandboxes() -> set[str]:
            return {container.id for container in await machine.containers.list(all=1, filters=labels)}

        async def started() -> bool:
            return (await caller.call("GET", f"/api/jobs/{job}", 200))["status"] == "running"

        (mine,) = await sandboxes()
        path, accept = "/api/functions/nap/invoke", {"Prefer": "respond-async"}
        job = (await caller.call("POST", path, 202, json={"body": 50}, headers=accept))["job_id"]
        await until(started, 5, platform.logs)

        try:
            proxy.stall()
            asked_at = time.monotonic()
            await caller.call("POST", f"/api/jobs/{job}/cancel", 200)
            assert (await caller.call("GET", f"/api/jobs/{job}?wait=1", 200))["status"] == "cancelled"
            assert time.monotonic() - asked_at < 1, "not final within a second"
            # It waits for the one slot, and for the engine.
            after = (await caller.call("POST", path, 202, json=NO_TIME, headers=accept))["job_id"]
            await asyncio.sleep(2 * ENGINE_TIMEOUT_S)
            assert mine in await sandboxes(), "the engine did not hang"
        finally:
            await proxy.cut()  # what the engine was asked meanwhile never arrives
            proxy.flow()

        answer = await caller.call("GET", f"/api/jobs/{after}?wait={5 + 2 * ENGINE_TIMEOUT_S}", 200)
        assert answer["status"] == "succeeded", (answer, platform.logs())

        async def gone() -> bool:
            return mine not in await sandboxes()

        await until(gone, 5 + ENGINE_TIMEOUT_S, platform.logs)
        assert (await caller.call("GET", f"/api/jobs/{job}", 200))["status"] == "cancelled"
        assert platform.ended() == {}
