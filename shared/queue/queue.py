"""The queue: enqueue, exchange (settle and claim), cancel. Every step is one atomic round trip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

import orjson
import redis.exceptions
from redis.asyncio import Redis

from shared.errors import Unreadable
from shared.ids import from_short, short
from shared.jobs import Run
from shared.queue import scripts
from shared.queue.connection import redis_errors
from shared.queue.link import Link
from shared.queue.message import NO_VERSION, JobMessage, now_ms
from shared.queue.scripts import QueueClosed, Script
from shared.sealing import Keyring, Part

QUEUES = ("invoke", "build")
RECORDS = "cp:records"
RECORDS_GROUP = "postgres"
GENERATION = "cp:generation"
WORKERS = "cp:workers"
OUT_OF_PLACE = "cp:out-of-place"
FINAL_CHANNEL = "cp:final"
EVENTS_CHANNEL = "cp:events"
"""What happens to jobs that somebody is subscribed to: a job's id, a space, a JSON object with its ``kind``."""
WATCHED = "cp:watched"
CHANGED_CHANNEL = "cp:changed"
REBUILT_CHANNEL = "cp:rebuilt"
"""A new generation begins: workers tell it what they run."""
OPENED_CHANNEL = "cp:opened"
"""It is complete: what it does not hold was lost."""

_MOST_STARTED = 500
_WATCHED_S = 60
_STEP_S = 5.0
"""Bound on a step, where the client names none."""

# A Redis without memory refuses commands that may need some, unless their script has written before: the living must
# not look dead because of it.
_BEAT = "redis.call('HDEL', ARGV[1], '') return redis.call('HINCRBY', ARGV[1], ARGV[2], 1)"


class Enqueued(StrEnum):
    QUEUED = "queued"
    THERE = "there"  # the job was on the queue already
    BACKLOG = "backlog"  # refused: too many records wait for Postgres


_ENQUEUED = {1: Enqueued.QUEUED, 0: Enqueued.THERE, -1: Enqueued.BACKLOG}


