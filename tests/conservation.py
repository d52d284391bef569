"""Conservation: every open job of Postgres is in exactly one place of the queue, and the queue holds nothing else."""

from __future__ import annotations

import asyncio
from collections import Counter

import asyncpg
from redis.asyncio import Redis

from shared.queue.message import JobMessage
from shared.queue.queue import QUEUES


async def complaints(redis: Redis, connection: asyncpg.Connection) -> list[str]:
    """What is wrong at this moment; meaningful while nothing moves."""
    found: list[str] = []
    rows = await connection.fetch("SELECT id, kind FROM jobs WHERE status IN ('queued', 'running')")
    for queue in QUEUES:
        durable = {str(row["id"]) for row in rows if (row["kind"] == "invoke") == (queue == "invoke")}
        messages = {
            job.decode(): JobMessage.decode(job.decode(), raw)
            for job, raw in (await redis.hgetall(f"cp:{queue}:messages")).items()  # type: ignore[misc]
        }
        running = {job.decode() for job in await redis.hkeys(f"cp:{queue}:running")}  # type: ignore[misc]
        places = Counter(running)
        waiting: set[str] = set()
        for kind in ("user", "parked"):
            async for key in redis.scan_iter(match=f"cp:{queue}:{kind}:*"):
                members = [member.decode() for member in await redis.zrange(key, 0, -1)]
                places.update(members)
                if kind == "user":
                    waiting.update(members)
        found += [f"{job} is in {count} places" for job, count in places.items() if count > 1]
        found += [f"{job} is on the queue without a message" for job in places.keys() - messages.keys()]
        found += [f"{job} has a message and no place" for job in messages.keys() - places.keys()]
        found += [f"{job} is open and not on the queue" for job in durable - messages.keys()]
        found += [
            f"{job} is on the queue and not open in Postgres"
            for job in messages.keys() - durable
            if messages[job].reply == "-"
        ]
        found += await _sets(redis, queue, messages, running, waiting)
        found += await _lines(redis, queue)
    return found


async def _lines(redis: Redis, queue: str) -> list[str]:
    """Nobody who has a job that could run and runs nothing may stand in no line, or in that of those who do."""
    newcomers = {user.decode() for user in await redis.zrange(f"cp:{queue}:newcomers", 0, -1)}
    ring = {user.decode() for user in await redis.zrange(f"cp:{queue}:ring", 0, -1)}
    found = [f"user {user} stands in both lines" for user in newcomers & ring]
    async for key in redis.scan_iter(match=f"cp:{queue}:user:*"):
        user = key.decode().rpartition(":")[2]
        if not await redis.exists(f"cp:{queue}:using:{user}") and user not in newcomers:
            found.append(f"user {user} has jobs, runs nothing and does not stand in line for that")
    return found


async def _sets(
    redis: Redis, queue: str, messages: dict[str, JobMessage], running: set[str], waiting: set[str]
) -> list[str]:
    """What limits are counted by must name the very jobs that they count."""
    found = []
    using: set[str] = set()
    async for key in redis.scan_iter(match=f"cp:{queue}:using:*"):
        using.update(member.decode() for member in await redis.smembers(key))  # type: ignore[misc]
    found += [f"{job} counts against its user and does not run" for job in using - running]
    found += [f"{job} runs and does not count against its user" for job in running - using]
    admitted: set[str] = set()
    async for key in redis.scan_iter(match=f"cp:{queue}:admitted:*"):
        admitted.update(member.decode() for member in await redis.smembers(key))  # type: ignore[misc]
    limited = {job for job in running | waiting if job in messages and messages[job].concurrency > 0}
    found += [f"{job} counts against its function and is not admitted" for job in admitted - limited]
    found += [f"{job} is admitted and does not count against its function" for job in limited - admitted]
    return found


async def assert_conserved(redis: Redis, database_url: str, *, within_s: float = 10) -> None:
    """Fail unless the books balance within ``within_s`` seconds: records and claims on their way need a moment."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    connection = await asyncpg.connect(database_url)
    try:
        while found := await complaints(redis, connection):
            assert loop.time() < deadline, "\n".join(found)
            await asyncio.sleep(0.1)
    finally:
        await connection.close()
