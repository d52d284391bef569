"""Functions that follow others: with the end of a job, once, on their own queue's way, no deeper than eight."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pytest
from redis.asyncio import Redis

from scheduler.reconcile import Reconciler
from shared.artifacts import LocalStore
from shared.chains import envelope, reference, referred
from shared.jobs import Job, JobStatus
from shared.payload_store import PayloadStore
from shared.postgres.completion_hooks import MAX_CHAIN_DEPTH
from shared.postgres.jobs import JobFilter, Jobs
from shared.postgres.pool import Pool
from shared.queue.drain import Drain
from shared.queue.message import JobMessage
from shared.queue.queue import RECORDS, Queue
from shared.sealing import Keyring, Part, new_key
from tests.client import Client
from tests.conservation import complaints
from tests.deployment import Platform
from tests.integration.test_callbacks import deployed
from tests.seeds import accept, message, new_user, record


@pytest.fixture
def jobs(pool: Pool) -> Jobs:
    return Jobs(pool)


@pytest.fixture
async def user(pool: Pool) -> UUID:
    return await new_user(pool)


@pytest.fixture
async def payload_store(tmp_path: Path) -> AsyncIterator[PayloadStore]:
    """With a key, and a store for whatever is longer than 1,000 bytes."""
    store = LocalStore(tmp_path / "store", timeout_s=10)
    await store.open()
    yield PayloadStore(Keyring.parse(new_key()), store, inline_bytes=1000)
    await store.close()


async def listed(jobs: Jobs, user: UUID) -> list[Job]:
    found, _ = await jobs.list(user, JobFilter(), limit=100)
    return [*reversed(found)]


async def event_of(jobs: Jobs, following: JobMessage, payload_store: PayloadStore) -> bytes:
    """What the worker makes of such a job's payload."""
    before = referred(following.payload)
    assert before is not None
    end = await jobs.end_of(before)
    assert end is not None
    return await envelope(end, payload_store)


async def test_function_follows_another_once_and_gets_what_that_ended_with(
    pool: Pool, jobs: Jobs, user: UUID, payload_store: PayloadStore
) -> None:
    good, _ = await deployed(pool, user, "good", concurrency=3)
    bad, _ = await deployed(pool, user, "bad")
    function, version = await deployed(pool, user, "first", on_success="good", on_failure="bad")
    ends: list[tuple[dict[str, Any], UUID, dict[str, Any]]] = [
        ({"result": b'{"n":1}'}, good, {"status": "succeeded", "reason": None, "result": {"n": 1}}),
        (
            {"status": JobStatus.FAILED, "error": b'{"message":"no"}'},
            bad,
            {"status": "failed", "reason": "handler_error", "error": {"message": "no"}},
        ),
    ]
    for fields, next_function, told in ends:
        job = message(user, function=function, version_id=version)
        for durable in (False, True):
            if durable:
                job = message(user, function=function, version_id=version)
                await accept(pool, [job])
            (following,) = await jobs.settle([record(job, **fields)])
            assert await jobs.settle([record(job, **fields)]) == []  # delivered again
            assert (following.function_id, following.user_id) == (next_function, user)
            assert following.payload == reference(job.id)
            event = orjson.loads(await event_of(jobs, following, payload_store))
            assert event["body"] == {"job_id": str(job.id), "function": "first"} | told
            assert event["method"] == "POST"
            found = await jobs.get(user, following.id)
            assert found is not None
            assert (found.chained_from, found.status, found.payload) == (job.id, "queued", following.payload)
    assert len(await listed(jobs, user)) == 8


@pytest.mark.parametrize("size", [10, 5000])
async def test_what_is_sealed_or_large_follows_too(
    pool: Pool, jobs: Jobs, user: UUID, payload_store: PayloadStore, size: int
) -> None:
    await deployed(pool, user, "next")
    function, version = await deployed(pool, user, "first", on_success="next")
    job = message(user, function=function, version_id=version)
    result = orjson.dumps("x" * size)
    (following,) = await jobs.settle([record(job, result=await payload_store.put(result, job.id, Part.RESULT))])
    assert orjson.loads(await event_of(jobs, following, payload_store))["body"]["result"] == "x" * size
    stranger = PayloadStore(Keyring(), LocalStore(Path("nowhere"), timeout_s=1), inline_bytes=1000)
    told = orjson.loads(await event_of(jobs, following, stranger))["body"]
    assert (told["result"], told["missing"]) == (None, "unreadable")


