"""``containerpub rotate-keys``: seal everything with the first of ``ENCRYPTION_KEYS``, so that others can go."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

from redis.asyncio import Redis

from shared.errors import ContainerPubError, Misconfigured
from shared.postgres.jobs import Jobs
from shared.postgres.migrate import check_schema
from shared.postgres.pool import close_pool, open_pool, postgres_errors
from shared.postgres.rotation import Rotated, Rotation
from shared.queue.connection import connect, redis_errors
from shared.queue.drain import Drain
from shared.queue.message import NO_REPLY, JobMessage, UnreadableMessage
from shared.queue.queue import Queue
from shared.sealing import Keyring
from shared.settings import Settings, load

PATIENCE_S = 30.0
_LOOK_S = 0.2
_MOST_NAMED = 20


def run_rotate_keys() -> int:
    """0 when the first key has sealed everything in Postgres, and no text that another key sealed is on its way
    there."""
    try:
        settings = load(os.environ, dotenv=Path(".env"))
        if not settings.keyring.seals:
            raise Misconfigured("ENCRYPTION_KEYS is empty: there is no key to seal with.")
        rotated, on_its_way = asyncio.run(_rotate(settings))
    except ContainerPubError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    sys.stdout.write(
        f"sealed anew: {rotated.jobs} jobs, {rotated.invocations} invocations, {rotated.logs} log entries, "
        f"{rotated.secrets} webhook secrets\n"
    )
    for job, part, why in rotated.unreadable[:_MOST_NAMED]:
        sys.stderr.write(f"left as it is: {part} of {job}. {why}\n")
    if rotated.unreadable:
        sys.stderr.write(f"{len(rotated.unreadable)} texts cannot be opened; see docs/how-to/rotate-keys.md\n")
    if on_its_way:
        sys.stderr.write("calls from before are still on their way: run this again before you take a key out\n")
    return 1 if rotated.unreadable or on_its_way else 0


async def _rotate(settings: Settings) -> tuple[Rotated, bool]:
    """The rows that were sealed anew, and whether a text that another key sealed may still arrive in Postgres."""
    async with AsyncExitStack() as stack:
        pool = await open_pool(
            settings.database_url.get_secret_value(),
            size=2,
            timeout_s=max(60.0, settings.dependency_timeout_seconds),
            name="rotate-keys",
        )
        stack.push_async_callback(close_pool, pool)
        with postgres_errors():
            async with pool.acquire() as connection:
                await check_schema(connection)
        redis = connect(settings.redis_url.get_secret_value(), timeout_s=settings.dependency_timeout_seconds)
        stack.push_async_callback(redis.aclose)
        queue = await stack.enter_async_context(aclosing(Queue(redis)))
        # Wait for calls and records that processes with another first key sent: both end up in Postgres.
        calls = await _calls(redis, settings.keyring)
        settled = await _until(lambda: _gone(queue, calls))
        drain = Drain(redis, Jobs(pool), consumer="rotate-keys")
        last = await drain.last()
        settled = await _until(lambda: drain.written_up_to(last)) and settled
        return await Rotation(pool, settings.keyring).run_once(), not settled


async def _calls(redis: Redis, keyring: Keyring) -> list[JobMessage]:
    """Synchronous calls on the queue that the first key did not seal. A durable job's payload is read from Postgres if
    its key is gone."""
    found = []
    with redis_errors():
        async for job, raw in redis.hscan_iter("cp:invoke:messages", count=100):
            try:
                message = JobMessage.decode(job.decode(), raw)
            except UnreadableMessage:
                continue
            if message.reply != NO_REPLY and not message.payload.startswith(keyring.first_head):
                found.append(message)
    return found


async def _gone(queue: Queue, calls: list[JobMessage]) -> bool:
    return not any(await queue.present("invoke", [call.id for call in calls]))


async def _until(holds: Callable[[], Awaitable[bool]]) -> bool:
    """Whether ``holds`` becomes true within the patience."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while not await holds():
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(_LOOK_S)
    return True
