"""A job as its owner sees it: in the API's answers, and in callbacks."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson

from shared.jobs import WORDLESS, Job, JobStatus, Missing, RunningAttempt

PRIORITIES = {"low": -1, "normal": 0, "high": 1}
_PRIORITY_NAMES = {value: name for name, value in PRIORITIES.items()}


def job_view(
    job: Job, *, running: RunningAttempt | None = None, progress: dict[str, Any] | None = None
) -> dict[str, Any]:
    """:param running: the attempt that is under way, which Postgres does not have. :param progress: its last report."""
    if running is not None and job.status is JobStatus.QUEUED:
        job = _under_way(job, running)
    return {
        "id": job.id,
        "kind": job.kind,
        "status": job.status,
        "reason": job.reason,
        "function_id": job.function_id,
        "function": job.function_name,
        "version": job.version,
        "attempt": job.attempt,
        "progress": progress,
        "result": orjson.Fragment(job.result) if job.result is not None else None,
        "error": orjson.Fragment(job.error) if job.error is not None else None,
        "created_at": job.created_at,
        "priority": _PRIORITY_NAMES[job.priority],
        "run_at": job.run_at,
        "expires_at": job.expires_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "redrive_of": job.redrive_of,
        "callback_url": job.callback_url,
        "chained_from": job.chained_from,
        "chain_refused": job.chain_refused,
        "missing": _missing(job),
        "timings": {
            "queue_ms": job.queue_ms,
            "sandbox_ms": job.sandbox_ms,
            "run_ms": job.run_ms,
            "total_ms": job.total_ms,
        },
    }


def _under_way(job: Job, running: RunningAttempt) -> Job:
    """``job`` with the attempt that runs in place of the one before."""
    started_at = queue_ms = None
    if running.claimed_ms is not None:
        started_at = datetime.fromtimestamp(running.claimed_ms / 1000, UTC)
        queue_ms = max(0.0, (started_at - (job.run_at or job.created_at)).total_seconds() * 1000)
    return replace(
        job,
        status=JobStatus.RUNNING,
        attempt=running.attempt or job.attempt + 1,
        started_at=started_at,
        queue_ms=queue_ms,
        sandbox_ms=None,
        run_ms=None,
        total_ms=None,
    )


def _missing(job: Job) -> Missing | None:
    had = job.result if job.status is JobStatus.SUCCEEDED else job.error
    ended_with_something = job.status in (JobStatus.SUCCEEDED, JobStatus.FAILED) and job.reason not in WORDLESS
    if job.missing is None and had is None and ended_with_something:
        return Missing.EXPIRED
    return job.missing
