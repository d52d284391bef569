"""What tests of the queue start from: an account's row, a message, the record of an attempt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

from shared.ids import new_id
from shared.jobs import JobKind, JobStatus
from shared.postgres.pool import Pool
from shared.postgres.submissions import Submissions
from shared.queue.message import JobMessage, now_ms
from shared.queue.queue import Claim, Settle, Verb
from shared.queue.records import Record
from shared.submission.submission import IdempotencyKey, Submission

_SHARED = (
    "id",
    "kind",
    "user_id",
    "function_id",
    "version_id",
    "concurrency",
    "payload",
    "priority",
    "deadline_ms",
    "reply",
)


async def new_user(pool: Pool) -> UUID:
    """An account that jobs may belong to."""
    user = uuid4()
    name = f"u{user.hex[:12]}"
    await pool.execute(
        "INSERT INTO users (id, email, username, password_hash) VALUES ($1, $2, $3, '-')",
        user,
        f"{name}@example.com",
        name,
    )
    return user


def message(user: UUID | None = None, *, function: UUID | None = None, **fields: Any) -> JobMessage:
    """An invoke job that nobody waits for, unless ``fields`` say otherwise."""
    known: dict[str, Any] = {
        "id": new_id(),
        "kind": JobKind.INVOKE,
        "user_id": user or uuid4(),
        "function_id": function or uuid4(),
        "version_id": uuid4(),
        "enqueued_ms": now_ms(),
        "payload": b'{"body":1}',
    }
    return JobMessage(**(known | fields))


def submission(of: JobMessage, **asked: Any) -> Submission:
    """What was asked for when ``of`` was made, and whatever else ``asked`` says."""
    known: dict[str, Any] = {name: getattr(of, name) for name in _SHARED}
    return Submission(accepted_ms=of.enqueued_ms, **(known | asked))


async def accept(pool: Pool, messages: Sequence[JobMessage], **asked: Any) -> None:
    """Commit the jobs of these messages."""
    await Submissions(pool).insert([submission(of, **asked) for of in messages])


async def accept_once(pool: Pool, of: JobMessage, *, key: str, fingerprint: bytes, keep_s: float, **asked: Any) -> UUID:
    """Commit the job of a message under an idempotency key; the job that has the key."""
    idempotency = IdempotencyKey(key=key, fingerprint=fingerprint, keep_s=keep_s)
    return await Submissions(pool).insert_once(submission(of, idempotency=idempotency, **asked))


def record(of: JobMessage, *, epoch: str | None = "1-1", status: str = JobStatus.SUCCEEDED, **fields: Any) -> Record:
    """The record of an attempt of ``of``, by default one that succeeded."""
    final = status in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)
    known: dict[str, Any] = {
        "outcome": "succeeded" if status == JobStatus.SUCCEEDED else "failed" if final else "lost",
        "reason": "handler_error" if status == JobStatus.FAILED else None,
        "attempt": of.attempt,
        "lost": of.lost,
        "worker": "worker-a",
        "result": b"1" if status == JobStatus.SUCCEEDED else None,
        "at_ms": now_ms(),
    }
    return Record(
        id=of.id,
        user_id=of.user_id,
        function_id=of.function_id,
        version_id=of.version_id,
        queue=of.queue,
        status=status,
        epoch=epoch,
        **(known | fields),
    )


def settle(claim: Claim, verb: Verb = Verb.FINAL, **fields: Any) -> Settle:
    """The end of a claimed attempt."""
    job = claim.decode()
    if verb is Verb.HAND_BACK:
        fields = {"status": JobStatus.QUEUED, "outcome": "handed_back"} | fields
    return Settle(id=job.id, epoch=claim.epoch, verb=verb, record=record(job, epoch=claim.epoch, **fields).encode())
