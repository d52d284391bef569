"""Jobs: their states, the table of moves between them, and the stable reasons of failure.

``TRANSITIONS`` is the one list of moves. The SQL that settles jobs (``sql/queries/jobs.sql``) and the table in
``docs/reference/jobs.md`` are compared with it by tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID


class JobKind(StrEnum):
    DEPLOY = "deploy"
    INVOKE = "invoke"
    DELETE = "delete"


class JobStatus(StrEnum):
    """Where a job is. Retention deletes final jobs; nothing else deletes one."""

    SCHEDULED = "scheduled"  # due later; the leader moves it on to queued
    QUEUED = "queued"  # accepted, runnable or parked; a worker's claim moves it on
    RUNNING = "running"  # a worker holds its lease; settle, cancel or lease expiry move it on
    SUCCEEDED = "succeeded"  # final
    FAILED = "failed"  # final, with a reason
    CANCELLED = "cancelled"  # final


FINAL = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})


class JobEvent(StrEnum):
    ACCEPT = "accept"
    POSTPONE = "postpone"
    FALL_DUE = "fall_due"
    CLAIM = "claim"
    SUCCEED = "succeed"
    FAIL = "fail"
    LOSE = "lose"
    RETRY = "retry"
    GIVE_UP = "give_up"
    HAND_BACK = "hand_back"
    CANCEL = "cancel"
    TIME_OUT = "time_out"
    EXPIRE = "expire"


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One allowed move. ``source`` is ``None`` for the creation of a job."""

    source: JobStatus | None
    event: JobEvent
    target: JobStatus
    who: str


TRANSITIONS = (
    Transition(source=None, event=JobEvent.ACCEPT, target=JobStatus.QUEUED, who="api"),
    Transition(source=None, event=JobEvent.POSTPONE, target=JobStatus.SCHEDULED, who="api"),
    Transition(source=JobStatus.SCHEDULED, event=JobEvent.FALL_DUE, target=JobStatus.QUEUED, who="scheduler"),
    Transition(source=JobStatus.SCHEDULED, event=JobEvent.CANCEL, target=JobStatus.CANCELLED, who="api"),
    Transition(source=JobStatus.QUEUED, event=JobEvent.CLAIM, target=JobStatus.RUNNING, who="worker"),
    Transition(source=JobStatus.QUEUED, event=JobEvent.CANCEL, target=JobStatus.CANCELLED, who="api"),
    Transition(source=JobStatus.SCHEDULED, event=JobEvent.EXPIRE, target=JobStatus.FAILED, who="scheduler"),
    Transition(source=JobStatus.QUEUED, event=JobEvent.TIME_OUT, target=JobStatus.FAILED, who="api, worker"),
    Transition(source=JobStatus.QUEUED, event=JobEvent.EXPIRE, target=JobStatus.FAILED, who="scheduler, worker"),
    Transition(source=JobStatus.RUNNING, event=JobEvent.SUCCEED, target=JobStatus.SUCCEEDED, who="worker"),
    Transition(source=JobStatus.RUNNING, event=JobEvent.FAIL, target=JobStatus.FAILED, who="worker"),
    Transition(source=JobStatus.RUNNING, event=JobEvent.LOSE, target=JobStatus.QUEUED, who="scheduler, worker"),
    Transition(source=JobStatus.RUNNING, event=JobEvent.RETRY, target=JobStatus.SCHEDULED, who="worker"),
    Transition(source=JobStatus.RUNNING, event=JobEvent.GIVE_UP, target=JobStatus.FAILED, who="scheduler"),
    Transition(source=JobStatus.RUNNING, event=JobEvent.HAND_BACK, target=JobStatus.QUEUED, who="worker"),
    Transition(source=JobStatus.RUNNING, event=JobEvent.CANCEL, target=JobStatus.CANCELLED, who="api"),
)

_TABLE = {(move.source, move.event): move.target for move in TRANSITIONS}


class IllegalTransition(Exception):
    """The table has no such move."""


def after(source: JobStatus | None, event: JobEvent) -> JobStatus:
    """The state that ``event`` leads to from ``source``; raises :class:`IllegalTransition`."""
    try:
        return _TABLE[source, event]
    except KeyError:
        raise IllegalTransition(f"a job that is {source} cannot {event}") from None


class Reason(StrEnum):
    """Why a job failed, for good: stable, safe to match on."""

    # the function's own
    HANDLER_ERROR = "handler_error"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out_of_memory"
    CRASHED = "crashed"
    INVALID_RESULT = "invalid_result"
    RESULT_TOO_LARGE = "result_too_large"
    # the platform's
    SANDBOX_START_FAILED = "sandbox_start_failed"
    WORKER_LOST = "worker_lost"
    ARTIFACT_MISSING = "artifact_missing"
    DEPENDENCY_DOWN = "dependency_down"
    QUEUE_TIMEOUT = "queue_timeout"
    EXPIRED = "expired"
    # a deploy's
    ARCHIVE_REJECTED = "archive_rejected"
    ANALYSIS_REJECTED = "analysis_rejected"
    BUILD_FAILED = "build_failed"


PLATFORM_REASONS = frozenset(
    {
        Reason.SANDBOX_START_FAILED,
        Reason.WORKER_LOST,
        Reason.ARTIFACT_MISSING,
        Reason.DEPENDENCY_DOWN,
        Reason.QUEUE_TIMEOUT,
        Reason.EXPIRED,
    }
)
"""Failures that are not the function's: a waited-for invoke answers them with 503."""

WORDLESS = frozenset({Reason.WORKER_LOST, Reason.QUEUE_TIMEOUT, Reason.EXPIRED})
"""Failures that the queue's scripts record; they come without an error document."""


class Missing(StrEnum):
    """Why a job is shown without its result or error."""

    UNREADABLE = "unreadable"  # sealed with a key that this process does not have
    AWAY = "away"  # the artifact store does not answer just now
    LARGE = "large"  # too large for a list
    EXPIRED = "expired"  # not kept any more


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningAttempt:
    """An attempt that is under way, as Redis knows it; Postgres gets its record when it ends."""

    epoch: str
    attempt: int | None  # None, as claimed_ms is, if an older release began the attempt
    claimed_ms: int | None  # Unix time, by Redis's clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job as Postgres has it. ``result``, ``error`` and ``payload`` are JSON text, which may be sealed; a job that
    is read for its user has result and error opened. Timings are in milliseconds."""

    id: UUID
    kind: JobKind
    user_id: UUID
    function_id: UUID
    version_id: UUID | None
    version: int | None  # the version's number
    status: JobStatus
    reason: str | None
    attempt: int  # attempts so far, without those that were handed back
    lost: int  # how many of them were lost with their worker or its engine
    concurrency: int  # of its function over all workers; 0: no limit
    payload: bytes | None
    result: bytes | None
    error: bytes | None
    queue_ms: float | None
    sandbox_ms: float | None
    run_ms: float | None
    total_ms: float | None
    created_at: datetime
    run_at: datetime | None  # when it is due, if it was accepted for later
    started_at: datetime | None
    finished_at: datetime | None
    priority: int = 0
    expires_at: datetime | None = None  # by when it must have started
    redrive_of: UUID | None = None  # the failed job that this one repeats
    function_name: str | None = None  # of a job that is read for its user
    missing: Missing | None = None  # why result and error are left out, though the job has them
    callback_url: str | None = None  # the caller's own; the function's settings may have another
    chained_from: UUID | None = None  # the job that this one follows
    chain_refused: str | None = None  # why no job follows although the function's settings ask for one

    @property
    def final(self) -> bool:
        return self.status in FINAL
