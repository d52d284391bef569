"""Opening the queue: at first, and again whenever Redis was restarted or emptied.

The queue in Redis is a copy; Postgres has every accepted job. The leader opens a new generation in this order. If it
dies half-way, the next leader starts over. If it only slept meanwhile, it finds the other's generation and stops:

1. It sets the new generation, closed, and unloads the scripts, so that no process can take a step.
2. It deletes the rest of the old copy, but not the stream of records: their attempts have ended.
3. It loads the scripts again: from now on processes can settle and register attempts, but not claim jobs.
4. It waits while workers register the attempts that they still run, and writes the records to Postgres.
5. It puts every open job of Postgres on the queue, parks those of stopped functions, and opens claims.
"""

from __future__ import annotations

import asyncio
import logging

import redis.exceptions
from redis.asyncio import Redis

from shared.errors import Unavailable
from shared.ids import new_id
from shared.postgres.functions import Functions
from shared.postgres.jobs import LOWEST_ID, Jobs
from shared.postgres.pool import Pool, postgres_errors
from shared.postgres.queries import queries
from shared.queue.connection import redis_errors
from shared.queue.drain import Drain
from shared.queue.message import message_of
from shared.queue.queue import GENERATION, OPENED_CHANNEL, QUEUES, REBUILT_CHANNEL, WORKERS, Queue
from shared.queue.scripts import LAYOUT, SCRIPTS, USABLE

log = logging.getLogger(__name__)

_SQL = queries("leases")
_PAGE = 1000
_DRAIN_BOUND_S = 30.0
_ANOTHER = "another leader is rebuilding the queue"

_BEGIN = """
local set = redis.call('HGET', KEYS[1], 'gen')
if set and tonumber(set) >= tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'gen', ARGV[1], 'open', '0', 'run', ARGV[2], 'layout', ARGV[3])
return 1
"""
_REMOVE = """
if redis.call('HGET', KEYS[1], 'gen') ~= ARGV[1] then return 0 end
for i = 2, #KEYS do redis.call('UNLINK', KEYS[i]) end
return 1
"""
_OPEN = """
if redis.call('HGET', KEYS[1], 'gen') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'open', '1')
return 1
"""


class Rebuild:
    """:param grace_s: time that live workers have to register their running attempts."""

    def __init__(self, redis: Redis, queue: Queue, jobs: Jobs, pool: Pool, *, grace_s: float = 1.0) -> None:
        self._redis = redis
        self._queue = queue
        self._jobs = jobs
        self._pool = pool
        self._grace_s = grace_s

    async def needed(self) -> bool:
        """Whether the copy in Redis is missing, half made, older than Redis's last start, or in another release's
        layout. If it is none of these and only scripts are unknown, as after an upgrade, loads them."""
        with redis_errors():
            known = await self._redis.script_exists(*(script.sha for script in SCRIPTS))
            is_open, run, layout = await self._redis.hmget(GENERATION, ["open", "run", "layout"])  # type: ignore[misc]
        if is_open != b"1" or run != (await self._run_id()).encode() or layout != LAYOUT.encode():
            return True
        with redis_errors():
            for script, there in zip(SCRIPTS, known, strict=True):
                if not there and await self._redis.eval(script.source, 0) != USABLE:  # type: ignore[misc]
                    return True
        return False

    async def keep_open(self) -> int:
        """Open a new generation if that is needed; how many jobs were put on the queue."""
        return await self.run_once() if await self.needed() else 0

    async def run_once(self) -> int:
        """Open a new generation; how many jobs were put on the queue. Raises ``Unavailable``; run it again then."""
        state = await self._queue.generation()
        with postgres_errors():
            generation = str(await self._pool.fetchval(_SQL["next_generation"], int(state[0]) if state else 0))
        log.info("rebuilding the queue", extra={"generation": generation})
        with redis_errors():
            await self._begin(generation)
            await self._clear(generation)
            for script in SCRIPTS:
                await self._redis.eval(script.source, 0)  # type: ignore[misc]
            await self._redis.publish(REBUILT_CHANNEL, generation)
        await asyncio.sleep(self._grace_s)
        await self._write_records()
        for function in await Functions(self._pool).stopped():
            await self._queue.stop_function(function)
        count = await self._fill()
        with redis_errors():
            await self._guarded(_OPEN, generation)
            await self._redis.publish(OPENED_CHANNEL, generation)
        await self._wake_all()
        log.info("the queue is open", extra={"generation": generation, "jobs": count})
        return count

    async def _run_id(self) -> str:
        """The id of this run of Redis: each start of Redis has another one."""
        with redis_errors():
            return str((await self._redis.info("server"))["run_id"])

    async def _begin(self, generation: str) -> None:
        """Close the queue and unload the scripts in one transaction, so that no process takes a step in between."""
        pipe = self._redis.pipeline(transaction=True)
        pipe.eval(_BEGIN, 1, GENERATION, generation, await self._run_id(), LAYOUT)
        pipe.script_flush()
        begun, _ = await pipe.execute()
        if not begun:
            raise Unavailable(_ANOTHER)

    async def _guarded(self, script: str, generation: str, *keys: bytes) -> None:
        """Run ``script`` if ``generation`` is still the newest. :raises Unavailable: if another leader set a newer
        one."""
        if not await self._redis.eval(script, 1 + len(keys), GENERATION, *keys, generation):  # type: ignore[arg-type, misc]
            raise Unavailable(_ANOTHER)

    async def _clear(self, generation: str) -> None:
        for queue in QUEUES:
            batch = []
            async for key in self._redis.scan_iter(match=f"cp:{queue}:*", count=1000):
                batch.append(key)
                if len(batch) == _PAGE:
                    await self._guarded(_REMOVE, generation, *batch)
                    batch = []
            if batch:
                await self._guarded(_REMOVE, generation, *batch)
        # The counters start anew with each generation; workers beat again as they join it.
        await self._guarded(_REMOVE, generation, b"cp:epoch", b"cp:turn", WORKERS.encode())

    async def _write_records(self) -> None:
        """Write all records to Postgres, so that no job that ended is still open there and enqueued again."""
        drain = Drain(self._redis, self._jobs, consumer=f"rebuild-{new_id().hex[-8:]}")
        loop = asyncio.get_running_loop()
        least, give_up_at = await drain.backlog(), loop.time() + _DRAIN_BOUND_S
        try:
            while backlog := await drain.backlog():
                if backlog < least:
                    least, give_up_at = backlog, loop.time() + _DRAIN_BOUND_S
                if loop.time() > give_up_at:
                    raise Unavailable(f"{backlog} records cannot be written")
                if not await drain.run_once() and not await drain.take_over():
                    await asyncio.sleep(0.1)  # another consumer has read them and is writing them
        finally:
            await drain.leave()

    async def _fill(self) -> int:
        after, count = LOWEST_ID, 0
        while page := await self._jobs.open_jobs(after=after, limit=_PAGE):
            for name in QUEUES:
                messages = [message for message in map(message_of, page) if message.queue == name]
                if messages:
                    await self._queue.enqueue(name, messages)
            after, count = page[-1].id, count + len(page)
        return count

    async def _wake_all(self) -> None:
        with redis_errors():
            try:
                for worker in await self._queue.beats():
                    for name in QUEUES:
                        await self._redis.publish(f"cp:worker:{worker}", f"wake {name}")
            except redis.exceptions.ResponseError as error:
                log.warning("workers were not woken", extra={"error": str(error)})
