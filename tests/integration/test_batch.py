"""invoke-batch: many jobs, one commit, an entry for each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.client import Answer, Client
from tests.deployment import Platform

ECHO = "def handler(event, context):\n    return event\n"


@pytest.fixture
async def client(shared_platform: Platform) -> AsyncIterator[Client]:
    async with shared_platform.client() as client:
        await client.register()
        assert (await client.deploy("echo", {"main.py": ECHO})).status == 201
        yield client


async def batch(client: Client, text: Any, **options: Any) -> Answer:
    sent = {"data": text} if isinstance(text, bytes) else {"json": text}
    return await client.call("POST", "/api/functions/echo/invoke-batch", **sent, **options)


async def count(client: Client) -> int:
    found = (await client.call("GET", "/api/jobs?limit=1000")).json["items"]
    return sum(job["kind"] == "invoke" for job in found)


async def test_every_item_is_a_job_and_what_was_sent_is_what_arrives(client: Client) -> None:
    items = [{"body": number} for number in range(300)]
    answer = await batch(client, {"items": [*items, {"body": {"ä": None}, "path": "/x", "query": {"a": "b"}}]})
    assert answer.status == 202, answer
    ids = [entry["job_id"] for entry in answer.json["items"]]
    assert len(set(ids)) == 301
    assert ids == sorted(ids)
    jobs = await asyncio.gather(*(client.job(job, wait=30) for job in ids))
    assert {job["status"] for job in jobs} == {"succeeded"}
    assert [job["result"]["body"] for job in jobs[:300]] == list(range(300))
    last = jobs[300]["result"]
    assert (last["body"], last["path"], last["query"], last["method"]) == ({"ä": None}, "/x", {"a": "b"}, "POST")


async def test_large_numbers_stay_what_they_are(client: Client) -> None:
    answer = await batch(client, b'{"items": [ {"body": 12345678901234567890123}, {"body" : [1.0, "], {"]} ]}')
    first, second = [await client.job(entry["job_id"], wait=10) for entry in answer.json["items"]]
    assert first["result"]["body"] == 12345678901234567890123
    assert second["result"]["body"] == [1.0, "], {"]


async def test_an_item_that_is_no_event_is_refused_alone(client: Client) -> None:
    answer = await batch(client, {"items": [{"body": 1}, {"bodie": 2}, 3, {"body": 4}]})
    assert answer.status == 202
    good, misspelt, number, last = answer.json["items"]
    assert (misspelt["error"]["code"], misspelt["error"]["field"]) == ("invalid_field", "bodie")
    assert number["error"]["code"] == "invalid_body"
    for entry, body in ((good, 1), (last, 4)):
        assert (await client.job(entry["job_id"], wait=10))["result"]["body"] == body
    assert await count(client) == 2


@pytest.mark.parametrize(
    ("text", "status", "code"),
    [
        (b'{"items": []}', 422, "invalid_field"),
        (b"{}", 422, "invalid_field"),
        (b"", 422, "invalid_field"),
        (b"[]", 422, "invalid_body"),
        (b'{"items": {}}', 422, "invalid_field"),
        (b'{"items": [1, 2]}', 422, "no_item_accepted"),
        (b'{"items": [{}], "more": 1}', 422, "invalid_field"),
        (b'{"it\\u0065ms": [{}]}', 422, "invalid_field"),
        (b'{"items": [' + b"{}," * 1000 + b"{}]}", 422, "invalid_field"),
        (b'{"items": [{"body": ' + b"[" * 70 + b"]" * 70 + b"}]}", 400, "json_too_deep"),
        (b'{"items": [', 400, "invalid_json"),
    ],
)
async def test_what_is_no_batch_is_refused_and_leaves_nothing(
    client: Client, text: bytes, status: int, code: str
) -> None:
    answer = await batch(client, text)
    assert (answer.status, answer.json["code"]) == (status, code), answer
    assert await count(client) == 0


async def test_parameters_of_a_single_call_are_refused(client: Client) -> None:
    for path, headers in (("?delay=1", {}), ("", {"Idempotency-Key": "k"})):
        answer = await client.call(
            "POST", f"/api/functions/echo/invoke-batch{path}", json={"items": [{}]}, headers=headers
        )
        assert (answer.status, answer.json["code"]) == (400, "unknown_parameter")


async def test_a_strangers_function_is_not_there(client: Client, shared_platform: Platform) -> None:
    async with shared_platform.client() as stranger:
        await stranger.register()
        assert (await batch(stranger, {"items": [{}]})).status == 404


async def test_q2_a_batch_that_would_pass_the_quota_is_refused_whole(database: str, redis_url: str) -> None:
    async with (
        Platform(
            database_url=database, redis_url=redis_url, engine="process", env={"MAX_QUEUED_PER_USER": "50"}
        ) as platform,
        platform.client() as client,
    ):
        await client.register()
        assert (await client.deploy("echo", {"main.py": ECHO})).status == 201
        refused = await batch(client, {"items": [{}] * 51})
        assert (refused.status, refused.json["code"]) == (429, "queue_full")
        assert await count(client) == 0
        assert (await batch(client, {"items": [{}] * 50})).status == 202
