"""Workers as the queue knows them: their heartbeats, their attempts, the figures that they report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from shared.queue.client import Client
from shared.queue.connection import redis_errors
from shared.queue.names import OUT_OF_PLACE, QUEUES, RECORDS, WORKERS

# A Redis that is out of memory refuses commands that may need some, unless their script has written before. Live
# workers must not look dead because of it: so the script deletes first.
_BEAT = "redis.call('HDEL', ARGV[1], '') return redis.call('HINCRBY', ARGV[1], ARGV[2], 1)"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueFigures:
    """Jobs on each queue, how many of them run, records that wait for Postgres, the workers' reports, and the findings
    of the leader's last check of conservation; None if that is long ago."""

    jobs: Mapping[str, int]
    running: Mapping[str, int]
    records: int
    workers: Mapping[str, Mapping[str, Any]]
    out_of_place: int | None = None


class Workers(Client):
    """The part of :class:`shared.queue.queue.Queue` that is about workers."""

    async def beat(self, worker: str) -> None:
        """Move the heartbeat of ``worker`` on."""
        with redis_errors():
            await self.redis.eval(_BEAT, 0, WORKERS, worker)  # type: ignore[misc]

    async def report(self, worker: str, figures: Mapping[str, object]) -> None:
        """Leave a worker's figures for ``/metrics``; they expire a minute after the last report."""
        with redis_errors():
            await self.redis.set(f"cp:figures:{worker}", orjson.dumps(figures), ex=60)

    async def report_out_of_place(self, count: int, *, keep_s: float) -> None:
        """Leave the number of findings of a check for ``/metrics``."""
        with redis_errors():
            await self.redis.set(OUT_OF_PLACE, count, px=round(1000 * keep_s))

    async def figures(self) -> QueueFigures:
        """What the queue and its workers look like now."""
        workers = list(await self.beats())
        with redis_errors():
            pipe = self.redis.pipeline(transaction=False)
            for queue in QUEUES:
                pipe.hlen(f"cp:{queue}:messages")
                pipe.hlen(f"cp:{queue}:running")
            pipe.xlen(RECORDS)
            pipe.get(OUT_OF_PLACE)
            for worker in workers:
                pipe.get(f"cp:figures:{worker}")
            *sizes, backlog, out_of_place = (answers := await pipe.execute())[: 2 * len(QUEUES) + 2]
        reported = zip(workers, answers[2 * len(QUEUES) + 2 :], strict=True)
        return QueueFigures(
            jobs={queue: sizes[2 * index] for index, queue in enumerate(QUEUES)},
            running={queue: sizes[2 * index + 1] for index, queue in enumerate(QUEUES)},
            records=backlog,
            workers={worker: orjson.loads(report) for worker, report in reported if report is not None},
            out_of_place=None if out_of_place is None else int(out_of_place),
        )

    async def beats(self) -> dict[str, int]:
        """Heartbeats so far, by worker."""
        with redis_errors():
            answer = await self.redis.hgetall(WORKERS)  # type: ignore[misc]
        return {worker.decode(): int(count) for worker, count in answer.items()}

    async def holders(self) -> set[str]:
        """The workers that run attempts as far as Redis knows, whether they have ever beaten or not."""
        with redis_errors():
            pipe = self.redis.pipeline(transaction=False)
            for queue in QUEUES:
                pipe.hvals(f"cp:{queue}:running")
            answers = await pipe.execute()
        return {entry.split(b" ")[1].decode() for entries in answers for entry in entries}

    async def retire(self, worker: str) -> None:
        """Forget a worker that ends in good order."""
        with redis_errors():
            pipe = self.redis.pipeline(transaction=False)
            pipe.hdel(WORKERS, worker)
            for queue in QUEUES:
                pipe.zrem(f"cp:{queue}:idle", worker)
                pipe.zrem(f"cp:{queue}:spare", worker)
            await pipe.execute()
