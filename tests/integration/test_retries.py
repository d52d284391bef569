"""Retries through the whole platform: attempts, their records, and how the job ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.client import Client
from tests.deployment import Platform

FLAKY = """
from containerpub import FunctionError

class Own(FunctionError):
    def __init__(self, text):
        self.text = text

def handler(event, context):
    print("attempt", context.attempt)
    good_from, wish = event["body"]
    if context.attempt >= good_from:
        return context.attempt
    if wish == "plain":
        raise ValueError("not yet")
    if wish == "own":
        raise Own("not yet")
    raise FunctionError("not yet", **wish)
"""
POLICY = {"max_attempts": 3, "retry_delay_s": 0.2}


@pytest.fixture
async def client(shared_platform: Platform) -> AsyncIterator[Client]:
    async with shared_platform.client() as client:
        yield await client.register()


async def ended(client: Client, name: str, body: Any) -> tuple[Any, list[Any]]:
    """The job, and the records of its attempts in their order."""
    job = (await client.invoke(name, body, prefer="respond-async")).json["job_id"]
    found = await client.job(job, wait=20)
    records = (await client.call("GET", f"/api/functions/{name}/invocations?job_id={job}")).json["items"]
    return found, sorted(records, key=lambda record: record["attempt"])


async def test_a_job_that_fails_is_tried_again_until_it_succeeds(client: Client) -> None:
    assert (await client.deploy("flaky", {"main.py": FLAKY}, settings=POLICY)).status == 201
    job, records = await ended(client, "flaky", [3, "plain"])
    assert (job["status"], job["result"], job["attempt"], job["reason"]) == ("succeeded", 3, 3, None)
    assert [(record["outcome"], record["reason"]) for record in records] == [
        ("failed", "handler_error"),
        ("failed", "handler_error"),
        ("succeeded", None),
    ]
    assert [record["logs"]["container"]["stdout"] for record in records] == [f"attempt {n}\n" for n in (1, 2, 3)]


async def test_the_last_attempts_failure_is_the_jobs(client: Client) -> None:
    assert (await client.deploy("flaky", {"main.py": FLAKY}, settings=POLICY)).status == 201
    job, records = await ended(client, "flaky", [9, "plain"])
    assert (job["status"], job["reason"], job["attempt"]) == ("failed", "handler_error", 3)
    assert job["error"]["type"] == "ValueError"
    assert len(records) == 3


async def test_without_a_policy_and_for_calls_that_wait_the_first_failure_is_final(client: Client) -> None:
    assert (await client.deploy("once", {"main.py": FLAKY})).status == 201
    job, records = await ended(client, "once", [2, {"retry_after_s": 0.1}])
    assert (job["status"], len(records)) == ("failed", 1)
    assert (await client.deploy("flaky", {"main.py": FLAKY}, settings=POLICY)).status == 201
    answer = await client.invoke("flaky", [2, "plain"])
    assert (answer.status, answer.json["success"], answer.json["reason"]) == (200, False, "handler_error")


async def test_a_call_that_was_answered_with_its_job_is_tried_again(client: Client) -> None:
    slow = "import time\n" + FLAKY.replace("    good_from", "    time.sleep(1.5)\n    good_from")
    assert (await client.deploy("slow", {"main.py": slow}, settings=POLICY)).status == 201
    answer = await client.invoke("slow", [2, "plain"], prefer="wait=1")
    assert answer.status == 202
    job = await client.job(answer.json["job_id"], wait=20)
    assert (job["status"], job["result"], job["attempt"]) == ("succeeded", 2, 2)


async def test_no_attempt_begins_too_long_after_the_first_however_long_the_job_waited_before(client: Client) -> None:
    policy = {"max_attempts": 9, "retry_delay_s": 1.5, "retry_backoff": "fixed", "retry_within_s": 2}
    assert (await client.deploy("flaky", {"main.py": FLAKY}, settings=policy)).status == 201
    path = "/api/functions/flaky/invoke?delay=2.5"
    late = (await client.call("POST", path, json={"body": [9, "plain"]})).json["job_id"]
    job = await client.job(late, wait=20)
    # Each wait is at least half of what it says: the second of them may be over in time, the third cannot.
    assert (job["status"], job["reason"]) == ("failed", "handler_error")
    assert job["attempt"] in (2, 3)


async def test_a_function_asks_for_its_next_attempt_or_for_none(client: Client) -> None:
    settings = {"max_attempts": 3, "retry_on": []}
    assert (await client.deploy("flaky", {"main.py": FLAKY}, settings=settings)).status == 201
    job, records = await ended(client, "flaky", [2, {"retry_after_s": 0.3}])
    assert (job["status"], job["result"], len(records)) == ("succeeded", 2, 2)
    for wish in ({"retry": False}, {}, {"retry_after_s": "soon"}, {"retry_after_s": -1}):
        job, records = await ended(client, "flaky", [2, wish])
        assert (job["status"], job["error"]["message"]) == ("failed", "Function execution failed: not yet")
        assert len(records) == 1


async def test_a_wait_without_sense_is_told_of_and_one_that_is_too_long_is_cut(client: Client) -> None:
    assert (await client.deploy("flaky", {"main.py": FLAKY}, settings=POLICY)).status == 201
    for wish, given in ((-1, "-1"), ("soon", "str"), (True, "bool")):
        job, records = await ended(client, "flaky", [2, {"retry_after_s": wish}])
        assert (job["status"], len(records)) == ("succeeded", 2), "by the function's settings"
        assert [record["logs"]["container"]["stderr"] for record in records] == [
            f"retry_after_s must be a number of seconds, not {given}: the function's settings hold\n",
            "",
        ]
    job_id = (await client.invoke("flaky", [2, {"retry_after_s": 10**12}], prefer="respond-async")).json["job_id"]
    async with asyncio.timeout(20):
        while (job := await client.job(job_id, wait=0.1))["status"] != "scheduled":
            pass
    wait = datetime.fromisoformat(job["run_at"]) - datetime.fromisoformat(job["created_at"])
    assert abs(wait - timedelta(days=1)) < timedelta(seconds=20)


async def test_an_error_class_of_the_functions_own_is_a_failure_like_any_other(client: Client) -> None:
    assert (await client.deploy("flaky", {"main.py": FLAKY}, settings=POLICY)).status == 201
    job, records = await ended(client, "flaky", [2, "own"])
    assert (job["status"], job["result"]) == ("succeeded", 2)
    assert [record["reason"] for record in records] == ["handler_error", None]


async def test_a_job_that_waits_for_its_next_attempt_says_so_and_can_be_cancelled(client: Client) -> None:
    settings = {"max_attempts": 2, "retry_delay_s": 60}
    assert (await client.deploy("flaky", {"main.py": FLAKY}, settings=settings)).status == 201
    job_id = (await client.invoke("flaky", [2, "plain"], prefer="respond-async")).json["job_id"]
    for _ in range(100):
        job = await client.job(job_id, wait=0.1)
        if job["status"] == "scheduled":
            break
    assert (job["status"], job["attempt"], job["reason"]) == ("scheduled", 1, None)
    assert job["run_at"] > job["started_at"]
    assert (await client.call("POST", f"/api/jobs/{job_id}/cancel")).json["status"] == "cancelled"
