"""Idempotency-Key: a call that is repeated gets the job of the first one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from scheduler.retention import Kept, Retention
from shared.errors import Conflict
from shared.postgres.pool import Pool
from tests.client import Answer, Client
from tests.deployment import Platform
from tests.seeds import accept_once, message, new_user

COUNT = """
import time, uuid

def handler(event, context):
    time.sleep(event["body"] or 0)
    return str(uuid.uuid4())
"""


@pytest.fixture
async def client(shared_platform: Platform) -> AsyncIterator[Client]:
    async with shared_platform.client() as client:
        await client.register()
        assert (await client.deploy("count", {"main.py": COUNT})).status == 201
        yield client


async def invoke(client: Client, key: str, body: object = 0, *, name: str = "count", prefer: str = "") -> Answer:
    headers = {"Idempotency-Key": key} | ({"Prefer": prefer} if prefer else {})
    return await client.call("POST", f"/api/functions/{name}/invoke", json={"body": body}, headers=headers)


async def jobs_of(client: Client) -> list[str]:
    found = (await client.call("GET", "/api/jobs")).json["items"]
    return [job["id"] for job in found if job["kind"] == "invoke"]


async def test_a_repeated_accept_is_answered_with_the_first_ones_job(client: Client) -> None:
    first = await invoke(client, "k", prefer="respond-async")
    again = await invoke(client, "k", prefer="respond-async")
    assert (first.status, again.status) == (202, 202)
    assert first.json == again.json
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    await client.job(first.json["job_id"], wait=10)
    # It stays that job when it has ended, too.
    assert (await invoke(client, "k", prefer="respond-async")).json == first.json
    assert await jobs_of(client) == [first.json["job_id"]]


async def test_a_repeated_call_that_waits_gets_the_first_ones_result(client: Client) -> None:
    first, meanwhile = await asyncio.gather(invoke(client, "k", 0.5), invoke(client, "k", 0.5))
    later = await invoke(client, "k", 0.5)
    assert [answer.status for answer in (first, meanwhile, later)] == [200, 200, 200]
    assert first.json == meanwhile.json == later.json
    assert first.json["success"] is True
    assert await jobs_of(client) == [first.json["job_id"]]


async def test_f7_many_at_once_make_one_job(client: Client) -> None:
    answers = await asyncio.gather(*(invoke(client, "k", prefer="respond-async") for _ in range(30)))
    assert {answer.status for answer in answers} == {202}
    assert len({answer.json["job_id"] for answer in answers}) == 1
    assert sum("Idempotent-Replayed" not in answer.headers for answer in answers) == 1
    job = await client.job(answers[0].json["job_id"], wait=10)
    assert (job["status"], job["attempt"]) == ("succeeded", 1)
    assert len((await client.call("GET", "/api/functions/count/invocations")).json["items"]) == 1


async def test_a_wait_that_runs_out_leaves_the_job_to_the_next_call(client: Client) -> None:
    first = await invoke(client, "k", 1, prefer="wait=0.2")
    assert first.status == 202
    again = await invoke(client, "k", 1)
    assert (again.status, again.json["job_id"]) == (200, first.json["job_id"])


async def test_a_key_that_stands_for_another_call_is_refused(client: Client) -> None:
    assert (await client.deploy("other", {"main.py": COUNT})).status == 201
    assert (await invoke(client, "k", 0)).status == 200
    for body, name in ((0.01, "count"), (0, "other")):
        answer = await invoke(client, "k", body, name=name)
        assert (answer.status, answer.json["code"]) == (409, "idempotency_key_reused")
    assert len(await jobs_of(client)) == 1


async def test_keys_are_a_users_own(client: Client, shared_platform: Platform) -> None:
    async with shared_platform.client() as stranger:
        await stranger.register()
        assert (await stranger.deploy("count", {"main.py": COUNT})).status == 201
        mine, other = await invoke(client, "k"), await invoke(stranger, "k")
        assert (mine.status, other.status) == (200, 200)
        assert mine.json["job_id"] != other.json["job_id"]


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "ä"])
async def test_an_unusable_key_is_refused(client: Client, key: str) -> None:
    answer = await invoke(client, key)
    assert (answer.status, answer.json["code"], answer.json["field"]) == (400, "invalid_parameter", "Idempotency-Key")


@pytest.fixture
async def user(pool: Pool) -> UUID:
    return await new_user(pool)


async def test_a_key_is_free_again_after_its_time_and_then_forgotten(pool: Pool, user: UUID) -> None:
    first, second, third = (message(user) for _ in range(3))
    assert await accept_once(pool, first, key="k", fingerprint=b"1", keep_s=30) == first.id
    assert await accept_once(pool, second, key="k", fingerprint=b"1", keep_s=60) == first.id
    with pytest.raises(Conflict):
        await accept_once(pool, second, key="k", fingerprint=b"2", keep_s=60)
    assert await pool.fetchval("SELECT count(*) FROM jobs") == 1
    over = "UPDATE idempotency_keys SET expires_at = now()"
    await pool.execute(over)
    assert await accept_once(pool, third, key="k", fingerprint=b"2", keep_s=30) == third.id
    assert await pool.fetchval("SELECT count(*) FROM jobs") == 2
    await Retention(pool, Kept(result_days=7, redrive_days=7, record_days=90)).run_once()
    assert await pool.fetchval("SELECT count(*) FROM idempotency_keys") == 1
    await pool.execute(over)
    await Retention(pool, Kept(result_days=7, redrive_days=7, record_days=90)).run_once()
    assert await pool.fetchval("SELECT count(*) FROM idempotency_keys") == 0
