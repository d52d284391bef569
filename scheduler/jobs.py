"""A job of Postgres as a message for the queue."""

from __future__ import annotations

from shared.event import describe_payload
from shared.jobs import Job
from shared.queue.message import NO_VERSION, JobMessage


def message_of(job: Job) -> JobMessage:
    return JobMessage(
        id=job.id,
        kind=job.kind,
        user_id=job.user_id,
        function_id=job.function_id,
        version_id=job.version_id or NO_VERSION,
        concurrency=job.concurrency,
        attempt=job.attempt + 1,
        lost=job.lost,
        enqueued_ms=round((job.run_at or job.created_at).timestamp() * 1000),
        payload=job.payload or b"",
        request=describe_payload(job.payload),
    )
