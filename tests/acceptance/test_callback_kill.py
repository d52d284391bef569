"""A receiver that is down and a sender that is killed: what was to be told is told, under the same id."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.client import Client
from tests.deployment import Platform, free_port
from tests.receiver import Receiver

ECHO = "def handler(event, context):\n    return event['body']\n"
SETTINGS = {
    "CALLBACK_ALLOW": "127.0.0.0/8",
    "CALLBACK_RETRY_SECONDS": "0.2",
    "CALLBACK_RETRY_MAX_SECONDS": "1",
    "CALLBACK_TIMEOUT_SECONDS": "1",
    "CALLBACK_MAX_ATTEMPTS": "1000",
    "LEADER_SECONDS": "2",
}


@pytest.fixture
async def running(database: str, redis_url: str) -> AsyncIterator[Platform]:
    async with Platform(database_url=database, redis_url=redis_url, engine="process", env=SETTINGS) as platform:
        yield platform


async def until(client: Client, job: str, **wanted: Any) -> dict[str, Any]:
    """The job's delivery once it has these members; ``attempts`` is the least."""
    async with asyncio.timeout(60):
        while True:
            answer = (await client.call("GET", f"/api/jobs/{job}/deliveries")).json
            (found,) = answer["items"]
            attempts = wanted.get("attempts", 0)
            if found["attempts"] >= attempts and all(
                found[name] == wanted[name] for name in wanted.keys() - {"attempts"}
            ):
                return dict(found)
            await asyncio.sleep(0.05)


async def test_f25_callback_outlives_a_receiver_that_is_down_and_a_sender_that_is_killed(running: Platform) -> None:
    port = free_port()
    async with running.client() as client:
        await client.register()
        await client.deploy("echo", {"main.py": ECHO})
        secret = (await client.call("GET", "/api/webhook-secret")).json["secret"]
        hook = f"/api/functions/echo/invoke?callback_url=http://127.0.0.1:{port}/hook"
        job = (await client.call("POST", hook, json={"body": 7})).json["job_id"]
        assert (await client.job(job, wait=15))["callback_url"].endswith(f":{port}/hook")
        before = await until(client, job, attempts=2, status="pending")

        # A receiver that takes the connection and never answers: the sender dies in the middle of an attempt.
        held = asyncio.Event()

        async def hold(request: Any) -> Any:
            await held.wait()

        async with Receiver(port=port, reply=hold) as silent:
            await silent.count(1)
            running.kill("scheduler")
            held.set()
        running.start("scheduler")
        after = await until(client, job, attempts=before["attempts"] + 2)
        assert after["status"] == "pending"

        async with Receiver(port=port) as receiver:
            (got, *_) = await receiver.count(1, within_s=60)
        delivered = await until(client, job, status="delivered")
        assert delivered["id"] == before["id"] == got.id == silent.received[0].id
        assert got.is_signed_with(secret)
        assert got.body == silent.received[0].body
        assert (got.json["type"], got.json["data"]["result"]) == ("job.succeeded", 7)
        assert int(got.headers["webhook-timestamp"]) >= int(silent.received[0].headers["webhook-timestamp"])


async def test_every_job_of_a_batch_is_told_of_and_functions_have_a_url_of_their_own(running: Platform) -> None:
    async with running.client() as client, Receiver() as receiver:
        await client.register()
        await client.deploy("echo", {"main.py": ECHO})
        items = {"items": [{"body": number} for number in range(40)]}
        answer = await client.call(
            "POST", f"/api/functions/echo/invoke-batch?callback_url={receiver.url}/batch", json=items
        )
        ids = [item["job_id"] for item in answer.json["items"]]
        await receiver.count(40, within_s=60)
        assert {got.json["data"]["id"] for got in receiver.received} == set(ids)
        assert len({got.id for got in receiver.received}) == len(ids)

        own = {"callback_url": f"{receiver.url}/own"}
        assert (await client.deploy("own", {"main.py": ECHO}, settings=own)).status == 201
        waited = await client.invoke("own", "waited for")
        assert waited.json["result"] == "waited for"
        *_, last = await receiver.count(41)
        assert last.json["data"]["id"] == waited.json["job_id"]

        for url in ("http://10.0.0.1/", "ftp://receiver.example/", "http://169.254.169.254/latest"):
            refused = await client.call("POST", f"/api/functions/echo/invoke?callback_url={url}", json={})
            assert (refused.status, refused.json["code"]) == (422, "callback_refused")
            refused = await client.call(
                "POST", f"/api/functions/echo/invoke-batch?callback_url={url}", json={"items": [{}]}
            )
            assert (refused.status, refused.json["code"]) == (422, "callback_refused")
            refused = await client.deploy("own", {"main.py": ECHO}, settings={"callback_url": url})
            assert (refused.status, refused.json["code"]) == (422, "callback_refused")
