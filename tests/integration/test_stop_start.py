"""Stopped functions: no new invokes, jobs that wait for the start, whatever becomes of Redis meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from scheduler.rebuild import Rebuild
from scheduler.stopped import StoppedFunctions
from shared.ids import new_id, short
from shared.postgres.functions import Functions
from shared.postgres.jobs import Jobs
from shared.postgres.pool import Pool
from shared.queue.message import JobMessage
from shared.queue.queue import Claim, Queue, Verb
from tests.client import Client
from tests.conservation import complaints
from tests.deployment import Platform
from tests.seeds import accept, message, new_user, settle

NAP = """
import asyncio

async def handler(event, context):
    await asyncio.sleep(event["body"])
    return "slept"
"""


async def claim(queue: Queue, want: int = 10) -> list[Claim]:
    state = await queue.generation()
    assert state is not None
    _, claims = await queue.exchange("invoke", "worker-a", generation=state[0], want=want)
    return claims


async def end(queue: Queue, claims: list[Claim], verb: Verb = Verb.FINAL) -> None:
    state = await queue.generation()
    assert state is not None
    settles = [settle(one, verb) for one in claims]
    await queue.exchange("invoke", "worker-a", generation=state[0], want=0, settles=settles)


def ids(jobs: list[JobMessage] | list[Claim]) -> list[str]:
    return [str(job.id) for job in jobs]


@pytest.fixture
async def function(pool: Pool) -> tuple[UUID, UUID]:
    """A user and a function of theirs."""
    user, function = await new_user(pool), new_id()
    await pool.execute("INSERT INTO functions (id, user_id, name) VALUES ($1, $2, 'f')", function, user)
    return user, function


async def balanced(redis: Redis, pool: Pool) -> None:
    """The queue's own books; the jobs of these tests are not all in Postgres."""
    assert [line for line in await complaints(redis, pool) if "not open in Postgres" not in line] == []


@pytest.mark.parametrize("limit", [0, 2])
async def test_jobs_of_a_stopped_function_wait_and_run_after_its_start_in_their_order(
    queue: Queue, redis: Redis, pool: Pool, limit: int
) -> None:
    user, function = uuid4(), uuid4()
    before = [message(user, function=function, concurrency=limit) for _ in range(3)]
    await queue.enqueue("invoke", before)
    await queue.stop_function(function)
    after = [message(user, function=function, concurrency=limit) for _ in range(3)]
    await queue.enqueue("invoke", after)
    assert await claim(queue) == []
    await balanced(redis, pool)
    assert await queue.start_function(function)
    ran: list[str] = []
    while claims := await claim(queue):
        assert limit == 0 or len(claims) <= limit
        ran += ids(claims)
        await end(queue, claims)
        await balanced(redis, pool)
    assert ran == sorted(ids(before + after))  # an id begins with its time


async def test_what_runs_goes_on_and_what_is_given_back_waits(queue: Queue, redis: Redis, pool: Pool) -> None:
    user, function = uuid4(), uuid4()
    jobs = [message(user, function=function, concurrency=5) for _ in range(2)]
    await queue.enqueue("invoke", jobs)
    claims = await claim(queue)
    await queue.stop_function(function)
    await end(queue, claims[:1])
    await end(queue, claims[1:], Verb.HAND_BACK)
    assert await claim(queue) == []
    await balanced(redis, pool)
    assert await queue.start_function(function)
    assert ids(await claim(queue)) == [claims[1].id]


async def test_a_stopped_function_holds_up_no_other_and_its_jobs_can_be_cancelled(queue: Queue) -> None:
    user, stopped = uuid4(), uuid4()
    waiting = [message(user, function=stopped) for _ in range(50)]
    await queue.enqueue("invoke", waiting)
    await queue.stop_function(stopped)
    other = message(user)
    await queue.enqueue("invoke", [other])
    assert ids(await claim(queue, 1)) == [str(other.id)]
    assert (await queue.cancel("invoke", waiting[0].id)).value == "queued"
    assert (await queue.cancel("invoke", waiting[-1].id)).value == "queued"


async def test_many_jobs_become_runnable_in_steps(queue: Queue, redis: Redis, pool: Pool) -> None:
    user, function = uuid4(), uuid4()
    await queue.stop_function(function)
    for _ in range(3):
        await queue.enqueue("invoke", [message(user, function=function) for _ in range(400)])
    assert not await queue.start_function(function)
    assert await queue.stopped_functions() == (set(), {function})
    await StoppedFunctions(queue, Functions(pool)).run_once()
    assert await queue.stopped_functions() == (set(), set())
    assert await redis.zcard(f"cp:invoke:user:{short(user)}") == 1200


async def test_the_scheduler_tells_a_queue_that_was_not_told(
    queue: Queue, pool: Pool, function: tuple[UUID, UUID]
) -> None:
    user, which = function
    functions = Functions(pool)
    stopped = StoppedFunctions(queue, functions)
    await functions.set_status(which, "inactive")
    assert await stopped.run_once() == 1
    await queue.enqueue("invoke", [job := message(user, function=which)])
    assert await claim(queue) == []
    await functions.set_status(which, "active")
    assert await stopped.run_once() == 1
    assert await stopped.run_once() == 0
    assert ids(await claim(queue)) == [str(job.id)]


async def test_a_queue_that_is_rebuilt_knows_stopped_functions(
    queue: Queue, redis: Redis, pool: Pool, function: tuple[UUID, UUID]
) -> None:
    user, which = function
    jobs = Jobs(pool)
    await accept(pool, [job := message(user, function=which)])
    await Functions(pool).set_status(which, "inactive")
    await redis.flushall()
    await Rebuild(redis, queue, jobs, pool, grace_s=0).run_once()
    assert await claim(queue) == []
    assert await complaints(redis, pool) == []
    assert await queue.start_function(which)
    assert ids(await claim(queue)) == [str(job.id)]


@pytest.fixture
async def client(shared_platform: Platform) -> AsyncIterator[Client]:
    async with shared_platform.client() as client:
        await client.register()
        settings = {"concurrency": 1, "timeout_s": 60}
        assert (await client.deploy("nap", {"main.py": NAP}, settings=settings)).status == 201
        yield client


async def test_a_function_is_stopped_and_started_over_http(client: Client) -> None:
    running = (await client.invoke("nap", 1.5, prefer="respond-async")).json["job_id"]
    waiting = (await client.invoke("nap", 0, prefer="respond-async")).json["job_id"]
    async with asyncio.timeout(20):
        while (await client.job(running))["status"] != "running":
            await asyncio.sleep(0.05)
    stopped = await client.call("POST", "/api/functions/nap/stop")
    assert (stopped.status, stopped.json["status"]) == (200, "inactive")
    assert stopped.json == (await client.call("GET", "/api/functions/nap")).json
    assert (await client.call("POST", "/api/functions/nap/stop")).status == 200
    for prefer in ("respond-async", None):
        refused = await client.invoke("nap", 0, prefer=prefer)
        assert (refused.status, refused.json["code"]) == (409, "function_stopped")
    assert (await client.job(running, wait=20))["status"] == "succeeded"
    assert (await client.job(waiting, wait=1))["status"] == "queued"
    assert (await client.call("GET", "/api/functions/nap")).json["status"] == "inactive"
    started = await client.call("POST", "/api/functions/nap/start")
    assert (started.status, started.json["status"]) == (200, "active")
    assert (await client.job(waiting, wait=20))["status"] == "succeeded"
    assert (await client.invoke("nap", 0)).json["result"] == "slept"
