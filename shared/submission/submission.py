"""A submitted job: all that its row in Postgres and its message in Redis are made of."""

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

    :param fingerprint: of the call; the same key with another fingerprint is the caller's mistake.
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
    :param payload: the event as JSON text, as the caller gave it; after the submitter stored it, the sealed text or
        reference in its place. Empty for a job whose arguments are in Postgres.
    :param priority: -1, 0 or 1, among the jobs of its user.
    :param accepted_ms: Unix time of the call.
    :param deadline_ms: Unix time by which it must have started; 0: never too late.
    :param run_at: when it is due; None for now.
    :param counted: ``run_at`` is a delay after the time in ``id``; Postgres then counts that delay by its own clock,
        which decides when the job is due.
    :param callback_url: address of the callback; the function's settings may name another one.
    :param redrive_of: the failed job that it repeats. :param chained_from: the job that it follows.
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

        :param stored: the stored payload, if the submission still has it as the caller gave it.
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
