"""Conservation, as tests ask for it: at a moment when nothing moves, or soon."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import asyncpg
from redis.asyncio import Redis

from shared.queue.conservation import Conservation
from shared.queue.queue import Queue


async def complaints(redis: Redis, database: asyncpg.Connection | asyncpg.Pool) -> list[str]:
    """What is wrong at this moment; meaningful while nothing moves, also on a queue that is closed."""
    async with aclosing(Queue(redis)) as queue:
        balance = await Conservation(redis, queue, database).look()
    return [str(one) for one in sorted(balance.findings)]


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
