"""What was accepted for a function ends with it: cancelled, and before the job that deletes it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from shared.jobs import JobStatus
from shared.postgres.jobs import Jobs
from shared.postgres.pool import Pool
from shared.queue.queue import Queue
from tests.client import Client
from tests.deployment import Platform
from tests.seeds import accept, message, new_user
from worker.consume.deleted_jobs import DeletedJobs

SLOW = """
import pathlib, time

def handler(event, context):
    pathlib.Path(event["body"]).touch()
    time.sleep(60)
"""


@pytest.fixture
async def client(shared_platform: Platform) -> AsyncIterator[Client]:
    async with shared_platform.client() as client:
        yield await client.register()


async def ended(client: Client, job: str) -> dict[str, Any]:
    return dict(await client.job(job, wait=60))


def at(job: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(job["finished_at"])


@pytest.mark.parametrize("way", ["one by one", "in a batch"])
async def test_accepted_jobs_end_cancelled_and_before_the_delete(client: Client, tmp_path: Path, way: str) -> None:
    settings = {"concurrency": 1, "timeout_s": 90}
    assert (await client.deploy("slow", {"main.py": SLOW}, settings=settings)).status == 201
    marks = [tmp_path / str(n) for n in range(6)]
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents[:2]:
        folder.chmod(0o755)
    events = [{"body": str(mark)} for mark in marks]
    if way == "in a batch":
        answer = await client.call("POST", "/api/functions/slow/invoke-batch", json={"items": events})
        jobs = [item["job_id"] for item in answer.json["items"]]
    else:
        jobs = [(await client.invoke("slow", event["body"], prefer="respond-async")).json["job_id"] for event in events]
    later = await client.call("POST", "/api/functions/slow/invoke?delay=60", json=events[0])
    async with asyncio.timeout(30):
        while (await client.job(jobs[0]))["status"] != "running":
            await asyncio.sleep(0.05)
    deleting = (await client.call("DELETE", "/api/functions/slow")).json["job_id"]
    delete = await ended(client, deleting)
    assert (delete["status"], delete["kind"]) == ("succeeded", "delete")
    ends = [await ended(client, job) for job in [*jobs, later.json["job_id"]]]
    assert {job["status"] for job in ends} == {"cancelled"}
    assert max(at(job) for job in ends) <= at(delete)
    assert [mark.exists() for mark in marks] == [True] + [False] * 5, "none of those that waited has begun"


async def test_the_delete_of_a_function_without_open_jobs_ends_at_once(client: Client) -> None:
    assert (await client.deploy("f", {"main.py": "def handler(event, context):\n    return 1\n"})).status == 201
    done = (await client.invoke("f", prefer="respond-async")).json["job_id"]
    assert (await ended(client, done))["status"] == "succeeded"
    deleting = (await client.call("DELETE", "/api/functions/f")).json["job_id"]
    assert (await client.job(deleting, wait=10))["status"] == "succeeded"
    assert (await client.job(done))["status"] == "succeeded", "what had ended stays as it was"


async def test_jobs_are_ended_wherever_they_are_and_others_stay(queue: Queue, pool: Pool) -> None:
    user = await new_user(pool)
    first = message(user)
    waits = [message(user, function=first.function_id) for _ in range(3)]
    other = message(user)
    await accept(pool, [first, *waits, other])  # the queue has none of them yet
    jobs = Jobs(pool)
    assert await DeletedJobs(jobs, queue).end(first.function_id) == 4
    found = [await jobs.get(user, each.id) for each in (first, *waits, other)]
    assert [job.status for job in found if job is not None] == [JobStatus.CANCELLED] * 4 + [JobStatus.QUEUED]
