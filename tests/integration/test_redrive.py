"""Failed jobs are repeated, one or by filter; open ones are cancelled by filter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared.ids import new_id
from tests.client import Client
from tests.deployment import Platform

PICKY = """
import time

def handler(event, context):
    body = event["body"]
    if body == "sleep":
        time.sleep(30)
    if body != "good" and WRONG:
        raise ValueError("not good")
    return [body, event["query"]["a"]]
"""
BROKEN, MENDED = (PICKY.replace("WRONG", wrong) for wrong in ("True", "False"))


@pytest.fixture
async def client(shared_platform: Platform) -> AsyncIterator[Client]:
    async with shared_platform.client() as client:
        await client.register()
        for name in ("picky", "other"):
            assert (await client.deploy(name, {"main.py": BROKEN}, settings={"timeout_s": 20})).status == 201
        yield client


async def ended(client: Client, function: str, body: object) -> dict[str, Any]:
    path, event = f"/api/functions/{function}/invoke", {"body": body, "query": {"a": "1"}}
    answer = await client.call("POST", path, json=event, headers={"Prefer": "respond-async"})
    ended: dict[str, Any] = await client.job(answer.json["job_id"], wait=10)
    return ended


async def test_a_failed_job_is_repeated_on_the_version_that_is_live_now(client: Client) -> None:
    failed = await ended(client, "picky", "bad")
    assert (failed["status"], failed["reason"], failed["version"], failed["redrive_of"]) == (
        *("failed", "handler_error"),
        *(1, None),
    )
    assert (await client.deploy("picky", {"main.py": MENDED})).status == 201
    answer = await client.call("POST", f"/api/jobs/{failed['id']}/redrive")
    assert (answer.status, answer.json["redrive_of"]) == (202, failed["id"])
    assert answer.headers["Location"] == f"/api/jobs/{answer.json['job_id']}"
    repeated = await client.job(answer.json["job_id"], wait=10)
    assert (repeated["status"], repeated["result"], repeated["version"]) == ("succeeded", ["bad", "1"], 2)
    assert (repeated["redrive_of"], repeated["attempt"]) == (failed["id"], 1)
    assert (await client.job(failed["id"]))["status"] == "failed", "its outcome never changes"


async def test_a_job_is_repeated_once_however_often_that_is_asked(client: Client) -> None:
    failed = await ended(client, "picky", "bad")
    answers = await asyncio.gather(*(client.call("POST", f"/api/jobs/{failed['id']}/redrive") for _ in range(10)))
    assert {answer.status for answer in answers} == {202}
    (new,) = {answer.json["job_id"] for answer in answers}
    assert sum("Idempotent-Replayed" not in answer.headers for answer in answers) == 1
    # What repeats one and fails too can be repeated in its turn.
    assert (await client.job(new, wait=10))["status"] == "failed"
    third = (await client.call("POST", f"/api/jobs/{new}/redrive")).json["job_id"]
    assert (await client.job(third, wait=10))["redrive_of"] == new


async def test_a_waited_for_call_that_failed_can_be_repeated_too(client: Client) -> None:
    answer = await client.invoke("picky", "bad")
    failed = await client.job(answer.json["job_id"], wait=5)
    new = (await client.call("POST", f"/api/jobs/{failed['id']}/redrive")).json["job_id"]
    assert (await client.job(new, wait=10))["reason"] == "handler_error"


async def test_what_did_not_fail_is_not_repeated(client: Client) -> None:
    good = await ended(client, "picky", "good")
    deploy = next(job for job in (await client.call("GET", "/api/jobs")).json["items"] if job["kind"] == "deploy")
    for job in (good["id"], deploy["id"]):
        answer = await client.call("POST", f"/api/jobs/{job}/redrive")
        assert (answer.status, answer.json["code"]) == (409, "not_redrivable")
    assert (await client.call("POST", f"/api/jobs/{new_id()}/redrive")).status == 404


async def test_failed_jobs_are_listed_and_repeated_by_filter(client: Client) -> None:
    mine = [(await ended(client, "picky", number))["id"] for number in range(3)]
    await ended(client, "other", "bad")
    good = (await ended(client, "picky", "good"))["id"]

    async def failed(query: str) -> list[str]:
        return [job["id"] for job in (await client.call("GET", f"/api/jobs?status=failed&{query}")).json["items"]]

    assert await failed("function=picky&reason=handler_error") == mine[::-1]
    assert await failed("reason=timeout") == []
    assert good not in await failed("")

    async def redrive(query: str) -> list[str]:
        answer = await client.call("POST", f"/api/jobs/redrive?{query}")
        assert (answer.status, answer.json["more"]) == (202, False), answer
        for item in answer.json["items"]:
            await client.job(item["job_id"], wait=10)
        return [item["redrive_of"] for item in answer.json["items"]]

    assert await redrive("reason=timeout") == []
    assert await redrive("function=picky") == mine
    # They failed again: these are there to be repeated now, and the first ones no more.
    assert len(again := await redrive("function=picky&reason=handler_error")) == 3
    assert not set(again) & set(mine)
    assert (await client.call("POST", "/api/functions/picky/stop")).status == 200
    assert await redrive("function=picky") == []
    assert (await client.call("DELETE", "/api/functions/other")).status == 202
    assert await redrive("") == [], "what nobody can call is left alone"
    assert (await client.call("POST", "/api/functions/picky/start")).status == 200
    assert len(await redrive("")) == 3


async def test_open_jobs_are_cancelled_by_filter(client: Client) -> None:
    async def cancel(query: str) -> dict[str, Any]:
        answer = await client.call("POST", f"/api/jobs/cancel?{query}")
        assert answer.status == 200, answer
        document: dict[str, Any] = answer.json
        return document

    later = [
        (await client.call("POST", f"/api/functions/{name}/invoke?delay=60", json={})).json["job_id"]
        for name in ("picky", "picky", "other")
    ]
    running = (await client.invoke("other", "sleep", prefer="respond-async")).json["job_id"]
    while (await client.job(running))["status"] != "running":
        await asyncio.sleep(0.02)
    assert await cancel("function=picky") == {"cancelled": 2, "more": False}
    assert await cancel("function=picky") == {"cancelled": 0, "more": False}
    assert await cancel("status=running") == {"cancelled": 1, "more": False}
    assert (await client.job(running, wait=5))["status"] == "cancelled"
    assert (await client.job(later[2]))["status"] == "scheduled"
    assert await cancel("function=other&status=scheduled") == {"cancelled": 1, "more": False}
    assert [(await client.job(job, wait=5))["status"] for job in later] == ["cancelled"] * 3


async def test_more_jobs_than_a_batch_are_cancelled_in_turns(client: Client) -> None:
    assert (
        await client.deploy("slow", {"main.py": BROKEN}, settings={"timeout_s": 20, "concurrency": 1})
    ).status == 201
    for count in (1000, 100):
        batch = {"items": [{"body": "sleep"}] * count}
        assert (await client.call("POST", "/api/functions/slow/invoke-batch", json=batch)).status == 202
    pages = []
    for _ in range(2):
        pages.append((await client.call("POST", "/api/jobs/cancel?function=slow")).json)
    assert pages == [{"cancelled": 1000, "more": True}, {"cancelled": 100, "more": False}]


@pytest.mark.parametrize(
    ("path", "code", "field"),
    [
        ("cancel", "invalid_parameter", "function"),
        ("cancel?status=succeeded", "invalid_parameter", "status"),
        ("cancel?status=odd", "invalid_parameter", "status"),
        ("cancel?function=picky&limit=3", "unknown_parameter", "limit"),
        ("redrive?reason=odd", "invalid_parameter", "reason"),
        ("redrive?status=failed", "unknown_parameter", "status"),
        ("redrive?function=picky&function=other", "invalid_parameter", "function"),
    ],
)
async def test_wrong_filters_are_refused(client: Client, path: str, code: str, field: str) -> None:
    answer = await client.call("POST", f"/api/jobs/{path}")
    assert (answer.status, answer.json["code"], answer.json["field"]) == (400, code, field)


@pytest.mark.parametrize("what", ["cancel?status=scheduled", "redrive"])
async def test_a_filter_in_the_body_is_refused_and_nothing_is_done(client: Client, what: str) -> None:
    later = (await client.call("POST", "/api/functions/other/invoke?delay=60", json={})).json["job_id"]
    await ended(client, "other", "bad")
    answer = await client.call("POST", f"/api/jobs/{what}", json={"function": "picky"})
    assert (answer.status, answer.json["code"], answer.json["field"]) == (422, "invalid_field", "function")
    assert (await client.job(later))["status"] == "scheduled"
    done = (await client.call("POST", f"/api/jobs/{what}", json={})).json
    assert done.get("cancelled", len(done.get("items", []))) == 1


@pytest.mark.parametrize("what", ["cancel", "redrive"])
async def test_a12_a_filter_reaches_only_one_s_own(client: Client, shared_platform: Platform, what: str) -> None:
    failed = await ended(client, "picky", "bad")
    async with shared_platform.client() as stranger:
        await stranger.register()
        assert (await stranger.call("POST", f"/api/jobs/{what}?function={failed['function_id']}")).status == 404
        answer = await stranger.call("POST", f"/api/jobs/{what}{'?status=queued' if what == 'cancel' else ''}")
        assert answer.json in ({"cancelled": 0, "more": False}, {"items": [], "more": False})
