"""Jobs: read and wait, list, cancel."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
from aiohttp import web

from api import documents, models
from api.contract import CURSOR, LIMIT, WAIT, Operation, Parameter
from api.keys import FUNCTIONS, JOBS, QUEUE, SETTINGS, WAITING
from api.resolver import no_such_function
from api.session import authenticated
from shared.errors import BadRequest, Conflict, NotFound, Unavailable
from shared.ids import time_of
from shared.jobs import Job, JobKind, JobStatus
from shared.postgres.jobs import HIGHEST_ID
from shared.queue.message import queue_of
from shared.queue.queue import CancelledWhere, Queue
from shared.queue.scripts import QueueClosed

_RECORD_S = 1.0
_FRESH_S = 60.0
_BETWEEN_LOOKS_S = 5.0  # a push may be lost with the worker that was about to send it


def job_view(job: Job, *, running: bool = False) -> dict[str, Any]:
    """``running``: a worker holds the job's lease just now, which Postgres is not told of."""
    status = JobStatus.RUNNING if running and job.status is JobStatus.QUEUED else job.status
    return {
        "id": job.id,
        "kind": job.kind,
        "status": status,
        "reason": job.reason,
        "function_id": job.function_id,
        "version": job.version,
        "attempt": job.attempt + 1 if status is JobStatus.RUNNING else job.attempt,
        "result": orjson.Fragment(job.result) if job.result is not None else None,
        "error": orjson.Fragment(job.error) if job.error is not None else None,
        "created_at": job.created_at,
        "run_at": job.run_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "timings": {
            "queue_ms": job.queue_ms,
            "sandbox_ms": job.sandbox_ms,
            "run_ms": job.run_ms,
            "total_ms": job.total_ms,
        },
    }


