"""Writes records from the Redis stream to Postgres: in batches, at least once, each with one effect."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

import redis.exceptions
from redis.asyncio import Redis

from shared.errors import Unavailable
from shared.jobs import FINAL, JobStatus, Reason
from shared.loop import Loop
from shared.postgres.jobs import Jobs
from shared.postgres.pool import is_refusal
from shared.queue.connection import redis_errors
from shared.queue.message import JobMessage
from shared.queue.queue import FINAL_CHANNEL, RECORDS, RECORDS_GROUP, WORKERS, Queue
from shared.queue.records import Record
from shared.queue.scripts import QueueClosed

log = logging.getLogger(__name__)

BATCH = 500
BLOCK_MS = 1000
GATHER_S = 0.01
"""How long a drain waits after a batch that was not full, so that more records gather: a transaction for each record
would cost each call of a single client a third of its time. The drain multiplies it by the number of workers, so that
all of them together read as often as one: else each further worker would make all batches smaller, until Postgres did
nothing but commit them."""
RETRY_S = 0.5
STRANDED_MS = 5000
LOOK_FOR_STRANDED_S = 1.0
REJECTED = "cp:records:rejected"

Entry = tuple[bytes, bytes]


class Drain:
    """One consumer of the stream. Every worker has one; the entries of one that died are taken over by the others.

    The drain acknowledges an entry only after its batch was committed, and notifies waiters only after that.

    :param queue: takes the jobs that follow ended ones; without it the reconciler puts them on the queue.
    """

    def __init__(self, redis: Redis, jobs: Jobs, *, consumer: str, queue: Queue | None = None) -> None:
        self._redis = redis
        self._queue = queue
        self._jobs = jobs
        self._consumer = consumer
        self.written = 0
        self._behind = False  # something was read and could not be written
        self._consumers = 1
        self._look_for_stranded = 0.0  # at the first step

    @property
    def loop(self) -> Loop:
        return Loop(name="records", run_once=self.step, interval_s=0, retry_s=RETRY_S)

    async def step(self) -> int:
        """Wait for records and write them; now and then also those that a dead consumer had read. How many arrived."""
        written = await self.run_once(block_ms=BLOCK_MS)
        if 0 < written < BATCH:
            await asyncio.sleep(GATHER_S * self._consumers)
        now = asyncio.get_running_loop().time()
        if now >= self._look_for_stranded:
            self._look_for_stranded = now + LOOK_FOR_STRANDED_S
            await self._count_consumers()
            await self.take_over()
        return written

    async def run_once(self, *, block_ms: int | None = None) -> int:
        """Write what has arrived; how many records. Raises :class:`Unavailable`, with nothing lost.

        After such a failure the next call writes first the records that this one had read.
        """
        behind = self._behind
        try:
            with redis_errors():
                answer = await self._redis.xreadgroup(
                    RECORDS_GROUP,
                    self._consumer,
                    {RECORDS: "0" if behind else ">"},
                    count=BATCH,
                    block=None if behind else block_ms,
                )
        except redis.exceptions.ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            await self._make_group()
            return 0
        entries = [(entry, fields[b"r"]) for entry, fields in answer[0][1] if fields] if answer else []
        self._behind = bool(entries)
        written = await self._write(entries)
        self._behind = behind and bool(entries)
        return written

    async def take_over(self) -> int:
        """Write records that a dead consumer read and never acknowledged; how many."""
        try:
            with redis_errors():
                answer = await self._redis.xautoclaim(
                    RECORDS, RECORDS_GROUP, self._consumer, min_idle_time=STRANDED_MS, count=BATCH
                )
        except redis.exceptions.ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            return 0
        return await self._write([(entry, fields[b"r"]) for entry, fields in answer[1] if fields])

    async def backlog(self) -> int:
        """Records that are not in Postgres yet."""
        with redis_errors():
            return int(await self._redis.xlen(RECORDS))

    async def last(self) -> bytes | None:
        """The newest record that is not in Postgres yet; None if there is none."""
        with redis_errors():
            newest = await self._redis.xrevrange(RECORDS, count=1)
        return newest[0][0] if newest else None

    async def written_up_to(self, entry: bytes | None) -> bool:
        """Whether every record up to ``entry`` is in Postgres."""
        if entry is None:
            return True
        with redis_errors():
            return not await self._redis.xrange(RECORDS, "-", entry, count=1)

    async def leave(self) -> None:
        """Write the records that this consumer has read, then remove it from the group."""
        try:
            with redis_errors():
                answer = await self._redis.xreadgroup(RECORDS_GROUP, self._consumer, {RECORDS: "0"}, count=BATCH)
                await self._write([(entry, fields[b"r"]) for entry, fields in answer[0][1] if fields] if answer else [])
                await self._redis.xgroup_delconsumer(RECORDS, RECORDS_GROUP, self._consumer)
        except (Unavailable, redis.exceptions.ResponseError) as error:
            log.warning("records are left to others", extra={"error": str(error)})

    async def _count_consumers(self) -> None:
        with redis_errors():
            self._consumers = max(1, int(await self._redis.hlen(WORKERS)))  # type: ignore[misc]

    async def _make_group(self) -> None:
        try:
            with redis_errors():
                await self._redis.xgroup_create(RECORDS, RECORDS_GROUP, id="0", mkstream=True)
        except redis.exceptions.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def _write(self, entries: Sequence[Entry]) -> int:
        if not entries:
            return 0
        good: list[tuple[Entry, Record]] = []
        for entry in entries:
            try:
                good.append((entry, Record.decode(entry[1])))
            except ValueError as error:
                await self._reject(entry, str(error))
        await self._settle(good)
        return len(entries)

    async def _settle(self, good: Sequence[tuple[Entry, Record]]) -> None:
        if not good:
            return
        try:
            following = await self._jobs.settle([record for _, record in good])
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001 - one record that Postgres refuses must not hold up the others
            _only_refusals(error)
            if len(good) == 1:
                await self._write_bare(*good[0], error)
            else:
                half = len(good) // 2
                await self._settle(good[:half])
                await self._settle(good[half:])
            return
        self.written += len(good)
        await self._acknowledge(good)
        await self._follow(following)

    async def _write_bare(self, entry: Entry, record: Record, error: Exception) -> None:
        """End a job whose record Postgres refuses by a bare record, without the parts that may be at fault; the full
        one is put aside."""
        bare = replace(
            record,
            status=JobStatus.FAILED if record.status in FINAL else record.status,
            reason=Reason.INVALID_RESULT if record.status in FINAL else None,
            result=None,
            error=b'{"type":"PlatformError","message":"The record of this job could not be written."}',
            payload=None,
            logs=None,
            request=None,
            cpu_ms=None,
            peak_memory_bytes=None,
            exit_code=None,
        )
        try:
            following = await self._jobs.settle([bare])
        except Unavailable:
            raise
        except Exception as again:
            _only_refusals(again)
            log.exception("not even a bare record can be written", extra={"job": str(record.id)})
        else:
            await self._follow(following)
        await self._reject(entry, f"{type(error).__name__}: {error}")
        if bare.status in FINAL:
            with redis_errors():
                await self._redis.publish(FINAL_CHANNEL, str(record.id))

    async def _follow(self, messages: Sequence[JobMessage]) -> None:
        if not messages or self._queue is None:
            return
        try:
            await self._queue.enqueue("invoke", messages)
        except (Unavailable, QueueClosed) as error:
            log.warning("following jobs are left to the reconciler", extra={"error": str(error)})

    async def _acknowledge(self, written: Sequence[tuple[Entry, Record]]) -> None:
        ids = [entry[0] for entry, _ in written]
        with redis_errors():
            pipe = self._redis.pipeline(transaction=False)
            # Ids of jobs that go on, too: their subscribers then read when the job is due again.
            pipe.publish(FINAL_CHANNEL, "".join(str(record.id) for _, record in written))
            pipe.xack(RECORDS, RECORDS_GROUP, *ids)
            pipe.xdel(RECORDS, *ids)
            await pipe.execute()

    async def _reject(self, entry: Entry, why: str) -> None:
        """Put a record that cannot be written into the stream of rejected ones, where an operator finds it."""
        log.error("a record cannot be written", extra={"entry": entry[0].decode(), "error": why[:500]})
        with redis_errors():
            pipe = self._redis.pipeline(transaction=True)
            pipe.xadd(REJECTED, {"r": entry[1], "why": why[:500]}, maxlen=10_000, approximate=True)
            pipe.xack(RECORDS, RECORDS_GROUP, entry[0])
            pipe.xdel(RECORDS, entry[0])
            await pipe.execute()


def _only_refusals(error: Exception) -> None:
    """Raise ``Unavailable`` unless a record's values are at fault: any other error may pass, and the records wait."""
    if not is_refusal(error):
        raise Unavailable(f"Postgres cannot write records: {type(error).__name__}: {error}") from error