async def test_nothing_follows_a_cancelled_job_or_another_users_or_one_that_goes_on(
    pool: Pool, jobs: Jobs, user: UUID
) -> None:
    stranger = await new_user(pool)
    await deployed(pool, stranger, "theirs")
    function, version = await deployed(pool, user, "first", on_success="theirs", on_failure="theirs")
    job = message(user, function=function, version_id=version)
    await accept(pool, [job])
    assert await jobs.settle([record(job, status=JobStatus.QUEUED)]) == []
    cancelled = message(user, function=function, version_id=version)
    await accept(pool, [cancelled])
    assert await jobs.cancel(cancelled.id)
    assert await jobs.settle([record(job, epoch="1-2")]) == []
    assert await jobs.list(stranger, JobFilter(), limit=10) == ([], False)
    found = await jobs.get(user, job.id)
    assert found is not None
    assert found.chain_refused == "function_not_found"
    assert len(await listed(jobs, user)) == 2


async def test_function_without_a_version_does_not_follow_and_the_job_says_so(
    pool: Pool, jobs: Jobs, user: UUID
) -> None:
    await deployed(pool, user, "unbuilt", live=False)
    function, version = await deployed(pool, user, "first", on_success="unbuilt")
    job = message(user, function=function, version_id=version)
    assert await jobs.settle([record(job)]) == []
    found = await jobs.get(user, job.id)
    assert found is not None
    assert found.chain_refused == "no_active_version"


async def test_chain_that_leads_to_itself_ends_at_its_greatest_depth(pool: Pool, jobs: Jobs, user: UUID) -> None:
    function, version = await deployed(pool, user, "loop", on_success="loop")
    job: JobMessage | None = message(user, function=function, version_id=version)
    length = 0
    while job is not None:
        length += 1
        following = await jobs.settle([record(job)])
        job = following[0] if following else None
    assert length == 1 + MAX_CHAIN_DEPTH == 9
    found = await listed(jobs, user)
    assert [each.chain_refused for each in found] == [None] * 8 + ["chain_too_deep"]
    assert [each.chained_from for each in found] == [None, *(each.id for each in found[:-1])]


async def test_following_job_is_on_the_queue_right_after_the_end(
    pool: Pool, jobs: Jobs, user: UUID, queue: Queue, redis: Redis
) -> None:
    await deployed(pool, user, "second")
    function, version = await deployed(pool, user, "first", on_success="second")
    job = message(user, function=function, version_id=version)
    await redis.xadd(RECORDS, {"r": record(job).encode()})
    drain = Drain(redis, jobs, consumer="one", queue=queue)
    while not await drain.run_once():
        pass
    (following,) = [each for each in await listed(jobs, user) if each.chained_from == job.id]
    assert await queue.present("invoke", [following.id]) == [True]


async def test_following_job_that_nobody_put_on_the_queue_is_put_there_by_the_reconciler(
    pool: Pool, jobs: Jobs, user: UUID, queue: Queue, redis: Redis
) -> None:
    await deployed(pool, user, "second")
    function, version = await deployed(pool, user, "first", on_failure="second")
    job = message(user, function=function, version_id=version)
    await accept(pool, [job])
    assert await jobs.expire(job.id)
    (following,) = [each for each in await listed(jobs, user) if each.chained_from == job.id]
    drain = Drain(redis, jobs, consumer="one")
    assert await Reconciler(queue, jobs, drain, age_s=-1).run_once() == 1
    assert await queue.present("invoke", [following.id]) == [True]
    connection = await pool.acquire()
    assert await complaints(redis, connection) == []
    await pool.release(connection)


async def test_platform_runs_what_follows_waited_for_and_accepted_calls(shared_platform: Platform) -> None:
    async with shared_platform.client() as client:
        await client.register()
        await _chain(client)


async def _chain(client: Client) -> None:
    echo = {"main.py": "def handler(event, context):\n    return event['body']\n"}
    first = {"main.py": "def handler(event, context):\n    return 10 // event['body']\n"}
    await client.deploy("good", echo)
    await client.deploy("bad", echo)
    await client.deploy("first", first, settings={"on_success": "good", "on_failure": "bad"})
    for body, name, prefer in (
        (2, "good", None),
        (0, "bad", None),
        (5, "good", "wait=10"),
        (0, "bad", "respond-async"),
    ):
        job = (await client.invoke("first", body, prefer=prefer)).json["job_id"]
        await client.job(job, wait=10)
        page = (await client.call("GET", f"/api/jobs?function={name}")).json["items"]
        (following,) = [each for each in page if each["chained_from"] == job]
        ended = await client.job(following["id"], wait=10)
        assert ended["status"] == "succeeded"
        told = ended["result"]
        assert (told["job_id"], told["function"]) == (job, "first")
        assert told["status"] == ("succeeded" if name == "good" else "failed")
    refused = await client.deploy("other", echo, settings={"on_success": "Not A Name"})
    assert refused.status == 422
    assert refused.json["field"] == "on_success"
