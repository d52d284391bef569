"""What is asked for when a job is submitted: all that its row in Postgres and its message in Redis are made of."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

from shared.ids import time_of
from shared.jobs import JobKind
from shared.queue.message import NO_REPLY, NO_VERSION, JobMessage, queue_of


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyKey:
    """A caller's key for one call.

    :param fingerprint: of what is asked for: the same key with another fingerprint is a mistake of the caller's.
    :param keep_s: seconds after which the key is free again.
    """

    key: str
    fingerprint: bytes
    keep_s: float


class Submission(NamedTuple):
    """One job that is to be. A new column of ``jobs`` is a field here and a line in ``shared/postgres/submissions.py``.

    A named tuple, because every call makes one or two: a frozen dataclass takes several times as long to copy.

    :param version_id: None for a job that is about its function as a whole.
    :param concurrency: most attempts of its function at a time over all workers; 0: no limit.
    :param payload: the event as JSON text; as the caller gave it until the submitter stored it, from then on what is
        kept in its place. Empty for a job whose arguments are in Postgres.
    :param priority: -1, 0 or 1, among the jobs of its user.
    :param accepted_ms: Unix time at which it was asked for.
    :param deadline_ms: Unix time by which it must have started; 0: never too late.
    :param run_at: when it is due; None for now.
    :param counted: ``run_at`` was counted from the time in ``id``; Postgres counts as long by its own clock, which
        decides what is due.
    :param callback_url: where its end is told; its function's settings may name another address.
    :param redrive_of: the failed job that it repeats. :param chained_from: the job whose end brought it about.
    :param chain_depth: how many jobs of its chain came before it.
    :param reply: channel of the API process that waits for the outcome, ``-`` for none.
    :param idempotency: the key that its caller gave, if any.
    """

    id: UUID
    user_id: UUID
    function_id: UUID
    version_id: UUID | None
    accepted_ms: int
    kind: JobKind = JobKind.INVOKE
    concurrency: int = 0
    payload: bytes = b""
    priority: int = 0
    deadline_ms: int = 0
    run_at: datetime | None = None
    counted: bool = False
    callback_url: str | None = None
    redrive_of: UUID | None = None
    chained_from: UUID | None = None
    chain_depth: int = 0
    reply: str = NO_REPLY
    idempotency: IdempotencyKey | None = None

    @property
    def queue(self) -> str:
        return queue_of(self.kind)

    @property
    def created_at(self) -> datetime:
        return time_of(self.id)

    @property
    def expires_at(self) -> datetime | None:
        return datetime.fromtimestamp(self.deadline_ms / 1000, UTC) if self.deadline_ms else None

    def message(self, stored: bytes | None = None) -> JobMessage:
        """The job on its way to the queue.

        :param stored: what is kept in the place of the payload, if the submission has it as it was given.
        """
        return JobMessage(
            id=self.id,
            kind=self.kind,
            user_id=self.user_id,
            function_id=self.function_id,
            version_id=self.version_id or NO_VERSION,
            concurrency=self.concurrency,
            deadline_ms=self.deadline_ms,
            priority=self.priority,
            reply=self.reply,
            enqueued_ms=self.accepted_ms,
            payload=self.payload if stored is None else stored,
        )
