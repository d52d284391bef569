"""Pages of lists are bounded by bytes as well as by count, and nothing is lost between them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared.postgres.jobs import LIST_BYTES, JobFilter, Jobs
from shared.postgres.pool import Pool
from tests.client import Client
from tests.deployment import Platform
from tests.seeds import accept, message, new_user

SIZE = 100_000
COUNT = 50  # five megabytes
CODE = """
def handler(event, context):
    print("p" * event["body"])
    return "r" * event["body"]
"""


@pytest.fixture
async def client(shared_platform: Platform) -> AsyncIterator[Client]:
    async with shared_platform.client() as client:
        await client.register()
        assert (await client.deploy("large", {"main.py": CODE}, settings={"timeout_s": 30})).status == 201
        items = [{"body": SIZE}] * COUNT
        answer = await client.call("POST", "/api/functions/large/invoke-batch", json={"items": items})
        for item in answer.json["items"]:
            assert (await client.job(item["job_id"], wait=60))["status"] == "succeeded"
        yield client


async def pages(client: Client, path: str) -> list[list[Any]]:
    found, cursor = [], ""
    while True:
        answer = await client.call("GET", f"{path}limit=1000{cursor}")
        assert answer.status == 200, answer
        assert len(answer.body) < LIST_BYTES + SIZE + 200_000
        found.append(answer.json["items"])
        if answer.json["next"] is None:
            return found
        cursor = f"&cursor={answer.json['next']}"


async def test_large_results_and_output_come_in_several_pages_and_each_once(client: Client) -> None:
    jobs = await pages(client, "/api/jobs?status=succeeded&function=large&")
    assert len(jobs) == 2
    ids = [job["id"] for page in jobs for job in page if job["kind"] == "invoke"]
    assert len(ids) == len(set(ids)) == COUNT
    assert ids == sorted(ids, reverse=True)
    assert all(len(job["result"]) == SIZE for page in jobs for job in page if job["kind"] == "invoke")

    records = await pages(client, "/api/functions/large/invocations?")
    assert len(records) == 2
    assert sorted(record["job_id"] for page in records for record in page) == sorted(ids)
    assert all(len(record["logs"]["container"]["stdout"]) == SIZE + 1 for page in records for record in page)

    lines = await pages(client, "/api/functions/large/logs?")
    assert len(lines) == 2
    assert sum(len(line["message"]) for page in lines for line in page) == COUNT * (SIZE + 1)


async def test_the_log_marks_where_an_attempt_wrote_more_than_is_kept(shared_platform: Platform) -> None:
    code = "def handler(event, context):\n    for n in range(event['body']):\n        print(n, 'x' * 1000)\n"
    async with shared_platform.client() as client:
        await client.register()
        assert (await client.deploy("chatty", {"main.py": code})).status == 201
        for lines, cut in ((3, False), (2000, True)):
            job = (await client.invoke("chatty", lines, prefer="respond-async")).json["job_id"]
            assert (await client.job(job, wait=30))["status"] == "succeeded"
            found = (await client.call("GET", f"/api/functions/chatty/logs?job_id={job}&limit=1000")).json
            assert found["next"] is None
            marks = [line["cut"] for line in found["items"]]
            assert marks == [cut] + [False] * (len(marks) - 1), "the newest comes first"


async def test_a_page_has_one_item_even_if_that_has_more_bytes(pool: Pool) -> None:
    user = await new_user(pool)
    jobs = [message(user, payload=b'{"body":"what it was called with"}') for _ in range(3)]
    await accept(pool, jobs)
    await pool.execute(
        "UPDATE jobs SET status = 'succeeded', finished_at = now(),"
        """ result = convert_to('"' || repeat('x', $1) || '"', 'UTF8')""",
        LIST_BYTES + 1,
    )
    found, more = await Jobs(pool).list(user, JobFilter(), limit=10)
    assert ([job.id for job in found], more) == ([max(job.id for job in jobs)], True)


async def test_a_list_does_not_read_what_jobs_were_called_with(pool: Pool) -> None:
    user = await new_user(pool)
    jobs = [message(user, payload=b'{"body":"what it was called with"}') for _ in range(3)]
    await accept(pool, jobs)
    found, more = await Jobs(pool).list(user, JobFilter(), limit=3)
    assert [job.payload for job in found] == [None] * 3
    assert not more
    found, more = await Jobs(pool).list(user, JobFilter(), limit=2)
    assert (len(found), more) == (2, True)
