"""What is known of attempts: of one that runs, and of those that did not end by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Any

import pytest

from tests.client import Client
from tests.deployment import Platform
from tests.eventstream import events_of, states, text

WORK = """
import asyncio

async def handler(event, context):
    print("began", context.attempt, flush=True)
    if context.attempt == 1:
        context.progress(0.25, "a quarter")
    await asyncio.sleep(event["body"] if isinstance(event["body"], (int, float)) else 60)
    return "done"
"""
ENV = {
    "LEASE_SECONDS": "2",
    "HEARTBEAT_SECONDS": "0.5",
    "DRAIN_SECONDS": "0.5",
}


@pytest.fixture
async def platform(database: str, redis_url: str) -> AsyncIterator[Platform]:
    async with Platform(database_url=database, redis_url=redis_url, engine="process", env=ENV) as platform:
        yield platform


@pytest.fixture
async def client(platform: Platform) -> AsyncIterator[Client]:
    async with platform.client() as client:
        await client.register()
        assert (await client.deploy("steps", {"main.py": WORK}, settings={"timeout_s": 90})).status == 201
        yield client


async def until(found: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(30):
        while not (answer := await found()):
            await asyncio.sleep(0.05)
        return answer


async def started(client: Client, body: object) -> str:
    job: str = (await client.invoke("steps", body, prefer="respond-async")).json["job_id"]
    return job


async def progressing(client: Client, job: str) -> Any:
    """The job once it has said how far it is."""

    async def look() -> Any:
        view = await client.job(job)
        return view["progress"] and view

    return await until(look)


async def attempts(client: Client, job: str) -> list[Any]:
    """The records of its attempts, the first one first."""
    items: list[Any] = (await client.call("GET", f"/api/functions/steps/invocations?job_id={job}")).json["items"]
    return sorted(items, key=lambda one: [int(part) for part in one["epoch"].split("-")])


async def whole(client: Client, job: str) -> list[Any]:
    """The records of its attempts, once their workers have told what they know."""

    async def look() -> list[Any]:
        found = await attempts(client, job)
        return found if all(one["timings"]["run_ms"] is not None for one in found) else []

    answer: list[Any] = await until(look)
    return answer


async def printed(client: Client, job: str) -> list[Any]:
    lines: list[Any] = (await client.call("GET", f"/api/functions/steps/logs?job_id={job}")).json["items"]
    return [(line["attempt"], line["stream"], line["message"]) for line in reversed(lines)]


def times_add_up(view: Any) -> None:
    """It began and ended; how long it waited is between its acceptance and its begin."""
    begun, ended = (datetime.fromisoformat(view[name]) for name in ("started_at", "finished_at"))
    assert begun <= ended
    timings = view["timings"]
    lasted_ms = (ended - begun).total_seconds() * 1000
    assert timings["queue_ms"] >= 0
    assert timings["total_ms"] - timings["queue_ms"] == pytest.approx(lasted_ms, abs=500)


async def test_a_running_job_says_since_when_and_what_it_waited(client: Client) -> None:
    job = await started(client, 1.5)
    running = await progressing(client, job)
    (listed,) = (await client.call("GET", "/api/jobs?status=running")).json["items"]
    assert listed == running
    assert (running["status"], running["attempt"], running["finished_at"]) == ("running", 1, None)
    assert running["started_at"] >= running["created_at"]
    assert running["timings"].pop("queue_ms") >= 0
    assert set(running["timings"].values()) == {None}
    assert running["progress"] == {"attempt": 1, "fraction": 0.25, "message": "a quarter"}
    async with events_of(client, job) as stream:
        seen = await stream.rest()
    assert states(seen) == ["running", "succeeded"]
    assert [event.data["started_at"] for event in seen if event.name == "state"] == [running["started_at"]] * 2
    times_add_up(seen[-1].data)
    (record,) = await attempts(client, job)
    assert record["started_at"] == running["started_at"]


async def test_what_a_cancelled_attempt_printed_and_when_it_ran_is_kept(client: Client) -> None:
    job = await started(client, "long")
    running = await progressing(client, job)
    ended = (await client.call("POST", f"/api/jobs/{job}/cancel")).json
    assert (ended["status"], ended["started_at"]) == ("cancelled", running["started_at"])
    times_add_up(ended)

    (record,) = await whole(client, job)
    assert (record["attempt"], record["outcome"], record["reason"]) == (1, "cancelled", None)
    assert record["start_kind"] in ("cold", "warm", "paused")
    assert record["worker_id"]
    assert record["logs"]["container"]["stdout"] == "began 1\n"
    assert record["logs"]["metadata"]["timeout_ms"] == 90_000
    assert record["request"]["method"] == "POST"
    times_add_up(record)
    assert record["timings"]["sandbox_ms"] >= 0
    assert record["timings"]["run_ms"] > 0
    assert await printed(client, job) == [(1, "stdout", "began 1\n")]
    assert await client.job(job) == ended
    async with events_of(client, job) as stream:  # whoever comes late
        assert text(await stream.rest()) == "began 1\n"


async def test_an_attempt_that_was_handed_back_keeps_its_number_and_what_it_printed(
    platform: Platform, client: Client
) -> None:
    job = await started(client, "long")
    first = await progressing(client, job)
    await platform.terminate("worker-1")
    waits = await client.job(job)
    assert (waits["status"], waits["attempt"], waits["started_at"], waits["progress"]) == ("queued", 0, None, None)
    platform.start("worker-2")

    async def again() -> Any:
        view = await client.job(job)
        return view["status"] == "running" and view

    running = await until(again)
    assert (running["attempt"], running["started_at"] > first["started_at"]) == (1, True)
    await progressing(client, job)
    await client.call("POST", f"/api/jobs/{job}/cancel")

    handed_back, cancelled = await whole(client, job)
    assert [(one["attempt"], one["outcome"]) for one in (handed_back, cancelled)] == [
        (1, "handed_back"),
        (1, "cancelled"),
    ]
    assert handed_back["started_at"] == first["started_at"]
    assert handed_back["start_kind"] is not None
    for record in (handed_back, cancelled):
        times_add_up(record)
        assert record["timings"]["run_ms"] > 0
    assert await printed(client, job) == [(1, "stdout", "began 1\n")] * 2


async def test_a_lost_attempt_has_its_times_and_the_next_one_its_own(platform: Platform, client: Client) -> None:
    job = await started(client, "long")
    first = await progressing(client, job)
    platform.kill("worker-1")
    platform.start("worker-2")

    async def again() -> Any:
        view = await client.job(job)
        return view["attempt"] == 2 and view["status"] == "running" and view

    second = await until(again)
    # The first attempt's progress is not that of the second, which says nothing.
    assert second["progress"] is None
    assert second["started_at"] > first["started_at"]

    async def told() -> list[Any]:
        return await attempts(client, job)

    (lost,) = await until(told)
    assert (lost["attempt"], lost["outcome"], lost["started_at"]) == (1, "lost", first["started_at"])
    assert lost["worker_id"]
    times_add_up(lost)
    await client.call("POST", f"/api/jobs/{job}/cancel")
