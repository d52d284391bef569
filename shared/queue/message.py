"""A job as it travels through Redis.

A message is a line of fields, then the payload, which only the worker opens. The Lua scripts read the first fields (see
``lua/prelude.lua``). A million messages may wait in memory, so identifiers are written short.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from uuid import UUID

from shared.ids import from_short, short
from shared.jobs import Job, JobKind

NO_REPLY = "-"
NO_VERSION = UUID(int=0)  # of jobs that are about a function as a whole


class UnreadableMessage(Exception):
    """A message whose format this process does not know; it goes back to the queue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobMessage:
    """All that a worker knows of a job without asking Postgres.

    :param concurrency: most attempts of its function at a time over all workers; 0: no limit.
    :param attempt: number of the attempt that the next claim starts, from 1.
    :param deadline_ms: Unix time after which a claim drops the job; 0: never.
    :param priority: -1, 0 or 1: among its user's jobs it stands as if accepted ten minutes later, then, or earlier.
    :param reply: channel of the API process that waits for the outcome, ``-`` for none.
    :param enqueued_ms: Unix time at which the job was accepted.
    :param payload: the event as JSON text, sealed if there are keys (:mod:`shared.sealing`); empty for jobs whose
        arguments are in Postgres.
    """

    id: UUID
    kind: JobKind
    user_id: UUID
    function_id: UUID
    version_id: UUID
    concurrency: int = 0
    attempt: int = 1
    lost: int = 0
    deadline_ms: int = 0
    priority: int = 0
    reply: str = NO_REPLY
    enqueued_ms: int
    payload: bytes = b""

    @property
    def queue(self) -> str:
        return queue_of(self.kind)

    def encode(self) -> bytes:
        return (
            f"{short(self.user_id)} {short(self.function_id)} {short(self.version_id)} {self.concurrency} "
            f"{self.attempt} {self.lost} {self.deadline_ms} {self.reply} {self.priority} {self.kind.value} "
            f"{self.enqueued_ms}\n"
        ).encode() + self.payload

    @classmethod
    def decode(cls, identifier: str, message: bytes) -> JobMessage:
        """:raises UnreadableMessage: also for a job kind that this process does not know."""
        try:
            fields, payload = message.split(b"\n", 1)
            user, function, version, concurrency, attempt, lost, deadline, reply, priority, kind, enqueued = (
                fields.decode().split(" ")
            )
            return cls(
                id=UUID(identifier),
                kind=JobKind(kind),
                user_id=from_short(user),
                function_id=from_short(function),
                version_id=from_short(version),
                concurrency=int(concurrency),
                attempt=int(attempt),
                lost=int(lost),
                deadline_ms=int(deadline),
                priority=int(priority),
                reply=reply,
                enqueued_ms=int(enqueued),
                payload=payload,
            )
        except ValueError as error:
            raise UnreadableMessage(f"job {identifier}: {error}") from error


def message_of(job: Job) -> JobMessage:
    """A job of Postgres, for the queue."""
    return JobMessage(
        id=job.id,
        kind=job.kind,
        user_id=job.user_id,
        function_id=job.function_id,
        version_id=job.version_id or NO_VERSION,
        concurrency=job.concurrency,
        attempt=job.attempt + 1,
        lost=job.lost,
        deadline_ms=0 if job.expires_at is None else round(job.expires_at.timestamp() * 1000),
        priority=job.priority,
        enqueued_ms=round((job.run_at or job.created_at).timestamp() * 1000),
        payload=job.payload or b"",
    )


def queue_of(kind: JobKind) -> str:
    """The name of the queue that carries jobs of ``kind``: builds have slots of their own."""
    return "invoke" if kind is JobKind.INVOKE else "build"


def now_ms() -> int:
    return time.time_ns() // 1_000_000
