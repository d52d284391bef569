"""Reads of the queue that change no job, subscriptions to jobs, and announcements to all processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson

from shared.errors import Unreadable
from shared.ids import short
from shared.jobs import RunningAttempt
from shared.queue.client import Client
from shared.queue.connection import redis_errors
from shared.queue.message import NO_VERSION
from shared.queue.names import CHANGED_CHANNEL, RECORDS, WATCHED, progress_key
from shared.sealing import Keyring, Part

_WATCHED_S = 60

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A function changed; ``live`` is its live version now, None if it serves no calls any more."""

    function: UUID
    live: UUID | None

    def encode(self) -> str:
        return f"{self.function} {self.live or NO_VERSION}"

    @classmethod
    def decode(cls, message: bytes) -> Change:
        function, live = (UUID(part) for part in message.decode().split(" "))
        return cls(function=function, live=None if live == NO_VERSION else live)


class Views(Client):
    """The part of :class:`shared.queue.queue.Queue` that looks at jobs."""

    _keyring: Keyring

    async def subscribe(self, queue: str, jobs: Sequence[UUID]) -> None:
        """Have the events of ``jobs`` published on :data:`EVENTS_CHANNEL` for the next minute, and the output so far of
        those that run."""
        if jobs:
            await self.evaluate(_LOOK_ON, queue, WATCHED, _WATCHED_S, *(str(job) for job in jobs))

    async def watch(self, worker: str, job: UUID) -> None:
        """Have ``worker`` publish the output of ``job``, from its beginning."""
        with redis_errors():
            await self.redis.publish(f"cp:worker:{worker}", f"watch {job}")

    async def progress(self, jobs: Sequence[UUID]) -> list[Any]:
        """The last report of progress of each job: ``epoch``, ``attempt``, ``fraction`` and ``message``, or None."""
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

    async def depth(self, queue: str, user: UUID) -> int:
        """How many jobs of ``user`` wait: runnable ones and parked ones."""
        return int(await self.evaluate(_DEPTH, queue, short(user)))

    async def present(self, queue: str, jobs: Sequence[UUID]) -> list[bool]:
        """Whether each job is anywhere on ``queue``."""
        if not jobs:
            return []
        return [flag == 1 for flag in await self.evaluate(_PRESENT, queue, *(str(job) for job in jobs))]

    async def running(self, queue: str, jobs: Sequence[UUID]) -> list[RunningAttempt | None]:
        """The attempt of each job that is under way right now; None for a job without one."""
        if not jobs:
            return []
        with redis_errors():
            answer = await self.redis.hmget(f"cp:{queue}:running", [str(job) for job in jobs])  # type: ignore[misc]
        return [None if entry is None else _running_attempt(entry) for entry in answer]

    async def running_of_user(self, queue: str, user: UUID) -> list[UUID]:
        with redis_errors():
            answer = await self.redis.smembers(f"cp:{queue}:using:{short(user)}")  # type: ignore[misc]
        return [UUID(member.decode()) for member in answer]

    async def records(self) -> int:
        """Records that wait for Postgres."""
        with redis_errors():
            return int(await self.redis.xlen(RECORDS))

    async def announce_change(self, change: Change) -> None:
        """Have every process drop its cached copies of a function."""
        with redis_errors():
            await self.redis.publish(CHANGED_CHANNEL, change.encode())


def _running_attempt(entry: bytes) -> RunningAttempt:
    """The entry of an older release has no more than epoch, worker, user and function."""
    epoch, _, _, _, *rest = entry.decode().split(" ")
    claimed_ms, attempt = (int(part) for part in rest) if rest else (None, None)
    return RunningAttempt(epoch=epoch, attempt=attempt, claimed_ms=claimed_ms)
