"""Jobs: read and wait, list, cancel, redrive."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from aiohttp import web

from api import models, params
from api.call import Call
from api.keys import FUNCTIONS, JOBS, PENDING_REPLIES, QUEUE, SETTINGS, VERSIONS
from api.operation import CURSOR, LIMIT, WAIT, Operation, Parameter, one_of
from api.resolver import no_such_function
from shared.errors import BadRequest, Conflict, NotFound, Unavailable
from shared.ids import time_of
from shared.jobs import FINAL, Job, JobKind, JobStatus, Reason, RunningAttempt
from shared.jobview import job_view
from shared.postgres.jobs import HIGHEST_ID, JobFilter
from shared.queue.message import queue_of
from shared.queue.queue import QUEUES, CancelledWhere, Queue
from shared.queue.scripts import QueueClosed
from shared.scopes import Scope

RECORD_S = 1.0
_FRESH_S = 60.0
_AT_ONCE = 100
_BETWEEN_LOOKS_S = 5.0  # a worker may die before it sends a push


async def job_views(queue: Queue, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """The views of jobs; those of running jobs with the attempt and progress that Redis has."""
    running: dict[UUID, RunningAttempt] = {}
    progress: dict[UUID, dict[str, Any]] = {}
    for kind in {queue_of(job.kind) for job in jobs if not job.final}:
        open_jobs = [job.id for job in jobs if not job.final and queue_of(job.kind) == kind]
        try:
            found = await queue.running(kind, open_jobs)
        except Unavailable:
            continue
        running |= {job: attempt for job, attempt in zip(open_jobs, found, strict=True) if attempt is not None}
    try:
        for (job, attempt), said in zip(running.items(), await queue.progress(list(running)), strict=True):
            if said is not None and said.pop("epoch", None) == attempt.epoch:  # else an earlier attempt said it
                progress[job] = said
    except Unavailable:
        pass
    return [job_view(job, running=running.get(job.id), progress=progress.get(job.id)) for job in jobs]


async def job_of(request: web.Request, user: UUID) -> Job:
    """The caller's job that the path names. :raises NotFound: also for another user's.

    The record of a synchronous call is written within milliseconds of its answer; a request that comes sooner waits.
    """
    job_id = params.uuid_in_path(request, "job")
    job = await request.app[JOBS].get(user, job_id) if job_id is not None else None
    if job is None and job_id is not None and _is_fresh(job_id):
        job = await await_end(request.app, user, job_id, RECORD_S)
    if job is None:
        raise NotFound("You have no such job.", code="job_not_found")
    return job


async def await_end(
    app: web.Application, user: UUID, job_id: UUID, wait_s: float, *, until: Callable[[Job], bool] = lambda job: False
) -> Job | None:
    """The job once it is final or ``until`` holds, or as it is after ``wait_s`` seconds or when this process stops;
    None if the user has no such job by then.

    Watches for the end before it reads the job, so that it misses no end in between.
    """
    pending, jobs = app[PENDING_REPLIES], app[JOBS]
    event = pending.watch(job_id)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_s
    try:
        while True:
            event.clear()
            job = await jobs.get(user, job_id)
            left = deadline - loop.time()
            if left <= 0 or pending.leaving or (job is not None and (job.final or until(job))):
                return job
            try:
                async with asyncio.timeout(min(left, _BETWEEN_LOOKS_S)):
                    await event.wait()
            except TimeoutError:
                pass
    finally:
        pending.unwatch(job_id, event)


def _is_fresh(job: UUID) -> bool:
    """Whether the job is so young that its record may still be on its way to Postgres."""
    try:
        return abs((datetime.now(UTC) - time_of(job)).total_seconds()) < _FRESH_S
    except ValueError:
        return False


async def read_job(request: web.Request, call: Call) -> web.Response:
    caller = call.caller
    wait_s = params.number_parameter(request, "wait", most=request.app[SETTINGS].max_wait_seconds)
    job = await job_of(request, caller.user.id)
    if wait_s and not job.final:
        job = await await_end(request.app, caller.user.id, job.id, wait_s) or job
    return params.answer((await job_views(request.app[QUEUE], [job]))[0])


async def list_jobs(request: web.Request, call: Call) -> web.Response:
    caller = call.caller
    settings, queue, user = request.app[SETTINGS], request.app[QUEUE], caller.user.id
    limit = params.page_limit(request, default=settings.default_page, most=settings.max_page)
    cursor = params.decode_cursor(request.query.get("cursor"))
    try:
        before = HIGHEST_ID if cursor is None else UUID(cursor)
    except (ValueError, AttributeError, TypeError):
        raise params.bad_cursor() from None
    jobs, more = await request.app[JOBS].list(user, await asked_for(request, user), before=before, limit=limit)
    following = params.encode_cursor(str(jobs[-1].id)) if more else None
    return params.answer({"items": await job_views(queue, jobs), "next": following})


async def asked_for(request: web.Request, user: UUID) -> JobFilter:
    """The jobs that the query names, by function, status and reason. Raises :class:`NotFound`, :class:`BadRequest`."""
    reference = request.query.get("function")
    function = None if reference is None else await request.app[FUNCTIONS].get(user, reference)
    if reference is not None and function is None:
        raise no_such_function(reference)
    status = _one_of(request, "status", JobStatus)
    first, last = _ids_that_begin(request.query.get("id"))
    where = JobFilter(
        first=first,
        last=last,
        function=None if function is None else function.id,
        statuses=None if status is None else [status],
        reason=_one_of(request, "reason", Reason),
    )
    if status not in (JobStatus.RUNNING, JobStatus.QUEUED):
        return where
    # Postgres has queued and running jobs as queued; Redis knows which of them run.
    queue = request.app[QUEUE]
    running = [job for name in QUEUES for job in await queue.running_of_user(name, user)]
    where = replace(where, statuses=[JobStatus.QUEUED, JobStatus.RUNNING])
    return replace(where, among=running) if status == JobStatus.RUNNING else replace(where, except_for=running)


def _ids_that_begin(text: str | None) -> tuple[UUID | None, UUID | None]:
    """The first and the last id that begin with ``text``."""
    if text is None:
        return None, None
    digits = text.replace("-", "").lower()
    if not re.fullmatch(r"[0-9a-f]{1,32}", digits):
        raise BadRequest("id must be the beginning of a job's id.", code="invalid_parameter", field="id")
    return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))


def _one_of(request: web.Request, name: str, known: type[StrEnum]) -> str | None:
    value = request.query.get(name)
    if value is not None and value not in set(known):
        raise BadRequest(f"{name} must be one of {', '.join(known)}.", code="invalid_parameter", field=name)
    return value


async def cancel_job(request: web.Request, call: Call) -> web.Response:
    caller = call.caller
    job = await job_of(request, caller.user.id)
    if job.status is JobStatus.CANCELLED:
        return params.answer(job_view(job))
    if job.final:
        raise Conflict(f"The job has ended already: {job.status}.", code="job_final")
    if job.kind is JobKind.DELETE:
        raise Conflict("A delete cannot be cancelled.", code="not_cancellable")
    await _cancel(request.app, job)
    wait_s = request.app[SETTINGS].dependency_timeout_seconds
    job = await await_end(request.app, caller.user.id, job.id, wait_s) or job
    if not job.final and not await request.app[QUEUE].records() and await request.app[JOBS].cancel(job.id):
        # No record is on its way: an earlier cancel kept the job off the queue and did not reach Postgres.
        job = await request.app[JOBS].get(caller.user.id, job.id) or job
    if not job.final:
        raise Unavailable("The job's end is not recorded yet; look again.", retry_after_s=1)
    if job.status is not JobStatus.CANCELLED:
        raise Conflict(f"The job has ended already: {job.status}.", code="job_final")
    return params.answer(job_view(job))


async def _cancel(app: web.Application, job: Job) -> bool:
    """Cancel a job wherever it is; False if it ended before, though its record may still be on its way to Postgres."""
    try:
        where = await app[QUEUE].cancel(queue_of(job.kind), job.id)
    except QueueClosed as error:
        raise Unavailable("The queue is being rebuilt; try again.", retry_after_s=1) from error
    ended = where in (CancelledWhere.QUEUED, CancelledWhere.RUNNING)
    if where is CancelledWhere.ABSENT:
        ended = await app[JOBS].cancel(job.id)
    if job.kind is JobKind.DEPLOY and job.version_id is not None:
        await app[VERSIONS].fail(job.version_id, reason="cancelled", error="The deploy was cancelled.")
    return ended


async def cancel_jobs(request: web.Request, call: Call) -> web.Response:
    """Cancel the newest matching jobs, at most a batch; the answer says whether there are more."""
    caller = call.caller
    app, user = request.app, caller.user.id
    if request.query.get("status") in FINAL:
        raise BadRequest("Jobs that have ended cannot be cancelled.", code="invalid_parameter", field="status")
    where = await asked_for(request, user)
    if where.function is None and where.statuses is None:
        raise BadRequest("Name the jobs by function, status or both.", code="invalid_parameter", field="function")
    if where.statuses is None:
        where = replace(where, statuses=[status for status in JobStatus if status not in FINAL])
    most, wait_s = app[SETTINGS].max_batch, app[SETTINGS].dependency_timeout_seconds
    jobs, more = await app[JOBS].list(user, where, limit=most)
    chosen = [job for job in jobs if job.kind is not JobKind.DELETE]
    ends: list[bool] = []
    for start in range(0, len(chosen), _AT_ONCE):
        ends += await asyncio.gather(*(_cancel(app, job) for job in chosen[start : start + _AT_ONCE]))
    # Wait, so that the caller's next request does not find the same jobs again.
    for start in range(0, len(chosen), _AT_ONCE):
        await asyncio.gather(*(await_end(app, user, job.id, wait_s) for job in chosen[start : start + _AT_ONCE]))
    return params.answer({"cancelled": sum(ends), "more": more})


_STATUS = Parameter(name="status", description="Only jobs in this state.", schema=one_of(JobStatus))
_ID = Parameter(name="id", description="Only jobs whose id begins with this.")
FUNCTION = Parameter(name="function", description="Only jobs of this function, by id or name.")
REASON = Parameter(name="reason", description="Only jobs that failed for this reason.", schema=one_of(Reason))

OPERATIONS = (
    Operation(
        method="GET",
        path="/api/jobs/{job}",
        handler=read_job,
        scope=Scope.READ,
        summary="Read a job, or wait for its end; a wait that runs out answers the state so far",
        parameters=(WAIT,),
        responses={200: models.JobView},
    ),
    Operation(
        method="GET",
        path="/api/jobs",
        handler=list_jobs,
        scope=Scope.READ,
        summary="List your jobs, newest first",
        parameters=(_STATUS, FUNCTION, REASON, _ID, LIMIT, CURSOR),
        responses={200: models.JobPage},
    ),
    Operation(
        method="POST",
        path="/api/jobs/{job}/cancel",
        handler=cancel_job,
        scope=Scope.INVOKE,
        summary="Cancel a job; one that runs is killed",
        responses={200: models.JobView},
    ),
    Operation(
        method="POST",
        path="/api/jobs/cancel",
        handler=cancel_jobs,
        scope=Scope.INVOKE,
        summary="Cancel jobs by filter, up to a batch at a time",
        parameters=(_STATUS, FUNCTION),
        responses={200: models.CancelledPage},
    ),
)