class Verb(StrEnum):
    FINAL = "final"
    HAND_BACK = "hand_back"  # back to the queue, unspent
    RETRY = "retry"  # off the queue until it is due again, which is Postgres's to know
    LOSE = "lose"  # back to the queue: the attempt died with what ran it
    NOTE = "note"  # ends nothing: more about an attempt that somebody else ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle:
    """The end of an attempt, fenced by ``epoch``; ``record`` is an encoded :class:`shared.queue.records.Record`."""

    id: UUID
    epoch: str
    verb: Verb
    record: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to run one attempt. ``raw`` is the message as it stands in Redis, for a later registration;
    ``claimed_ms`` the time of the claim by Redis's clock, 0 if it is not known."""

    id: str
    epoch: str
    raw: bytes
    claimed_ms: int = 0

    def decode(self) -> JobMessage:
        return JobMessage.decode(self.id, self.raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A function changed; ``live`` is the version that serves it now, None if it serves nothing any more."""

    function: UUID
    live: UUID | None

    def encode(self) -> str:
        return f"{self.function} {self.live or NO_VERSION}"

    @classmethod
    def decode(cls, message: bytes) -> Change:
        function, live = (UUID(part) for part in message.decode().split(" "))
        return cls(function=function, live=None if live == NO_VERSION else live)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueFigures:
    """Jobs on each queue, those of them that run, records that wait for Postgres, what workers reported, and how much
    was out of place at the leader's last check, if that is not long ago."""

    jobs: Mapping[str, int]
    running: Mapping[str, int]
    records: int
    workers: Mapping[str, Mapping[str, Any]]
    out_of_place: int | None = None


class CancelledWhere(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"  # a moment ago; its record may still be on its way to Postgres
    ABSENT = "absent"  # not on the queue, and not let in any more if it is on its way there


# These are no steps of the queue: they may be called at any time.
_PRESENT = """
local there = {}
for i = 2, #ARGV do there[#there + 1] = redis.call('HEXISTS', 'cp:' .. ARGV[1] .. ':messages', ARGV[i]) end
return there
"""
_LOOK_ON = """
local watched, now = ARGV[2], tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', watched, '-inf', now)
for i = 4, #ARGV do
    redis.call('ZADD', watched, now + ARGV[3], ARGV[i])
    local entry = redis.call('HGET', 'cp:' .. ARGV[1] .. ':running', ARGV[i])
    if entry then redis.call('PUBLISH', 'cp:worker:' .. string.match(entry, '^%S+ (%S+)'), 'watch ' .. ARGV[i]) end
end
"""
_DEPTH = """
local base = 'cp:' .. ARGV[1] .. ':'
local depth, parking = redis.call('ZCARD', base .. 'user:' .. ARGV[2]), base .. 'parking:' .. ARGV[2]
for _, fn in ipairs(redis.call('SMEMBERS', parking)) do
    local parked = redis.call('ZCARD', base .. 'parked:' .. fn)
    if parked == 0 then redis.call('SREM', parking, fn) end
    depth = depth + parked
end
return depth
"""


class Queue:
    """Client of the queue in Redis; safe to share within a process. Holds a connection of its own for the steps.

    All methods raise :class:`~shared.queue.scripts.QueueClosed` while the queue is rebuilt and
    :class:`~shared.errors.Unavailable` when Redis does not answer in time.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        max_stream_backlog: int = 100_000,
        max_running_per_user: int = 100,
        keyring: Keyring | None = None,
    ) -> None:
        self.redis = redis
        self._keyring = keyring or Keyring()
        pool = redis.connection_pool
        self._link = Link(pool, timeout_s=pool.connection_kwargs.get("socket_timeout") or _STEP_S)
        self._max_backlog = max_stream_backlog
        self._user_max = max_running_per_user

    async def _run(self, script: Script, *args: str | bytes | int | float) -> Any:
        try:
            with redis_errors():
                return await self._link.call("EVALSHA", script.sha, 0, *args)
        except QueueClosed as closed:
            if not isinstance(closed.__cause__, redis.exceptions.NoScriptError) or not await self._make_known(script):
                raise
        with redis_errors():
            return await self._link.call("EVALSHA", script.sha, 0, *args)

    async def _make_known(self, script: Script) -> bool:
        """Load a script of this release into a queue that another release's leader opened; whether it can be used."""
        with redis_errors():
            state = await self.redis.hmget(GENERATION, ["open", "layout", "run"])  # type: ignore[misc]
            run = (await self.redis.info("server"))["run_id"]
            if state != [b"1", scripts.LAYOUT.encode(), run.encode()]:
                return False
            # Whether that is still so is told together with the loading.
            return bool(await self.redis.eval(script.source, 0) == scripts.USABLE)  # type: ignore[misc]

    async def evaluate(self, script: str, *args: str | bytes | int | float) -> Any:
        """Run a script that is not one of the queue's steps, over the connection of these."""
        with redis_errors():
            return await self._link.call("EVAL", script, 0, *args)

    async def aclose(self) -> None:
        """Let go of the connection; the client that the queue was given stays open. Idempotent."""
        await self._link.close()

    async def enqueue(self, queue: str, messages: Sequence[JobMessage]) -> list[Enqueued]:
        args: list[str | bytes] = []
        for message in messages:
            args += (str(message.id), message.encode())
        answer = await self._run(scripts.ENQUEUE, queue, self._max_backlog, now_ms(), *args)
        return [_ENQUEUED[code] for code in answer]

    async def exchange(
        self, queue: str, worker: str, *, generation: str, want: int, kept: int = 0, settles: Sequence[Settle] = ()
    ) -> tuple[list[bool], list[Claim]]:
        """Settle ``settles`` and claim up to ``want`` jobs for ``worker``, which has joined ``generation``; the last
        ``kept`` of them only of users who have nothing running.

        :returns: one flag a settle, False where the epoch was stale and nothing changed; and the claims.
        """
        args: list[str | bytes | int] = [queue, worker, generation, want, kept, self._user_max, len(settles)]
        for settle in settles:
            args += (str(settle.id), settle.epoch, settle.verb.value, settle.record)
        settled, claimed = await self._run(scripts.EXCHANGE, *args)
        return [flag == 1 for flag in settled], _claims(claimed)

    async def cancel(
        self,
        queue: str,
        job: UUID,
        *,
        queued: tuple[str, str] = ("cancelled", ""),
        running: tuple[str, str] | None = ("cancelled", ""),
    ) -> CancelledWhere:
        """End ``job`` with the given (status, reason), depending on whether it had started; ``running=None`` lets one
        that runs go on."""
        answer = await self._run(scripts.CANCEL, queue, str(job), *queued, *(running or ("", "")))
        return CancelledWhere(answer.decode())

    async def beat(self, worker: str) -> None:
        """Move the heartbeat of ``worker`` on."""
        with redis_errors():
            await self.redis.eval(_BEAT, 0, WORKERS, worker)  # type: ignore[misc]

    async def report(self, worker: str, figures: Mapping[str, object]) -> None:
        """Leave a worker's figures for whoever reads metrics; they go a minute after the last report."""
        with redis_errors():
            await self.redis.set(f"cp:figures:{worker}", orjson.dumps(figures), ex=60)

    async def report_out_of_place(self, count: int, *, keep_s: float) -> None:
        """Leave what a check found for whoever reads metrics."""
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
        """The workers that hold attempts, whether they have ever beaten or not."""
        with redis_errors():
            pipe = self.redis.pipeline(transaction=False)
            for queue in QUEUES:
                pipe.hvals(f"cp:{queue}:running")
            answers = await pipe.execute()
        return {entry.split(b" ")[1].decode() for entries in answers for entry in entries}

    async def expire_worker(self, worker: str, *, seen: int, max_lost: int) -> tuple[int, int] | None:
        """Requeue what a silent worker ran, unless its heartbeat moved past ``seen``.

        :returns: (requeued, given up), or None if it beat.
        """
        requeued = given_up = 0
        for queue in QUEUES:
            answer = await self._run(scripts.EXPIRE_WORKER, queue, worker, seen, max_lost)
            if answer == -1:
                return None
            requeued, given_up = requeued + answer[0], given_up + answer[1]
        with redis_errors():
            await self.redis.hdel(WORKERS, worker)  # type: ignore[misc]
        return requeued, given_up

    async def register(self, queue: str, worker: str, claims: Sequence[Claim]) -> int:
        """Tell a queue that is being rebuilt what ``worker`` still runs."""
        args: list[str | bytes | int] = []
        for claim in claims:
            args += (claim.id, claim.epoch, claim.raw, claim.claimed_ms)
        return int(await self._run(scripts.REGISTER, queue, worker, *args))

    async def held(self, queue: str, worker: str, *, generation: str) -> list[Claim]:
        """What Redis holds ``worker`` to be running, in the generation that it has joined."""
        answer = await self._run(scripts.HELD, queue, worker, generation)
        return _claims(answer)

    async def subscribe(self, queue: str, jobs: Sequence[UUID]) -> None:
        """Have what happens to ``jobs`` told on :data:`EVENTS_CHANNEL` for the next minute, and what those of them
        wrote so far that run."""
        if jobs:
            await self.evaluate(_LOOK_ON, queue, WATCHED, _WATCHED_S, *(str(job) for job in jobs))

    async def watch(self, worker: str, job: UUID) -> None:
        """Have ``worker`` tell what ``job`` writes, from its beginning."""
        with redis_errors():
            await self.redis.publish(f"cp:worker:{worker}", f"watch {job}")

    async def progress(self, jobs: Sequence[UUID]) -> list[Any]:
        """What each job said last of its progress: ``epoch``, ``attempt``, ``fraction`` and ``message``, or None."""
        if not jobs:
            return []
        with redis_errors():
            found = await self.redis.mget([progress_key(str(job)) for job in jobs])
        return [None if one is None else self._opened(one, job) for one, job in zip(found, jobs, strict=True)]

    def _opened(self, progress: bytes, job: UUID) -> Any:
        try:
            return orjson.loads(self._keyring.open(progress, job, Part.PROGRESS))
        except Unreadable:
            return None

    async def stop_function(self, function: UUID) -> None:
        """Let the jobs of a function wait; those that run go on."""
        await self._run(scripts.STOP, "invoke", short(function))

    async def start_function(self, function: UUID) -> bool:
        """Let the jobs of a function run again; False if many wait and this is to be called again."""
        return int(await self._run(scripts.START, "invoke", short(function), _MOST_STARTED)) == 0

    async def stopped_functions(self) -> tuple[set[UUID], set[UUID]]:
        """The functions whose jobs wait, and those that were started and have jobs that wait still."""
        with redis_errors():
            pipe = self.redis.pipeline(transaction=False)
            pipe.smembers("cp:invoke:stopped")
            pipe.smembers("cp:invoke:starting")
            stopped, starting = await pipe.execute()
        return {from_short(one.decode()) for one in stopped}, {from_short(one.decode()) for one in starting}

    async def retire(self, worker: str) -> None:
        """Forget a worker that ends in good order."""
        with redis_errors():
            pipe = self.redis.pipeline(transaction=False)
            pipe.hdel(WORKERS, worker)
            for queue in QUEUES:
                pipe.zrem(f"cp:{queue}:idle", worker)
                pipe.zrem(f"cp:{queue}:spare", worker)
            await pipe.execute()

    async def depth(self, queue: str, user: UUID) -> int:
        """Jobs of ``user`` that wait, for a slot or for what they are parked for."""
        return int(await self.evaluate(_DEPTH, queue, short(user)))

    async def present(self, queue: str, jobs: Sequence[UUID]) -> list[bool]:
        """Whether each job is anywhere on ``queue``."""
        if not jobs:
            return []
        return [flag == 1 for flag in await self.evaluate(_PRESENT, queue, *(str(job) for job in jobs))]

    async def running(self, queue: str, jobs: Sequence[UUID]) -> list[Run | None]:
        """The run of each job that is under way right now."""
        if not jobs:
            return []
        with redis_errors():
            answer = await self.redis.hmget(f"cp:{queue}:running", [str(job) for job in jobs])  # type: ignore[misc]
        return [None if entry is None else _run_of(entry) for entry in answer]

    async def running_of_user(self, queue: str, user: UUID) -> list[UUID]:
        with redis_errors():
            answer = await self.redis.smembers(f"cp:{queue}:using:{short(user)}")  # type: ignore[misc]
        return [UUID(member.decode()) for member in answer]

    async def records(self) -> int:
        """Records that wait for Postgres."""
        with redis_errors():
            return int(await self.redis.xlen(RECORDS))

    async def announce_change(self, change: Change) -> None:
        """Tell every process to drop what it remembers of a function."""
        with redis_errors():
            await self.redis.publish(CHANGED_CHANNEL, change.encode())

    async def generation(self) -> tuple[str, bool] | None:
        """The generation and whether claims are open; None while there is none."""
        with redis_errors():
            gen, is_open = await self.redis.hmget(GENERATION, ["gen", "open"])  # type: ignore[misc]
        return None if gen is None else (gen.decode(), is_open == b"1")

    async def is_open(self) -> bool:
        state = await self.generation()
        return state is not None and state[1]


def progress_key(job: str) -> str:
    return f"cp:progress:{job}"


def _claims(flat: Sequence[Any]) -> list[Claim]:
    return [
        Claim(id=flat[i].decode(), epoch=flat[i + 1].decode(), raw=flat[i + 2], claimed_ms=int(flat[i + 3] or 0))
        for i in range(0, len(flat), 4)
    ]


def _run_of(entry: bytes) -> Run:
    """An older release tells no more than worker and epoch."""
    epoch, _, _, _, *rest = entry.decode().split(" ")
    claimed_ms, attempt = (int(part) for part in rest) if rest else (None, None)
    return Run(epoch=epoch, attempt=attempt, claimed_ms=claimed_ms)