async def job_views(queue: Queue, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """The views of jobs, with what Redis knows of those that run."""
    running: set[UUID] = set()
    for kind in {queue_of(job.kind) for job in jobs if not job.final}:
        open_jobs = [job.id for job in jobs if not job.final and queue_of(job.kind) == kind]
        try:
            flags = await queue.running(kind, open_jobs)
        except Unavailable:
            continue
        running.update(job for job, flag in zip(open_jobs, flags, strict=True) if flag)
    return [job_view(job, running=job.id in running) for job in jobs]


async def job_of(request: web.Request, user: UUID) -> Job:
    """The caller's job that the path names. :raises NotFound: also for somebody else's.

    The record of a synchronous call is written within milliseconds of its answer; whoever asks sooner waits for it.
    """
    job_id = documents.uuid_in_path(request, "job")
    job = await request.app[JOBS].get(user, job_id) if job_id is not None else None
    if job is None and job_id is not None and _is_fresh(job_id):
        job = await await_end(request.app, user, job_id, _RECORD_S)
    if job is None:
        raise NotFound("You have no such job.", code="job_not_found")
    return job


async def await_end(app: web.Application, user: UUID, job_id: UUID, wait_s: float) -> Job | None:
    """The job once it is final, or as it is when ``wait_s`` seconds are over; None if the user has none such by then.

    Watches before it looks, so that no end falls between the two.
    """
    waiting, jobs = app[WAITING], app[JOBS]
    event = waiting.watch(job_id)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_s
    try:
        while True:
            event.clear()
            job = await jobs.get(user, job_id)
            left = deadline - loop.time()
            if left <= 0 or (job is not None and job.final):
                return job
            try:
                async with asyncio.timeout(min(left, _BETWEEN_LOOKS_S)):
                    await event.wait()
            except TimeoutError:
                pass
    finally:
        waiting.unwatch(job_id, event)


def _is_fresh(job: UUID) -> bool:
    """Whether the id was made so lately that its record may still be on its way."""
    try:
        return abs((datetime.now(UTC) - time_of(job)).total_seconds()) < _FRESH_S
    except ValueError:
        return False


async def read_job(request: web.Request) -> web.Response:
    caller = await authenticated(request)
    wait_s = documents.number_parameter(request, "wait", most=request.app[SETTINGS].max_wait_seconds)
    job = await job_of(request, caller.user.id)
    if wait_s and not job.final:
        job = await await_end(request.app, caller.user.id, job.id, wait_s) or job
    return documents.answer((await job_views(request.app[QUEUE], [job]))[0])


async def list_jobs(request: web.Request) -> web.Response:
    caller = await authenticated(request)
    settings, queue, user = request.app[SETTINGS], request.app[QUEUE], caller.user.id
    limit = documents.page_limit(request, default=settings.default_page, most=settings.max_page)
    cursor = documents.decode_cursor(request.query.get("cursor"))
    try:
        before = HIGHEST_ID if cursor is None else UUID(cursor)
    except (ValueError, AttributeError, TypeError):
        raise documents.bad_cursor() from None
    function = None
    reference = request.query.get("function")
    if reference is not None:
        found = await request.app[FUNCTIONS].get(user, reference)
        if found is None:
            raise no_such_function(reference)
        function = found.id
    status = request.query.get("status")
    if status is not None and status not in set(JobStatus):
        raise BadRequest(f"status must be one of {', '.join(JobStatus)}.", code="invalid_parameter", field="status")
    among = except_for = None
    statuses = None if status is None else [status]
    if status in (JobStatus.RUNNING, JobStatus.QUEUED):
        # Postgres has both as queued; which of them run is known to Redis.
        running = [job for name in ("invoke", "build") for job in await queue.running_of_user(name, user)]
        statuses = [JobStatus.QUEUED, JobStatus.RUNNING]
        among, except_for = (running, None) if status == JobStatus.RUNNING else (None, running)
    jobs = await request.app[JOBS].list(
        user, before=before, function=function, statuses=statuses, among=among, except_for=except_for, limit=limit + 1
    )
    following = documents.encode_cursor(str(jobs[limit - 1].id)) if len(jobs) > limit else None
    return documents.answer({"items": await job_views(queue, jobs[:limit]), "next": following})


async def cancel_job(request: web.Request) -> web.Response:
    caller = await authenticated(request)
    job = await job_of(request, caller.user.id)
    if job.status is JobStatus.CANCELLED:
        return documents.answer(job_view(job))
    if job.final:
        raise Conflict(f"The job has ended already: {job.status}.", code="job_final")
    if job.kind is JobKind.DELETE:
        raise Conflict("A delete cannot be cancelled.", code="not_cancellable")
    try:
        where = await request.app[QUEUE].cancel(queue_of(job.kind), job.id)
    except QueueClosed as error:
        raise Unavailable("The queue is being rebuilt; try again.", retry_after_s=1) from error
    if where is CancelledWhere.ABSENT:
        await request.app[JOBS].cancel(job.id)
        # It may have been on its way to the queue: there it would still run, though no longer count.
        await request.app[QUEUE].cancel(queue_of(job.kind), job.id)
    if job.kind is JobKind.DEPLOY and job.version_id is not None:
        await request.app[FUNCTIONS].fail(job.version_id, reason="cancelled", error="The deploy was cancelled.")
    wait_s = request.app[SETTINGS].dependency_timeout_seconds
    job = await await_end(request.app, caller.user.id, job.id, wait_s) or job
    if job.final and job.status is not JobStatus.CANCELLED:
        raise Conflict(f"The job has ended already: {job.status}.", code="job_final")
    return documents.answer(job_view(job))


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/jobs/{job}",
        handler=read_job,
        summary="Read a job, or wait for its end; a wait that runs out answers the state so far",
        parameters=(WAIT,),
        responses={200: models.JobView},
    ),
    Operation(
        method="GET",
        path="/api/jobs",
        handler=list_jobs,
        summary="List your jobs, newest first",
        parameters=(
            Parameter(name="status", description="Only jobs in this state."),
            Parameter(name="function", description="Only jobs of this function, by id or name."),
            LIMIT,
            CURSOR,
        ),
        responses={200: models.JobPage},
    ),
    Operation(
        method="POST",
        path="/api/jobs/{job}/cancel",
        handler=cancel_job,
        summary="Cancel a job; one that runs is killed",
        responses={200: models.JobView},
    ),
)
