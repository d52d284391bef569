"""Invoke, waited for and not: what callers are told, and what Postgres knows afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.client import Client
from tests.deployment import Platform

ECHO = """
import asyncio, time

def handler(event, context):
    print("seen", event["body"])
    return {"got": event["body"], "attempt": context.attempt}

async def slow(event, context):
    await asyncio.sleep(event["body"])
    return "slept"

def boom(event, context):
    raise ValueError("no")
"""


@pytest.fixture
async def client(shared_platform: Platform) -> AsyncIterator[Client]:
    async with shared_platform.client() as client:
        yield await client.register()


async def test_waited_for_invoke_answers_the_result_and_leaves_a_record(client: Client) -> None:
    assert (await client.deploy("echo", {"main.py": ECHO})).status == 201
    answer = await client.invoke("echo", {"ä": [1, 2.5, None]})
    assert answer.status == 200, answer
    assert answer.json["success"] is True
    assert answer.json["result"] == {"got": {"ä": [1, 2.5, None]}, "attempt": 1}
    job = await client.job(answer.json["job_id"], wait=5)
    assert (job["status"], job["attempt"], job["kind"]) == ("succeeded", 1, "invoke")
    records = (await client.call("GET", "/api/functions/echo/invocations")).json["items"]
    assert [record["job_id"] for record in records] == [answer.json["job_id"]]
    assert records[0]["logs"]["container"]["stdout"] == "seen {'ä': [1, 2.5, None]}\n"
    assert records[0]["timings"]["run_ms"] > 0


async def test_a_deploy_starts_the_first_sandbox_ahead(platform: Platform) -> None:
    async with platform.client() as client:
        await client.register()
        assert (await client.deploy("echo", {"main.py": ECHO})).status == 201
        answer = await client.invoke("echo", 1)
        await client.job(answer.json["job_id"], wait=5)
        (record,) = (await client.call("GET", "/api/functions/echo/invocations")).json["items"]
        assert record["start_kind"] in ("warm", "paused")


async def test_a_record_says_how_its_own_call_came_by_its_sandbox(platform: Platform) -> None:
    """And not how the next call of that sandbox would."""
    async with platform.client() as client:
        await client.register()
        code = "import time\ndef handler(event, context):\n    time.sleep(2)\n"
        assert (await client.deploy("slow", {"main.py": code})).status == 201
        answers = await asyncio.gather(client.invoke("slow"), client.invoke("slow"))
        for answer in answers:
            await client.job(answer.json["job_id"], wait=10)
        records = (await client.call("GET", "/api/functions/slow/invocations")).json["items"]
        # The deploy started the first ahead; the second call found it in use.
        assert sorted(record["start_kind"] for record in records) == ["cold", "warm"]


async def test_accepted_invoke_is_committed_and_can_be_awaited(client: Client) -> None:
    await client.deploy("echo", {"main.py": ECHO})
    accepted = await client.invoke("echo", 7, prefer="respond-async")
    assert accepted.status == 202
    assert accepted.headers["Location"] == f"/api/jobs/{accepted.json['job_id']}"
    job = await client.job(accepted.json["job_id"], wait=10)
    assert job["status"] == "succeeded"
    assert job["result"] == {"got": 7, "attempt": 1}


async def test_wait_that_runs_out_makes_the_call_a_durable_job(client: Client) -> None:
    await client.deploy("slow", {"main.py": ECHO}, settings={"handler": "main:slow"})
    answer = await client.invoke("slow", 1.5, prefer="wait=0.3")
    assert answer.status == 202, answer
    job = await client.job(answer.json["job_id"], wait=10)
    assert (job["status"], job["result"]) == ("succeeded", "slept")


async def test_wait_on_a_job_answers_the_state_so_far_when_it_runs_out(client: Client) -> None:
    await client.deploy("slow", {"main.py": ECHO}, settings={"handler": "main:slow"})
    accepted = await client.invoke("slow", 1.5, prefer="respond-async")
    job = await client.job(accepted.json["job_id"], wait=0.7)
    assert job["status"] == "running"
    running = (await client.call("GET", "/api/jobs?status=running")).json["items"]
    assert accepted.json["job_id"] in [item["id"] for item in running]
    assert (await client.job(accepted.json["job_id"], wait=10))["status"] == "succeeded"


async def test_failure_of_the_function_is_a_200_that_says_so(client: Client) -> None:
    await client.deploy("boom", {"main.py": ECHO}, settings={"handler": "main:boom"})
    answer = await client.invoke("boom")
    assert answer.status == 200
    assert answer.json["success"] is False
    assert answer.json["reason"] == "handler_error"
    assert answer.json["error"]["type"] == "ValueError"
    assert answer.json["error"]["message"] == "Function execution failed: no"


async def test_redeploy_serves_the_new_version_and_the_same_again_is_no_deploy(client: Client) -> None:
    first = await client.deploy("echo", {"main.py": "def handler(e, c):\n    return 1\n"})
    second = await client.deploy("echo", {"main.py": "def handler(e, c):\n    return 2\n"})
    again = await client.deploy("echo", {"main.py": "def handler(e, c):\n    return 2\n"})
    assert [first.json["version"], second.json["version"], again.json["version"]] == [1, 2, 2]
    assert again.status == 200
    assert (await client.invoke("echo")).json["result"] == 2


async def test_queued_job_is_cancelled_before_it_starts_and_a_running_one_is_killed(client: Client) -> None:
    await client.deploy("slow", {"main.py": ECHO}, settings={"handler": "main:slow", "concurrency": 1})
    running = (await client.invoke("slow", 4, prefer="respond-async")).json["job_id"]
    parked = (await client.invoke("slow", 0, prefer="respond-async")).json["job_id"]
    assert (await client.job(parked, wait=0.5))["status"] == "queued"
    cancelled = await client.call("POST", f"/api/jobs/{parked}/cancel")
    assert (cancelled.status, cancelled.json["status"]) == (200, "cancelled")
    killed = await client.call("POST", f"/api/jobs/{running}/cancel")
    assert (killed.status, killed.json["status"]) == (200, "cancelled")
    records = (await client.call("GET", f"/api/functions/slow/invocations?job_id={parked}")).json["items"]
    assert records == []
    # The slot and the function's one place are free again.
    assert (await client.invoke("slow", 0)).json["result"] == "slept"


async def test_deleted_function_is_gone_and_its_name_free(client: Client) -> None:
    await client.deploy("echo", {"main.py": ECHO})
    deleted = await client.call("DELETE", "/api/functions/echo")
    assert deleted.status == 202
    assert (await client.job(deleted.json["job_id"], wait=10))["status"] == "succeeded"
    assert (await client.invoke("echo")).status == 404
    assert (await client.deploy("echo", {"main.py": ECHO})).json["version"] == 1


async def test_q2_what_waits_for_any_function_counts(database: str, redis_url: str) -> None:
    env = {"MAX_QUEUED_PER_USER": "20"}
    async with (
        Platform(database_url=database, redis_url=redis_url, engine="process", env=env) as platform,
        platform.client() as client,
    ):
        await client.register()
        for name in ("one", "two", "three"):
            settings = {"handler": "main:slow", "concurrency": 1, "timeout_s": 60}
            assert (await client.deploy(name, {"main.py": ECHO}, settings=settings)).status == 201
        for name in ("one", "two"):  # one runs, nine are parked
            answers = await asyncio.gather(*(client.invoke(name, 30, prefer="respond-async") for _ in range(10)))
            assert {answer.status for answer in answers} == {202}
        # One runs and two wait, and those that the queue has not got yet when the next is accepted.
        answers = [await client.invoke("three", 30, prefer="respond-async") for _ in range(10)]
        accepted = [answer for answer in answers if answer.status == 202]
        assert 3 <= len(accepted) < 10, answers
        assert {(answer.status, answer.json["code"]) for answer in answers if answer not in accepted} == {
            (429, "queue_full")
        }


async def test_q2_user_over_the_queue_quota_is_refused_and_others_are_not(database: str, redis_url: str) -> None:
    async with (
        Platform(
            database_url=database, redis_url=redis_url, engine="process", env={"MAX_QUEUED_PER_USER": "3"}
        ) as platform,
        platform.client() as flooding,
        platform.client() as other,
    ):
        await flooding.register()
        await other.register()
        await flooding.deploy("slow", {"main.py": ECHO}, settings={"handler": "main:slow", "concurrency": 1})
        await other.deploy("echo", {"main.py": ECHO})
        deadline = asyncio.get_running_loop().time() + 10
        refused = await flooding.invoke("slow", 4, prefer="respond-async")
        while refused.status == 202 and asyncio.get_running_loop().time() < deadline:
            refused = await flooding.invoke("slow", 4, prefer="respond-async")
        assert (refused.status, refused.json["code"]) == (429, "queue_full"), refused
        assert int(refused.headers["Retry-After"]) >= 1
        assert (await other.invoke("echo", 1)).status == 200
