"""Arguments and answers of the queue's steps: results of enqueues, claims, settles, results of cancels."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from shared.queue.message import JobMessage


class Enqueued(StrEnum):
    QUEUED = "queued"
    THERE = "there"  # the job was on the queue already
    BACKLOG = "backlog"  # refused: too many records wait for Postgres


ENQUEUED = {1: Enqueued.QUEUED, 0: Enqueued.THERE, -1: Enqueued.BACKLOG}


class Verb(StrEnum):
    FINAL = "final"
    HAND_BACK = "hand_back"  # back to the queue, unspent
    RETRY = "retry"  # off the queue until it is due again; Postgres keeps when that is
    LOSE = "lose"  # back to the queue: the attempt died with its worker or the container engine
    NOTE = "note"  # ends nothing: adds to the record of an attempt that another process ended


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


class CancelledWhere(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"  # a moment ago; its record may still be on its way to Postgres
    ABSENT = "absent"  # not on the queue; an enqueue that is on its way there does nothing
