"""delay and run_at: jobs that wait for their time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import pytest
from redis.asyncio import Redis

from scheduler.due import Due
from scheduler.expire import Expiry
from shared.jobs import JobStatus
from shared.postgres.jobs import Jobs
from shared.postgres.pool import Pool
from shared.queue.message import message_of, now_ms
from shared.queue.queue import CancelledWhere, Enqueued, Queue
from tests.client import Answer, Client
from tests.deployment import Platform
from tests.seeds import accept, message, new_user

ECHO = "def handler(event, context):\n    return event['body']\n"

ONCE_BUSY = """
from containerpub import FunctionError

def handler(event, context):
    if context.attempt == 1:
        raise FunctionError("busy", retry_after_s=3)
    return context.attempt
"""


@pytest.fixture
async def client(shared_platform: Platform) -> AsyncIterator[Client]:
    async with shared_platform.client() as client:
        await client.register()
        assert (await client.deploy("echo", {"main.py": ECHO})).status == 201
        yield client


async def later(client: Client, query: str, **headers: str) -> Answer:
    return await client.call("POST", f"/api/functions/echo/invoke?{query}", json={"body": 7}, headers=headers)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def test_a_delayed_job_runs_when_it_is_due_and_not_before(client: Client) -> None:
    before = datetime.now(UTC)
    answer = await later(client, "delay=1.2")
    assert answer.status == 202
    job = await client.job(answer.json["job_id"])
    assert job["status"] == "scheduled"
    assert timedelta(seconds=1.1) < at(job["run_at"]) - before < timedelta(seconds=2)
    assert [found["id"] for found in (await client.call("GET", "/api/jobs?status=scheduled")).json["items"]] == [
        job["id"]
    ]
    ended = await client.job(job["id"], wait=10)
    assert (ended["status"], ended["result"], ended["attempt"]) == ("succeeded", 7, 1)
    assert timedelta(0) <= at(ended["started_at"]) - at(job["run_at"]) < timedelta(seconds=1)
    # How long it waited for a slot counts from its time, not from its acceptance.
    assert 0 <= ended["timings"]["queue_ms"] < 1000


async def test_a_job_that_started_in_time_does_not_expire_before_its_next_attempt(client: Client) -> None:
    assert (await client.deploy("once", {"main.py": ONCE_BUSY}, settings={"max_attempts": 2})).status == 201
    by = (datetime.now(UTC) + timedelta(seconds=1.5)).isoformat().replace("+00:00", "Z")
    answer = await client.call("POST", f"/api/functions/once/invoke?expires_at={by}", json={})
    job = await client.job(answer.json["job_id"], wait=20)
    assert (job["status"], job["result"], job["reason"]) == ("succeeded", 2, None)


async def test_a_cancel_that_did_not_reach_postgres_can_be_repeated(client: Client, shared_platform: Platform) -> None:
    job = (await later(client, "delay=60")).json["job_id"]
    redis = Redis.from_url(shared_platform.env["REDIS_URL"])
    async with aclosing(Queue(redis)) as queue:
        assert await queue.cancel("invoke", UUID(job)) is CancelledWhere.ABSENT  # and there its API process died
    await redis.aclose()
    answer = await client.call("POST", f"/api/jobs/{job}/cancel")
    assert (answer.status, answer.json["status"]) == (200, "cancelled")


async def test_run_at_is_taken_in_any_zone(client: Client) -> None:
    for utc in (False, True):
        due = datetime.now(timezone(timedelta(hours=5, minutes=30))) + timedelta(seconds=1)
        text = due.astimezone(UTC).isoformat().replace("+00:00", "Z") if utc else due.isoformat()
        job = await client.job((await later(client, f"run_at={text}")).json["job_id"])
        assert (job["status"], at(job["run_at"])) == ("scheduled", due)
        assert (await client.job(job["id"], wait=10))["status"] == "succeeded"


@pytest.mark.parametrize(
    ("written", "means"),
    [
        ("{}t{}z", timedelta()),
        ("{}T{}z", timedelta()),
        ("{} {}Z", timedelta()),
        ("{}t{}-00:00", timedelta()),
        ("{}T{}.250z", timedelta(milliseconds=250)),
    ],
)
async def test_run_at_is_read_as_rfc_3339_has_it(client: Client, written: str, means: timedelta) -> None:
    due = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    text = written.format(due.date(), due.time())
    answer = await later(client, f"run_at={text}")
    assert answer.status == 202, answer
    assert at((await client.job(answer.json["job_id"]))["run_at"]) == due + means


@pytest.mark.parametrize("end", ["60Z", "60z", "60.5Z", "60%2B00:00", "60+00:00"])
async def test_a_leap_second_is_when_the_next_minute_begins(client: Client, end: str) -> None:
    due = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(hours=1)
    answer = await later(client, f"run_at={due.strftime('%Y-%m-%dT%H:%M')}:{end}")
    assert answer.status == 202, answer
    assert at((await client.job(answer.json["job_id"]))["run_at"]) == due + timedelta(minutes=1)
    wrong = await later(client, f"run_at={due.strftime('%Y-%m-%dT%H')}:61:60Z")
    assert wrong.status == 400


@pytest.mark.parametrize("query", ["delay=0", "run_at=2001-01-01T00:00:00Z"])
async def test_a_time_that_has_passed_is_now(client: Client, query: str) -> None:
    answer = await later(client, query)
    assert answer.status == 202
    job = await client.job(answer.json["job_id"], wait=10)
    assert (job["status"], job["run_at"]) == ("succeeded", None)


async def test_a_caller_may_wait_for_it(client: Client) -> None:
    answer = await later(client, "delay=0.3", Prefer="wait=10")
    assert (answer.status, answer.json["result"]) == (200, 7)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("delay=-1", "delay"),
        ("delay=soon", "delay"),
        ("delay=nan", "delay"),
        ("delay=1e9", "delay"),
        ("run_at=tomorrow", "run_at"),
        ("run_at=2999-01-01T00:00:00", "run_at"),
        ("run_at=2999-01-01T00:00:00Z", "run_at"),
        ("run_at=0001-01-01", "run_at"),
        ("run_at=%00", "run_at"),
        ("delay=1&run_at=2999-01-01T00:00:00Z", "run_at"),
    ],
)
async def test_other_times_are_refused(client: Client, query: str, field: str) -> None:
    answer = await later(client, query)
    assert (answer.status, answer.json["code"], answer.json["field"]) == (400, "invalid_parameter", field)


async def test_a_scheduled_job_is_cancelled_and_never_runs(client: Client) -> None:
    """One that is due after it has run, and they would run one at a time: its turn is over."""
    assert (await client.deploy("echo", {"main.py": ECHO}, settings={"concurrency": 1})).status == 201
    job = (await later(client, "delay=0.5")).json["job_id"]
    next_one = (await later(client, "delay=1")).json["job_id"]
    answer = await client.call("POST", f"/api/jobs/{job}/cancel")
    assert (answer.status, answer.json["status"]) == (200, "cancelled")
    assert (await client.job(next_one, wait=20))["status"] == "succeeded"
    assert (await client.job(job))["status"] == "cancelled"
    ran = (await client.call("GET", "/api/functions/echo/invocations")).json["items"]
    assert [record["job_id"] for record in ran] == [next_one]


async def test_the_jobs_of_a_deleted_function_are_cancelled(client: Client) -> None:
    job = (await later(client, "delay=60")).json["job_id"]
    assert (await client.call("DELETE", "/api/functions/echo")).status < 300
    assert (await client.job(job, wait=10))["status"] == "cancelled"


async def test_a_key_stands_for_one_later_job(client: Client) -> None:
    first, again = [await later(client, "delay=0.5", **{"Idempotency-Key": "k"}) for _ in range(2)]
    assert (first.status, again.status) == (202, 202)
    assert first.json == again.json
    other = await later(client, "delay=0.6", **{"Idempotency-Key": "k"})
    assert (other.status, other.json["code"]) == (409, "idempotency_key_reused")
    assert (await client.job(first.json["job_id"], wait=10))["status"] == "succeeded"


async def test_q2_no_more_jobs_are_due_later_than_may_wait(database: str, redis_url: str) -> None:
    env = {"MAX_QUEUED_PER_USER": "3"}
    async with (
        Platform(database_url=database, redis_url=redis_url, engine="process", env=env) as platform,
        platform.client() as flooding,
        platform.client() as other,
    ):
        for client in (flooding, other):
            await client.register()
            assert (await client.deploy("echo", {"main.py": ECHO})).status == 201
        jobs = [(await later(flooding, "delay=600")).json["job_id"] for _ in range(3)]
        for headers in ({}, {"Idempotency-Key": "k"}):
            refused = await later(flooding, "delay=600", **headers)
            assert (refused.status, refused.json["code"]) == (429, "queue_full")
        assert (await later(other, "delay=600")).status == 202
        assert (await flooding.invoke("echo", 1)).status == 200
        assert (await flooding.call("POST", f"/api/jobs/{jobs[0]}/cancel")).status == 200
        assert (await later(flooding, "delay=600")).status == 202


async def test_f9_what_is_due_later_does_not_depend_on_redis(queue: Queue, pool: Pool) -> None:
    jobs, user = Jobs(pool), await new_user(pool)
    soon, late = message(user), message(user)
    now = datetime.now(UTC)
    await accept(pool, [late], run_at=now + timedelta(seconds=60))
    await accept(pool, [soon], run_at=now + timedelta(seconds=30))
    due = Due(queue, jobs)
    assert await due.run_once() == 0
    assert await queue.present("invoke", [soon.id, late.id]) == [False, False]
    await pool.execute("UPDATE jobs SET run_at = now() WHERE id = $1", soon.id)  # its time has come
    assert await due.run_once() == 1
    assert await queue.present("invoke", [soon.id, late.id]) == [True, False]
    # Redis may lose it now: it is an open job like any other.
    assert [job.id for job in await jobs.still_open([soon.id, late.id])] == [soon.id]
    stored = await jobs.get(user, late.id)
    assert stored is not None
    assert stored.status is JobStatus.SCHEDULED
    assert await due.run_once() == 0


async def test_a_job_that_did_not_start_in_time_expires_wherever_it_is(client: Client) -> None:
    busy = "import time\ndef handler(event, context):\n    time.sleep(event['body'])\n    return 'done'\n"
    assert (await client.deploy("busy", {"main.py": busy}, settings={"concurrency": 1, "timeout_s": 20})).status == 201

    async def invoke(seconds: float, **query: str) -> str:
        text = "&".join(f"{name}={value}" for name, value in query.items())
        answer = await client.call("POST", f"/api/functions/busy/invoke?{text}", json={"body": seconds})
        assert answer.status == 202, answer
        job: str = answer.json["job_id"]
        return job

    soon = (datetime.now(UTC) + timedelta(seconds=1.5)).isoformat().replace("+00:00", "Z")
    running = await invoke(6, delay="0", expires_at=soon)
    while (await client.job(running))["status"] != "running":
        await asyncio.sleep(0.02)
    parked = await invoke(0, expires_at=soon)
    expired = await client.job(parked, wait=10)
    assert (expired["status"], expired["reason"], expired["attempt"]) == ("failed", "expired", 0)
    assert timedelta(0) <= at(expired["finished_at"]) - at(soon) < timedelta(seconds=2)
    assert expired["expires_at"] is not None
    query = (datetime.now(UTC) + timedelta(seconds=0.5)).isoformat().replace("+00:00", "Z")
    path = f"/api/functions/busy/invoke?expires_at={query}"
    waited = await client.call("POST", path, json={"body": 0}, headers={"Prefer": "wait=10"})
    assert (waited.status, waited.json["code"]) == (503, "expired")
    assert "not started by its expires_at" in waited.json["detail"]
    assert "Retry-After" not in waited.headers
    ended = await client.job(running, wait=10)
    assert (ended["status"], ended["result"]) == ("succeeded", "done"), "it had started by then"


async def test_jobs_past_their_time_end_whether_the_queue_has_them_or_not(queue: Queue, pool: Pool) -> None:
    jobs = Jobs(pool)
    user = await new_user(pool)
    past = now_ms() - 1000
    queued, stray, due = (message(user, deadline_ms=past) for _ in range(3))
    alive = message(user, deadline_ms=now_ms() + 60_000)
    await accept(pool, [queued, stray, alive])
    await accept(pool, [due], run_at=datetime.now(UTC) + timedelta(seconds=60))
    await queue.enqueue("invoke", [queued, alive])
    assert await Expiry(queue, jobs).run_once() == 3
    assert await Expiry(queue, jobs).run_once() == 0
    found = {job: await jobs.get(user, job) for job in (stray.id, due.id, alive.id)}
    assert [(job.status, job.reason) for job in found.values() if job is not None] == [
        (JobStatus.FAILED, "expired"),
        (JobStatus.FAILED, "expired"),
        (JobStatus.QUEUED, None),
    ]
    # A rebuild of the queue does not forget the time.
    assert await queue.enqueue("invoke", [message_of(found[alive.id])]) == [Enqueued.THERE]  # type: ignore[arg-type]
    assert message_of(found[alive.id]).deadline_ms == alive.deadline_ms  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "query",
    [
        "expires_at=tomorrow",
        "expires_at=2001-01-01T00:00:00Z",
        "expires_at=2999-01-01T00:00:00Z",
        "delay=9&expires_at={}",
    ],
)
async def test_a_wrong_expiry_is_refused_with_its_name(client: Client, query: str) -> None:
    before_due = (datetime.now(UTC) + timedelta(seconds=5)).isoformat().replace("+00:00", "Z")
    answer = await later(client, query.format(before_due))
    assert (answer.status, answer.json["code"], answer.json["field"]) == (400, "invalid_parameter", "expires_at")


async def test_priority_is_kept_with_the_job(client: Client) -> None:
    answer = await later(client, "priority=high&delay=0.2")
    job = await client.job(answer.json["job_id"], wait=10)
    assert (job["status"], job["priority"]) == ("succeeded", "high")
    answer = await later(client, "priority=low")
    assert (answer.status, answer.json["result"]) == (200, 7), "it asks for nothing that cannot be waited for"
    answer = await later(client, "priority=low", Prefer="respond-async")
    assert (await client.job(answer.json["job_id"], wait=5))["priority"] == "low"
    answer = await later(client, "priority=urgent")
    assert (answer.status, answer.json["field"]) == (400, "priority")


async def test_f24_two_schedulers_and_a_time_without_one_run_each_due_job_once(
    database: str, redis_url: str, pool: Pool
) -> None:
    env = {"LEADER_SECONDS": "2", "FUNCTION_MAX_CONCURRENT": "10"}
    async with (
        Platform(database_url=database, redis_url=redis_url, engine="process", env=env) as platform,
        platform.client() as client,
    ):
        platform.start("scheduler-2")
        await client.register()
        assert (await client.deploy("echo", {"main.py": ECHO})).status == 201
        jobs = [(await later(client, f"delay={1 + number / 10}")).json["job_id"] for number in range(80)]

        async def due() -> int:
            return int(await pool.fetchval("SELECT count(*) FROM jobs WHERE status = 'scheduled' AND run_at < now()"))

        await client.job(jobs[0], wait=10)
        platform.kill("scheduler")  # it leads
        async with asyncio.timeout(20):
            while "leading" not in platform.log("scheduler-2").read_text():
                await asyncio.sleep(0.05)
            while await due() > 1:
                await asyncio.sleep(0.05)
        platform.kill("scheduler-2")
        async with asyncio.timeout(20):
            while await due() < 10:
                await asyncio.sleep(0.05)
        platform.start("scheduler-3")
        for job in jobs:
            ended = await client.job(job, wait=20)
            assert (ended["status"], ended["result"], ended["attempt"]) == ("succeeded", 7, 1), platform.logs()
        runs = await pool.fetch("SELECT count(*) AS runs FROM invocations GROUP BY job_id")
        assert [row["runs"] for row in runs] == [1] * len(jobs)
