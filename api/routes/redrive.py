"""Redrive: repeats failed jobs as new ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from uuid import UUID

from aiohttp import web

from api import models, params
from api.call import Call
from api.keys import ADMISSION, JOBS, RESOLVER, SETTINGS, SUBMITTER
from api.operation import Operation
from api.routes.jobs import FUNCTION, REASON, asked_for, job_of
from shared.errors import Conflict
from shared.ids import new_id
from shared.jobs import JobKind, JobStatus
from shared.queue.message import now_ms
from shared.scopes import Scope
from shared.submission.submission import Submission


async def redrive_job(request: web.Request, call: Call) -> web.Response:
    """Repeat a failed invoke as a new job. A second call for the same job answers with the same new one."""
    caller = call.caller
    app, user = request.app, caller.user.id
    job = await job_of(request, user)
    if job.kind is not JobKind.INVOKE or job.status is not JobStatus.FAILED:
        raise Conflict("Only an invoke that failed can be repeated.", code="not_redrivable")
    if job.payload is None:
        raise Conflict("The job's payload is not kept any more.", code="not_redrivable")
    new = await app[JOBS].repetition_of(job.id)
    headers = {"Idempotent-Replayed": "true"}
    if new is None:
        repetitions = await _repetitions(app, user, [(job.id, job.function_id)])
        if accepted := await app[SUBMITTER].redrive(user, repetitions):
            new, headers = accepted[0].id, {}
        else:  # another call has repeated it meanwhile
            new = await app[JOBS].repetition_of(job.id)
    if new is None:
        raise Conflict("The job's payload is not kept any more.", code="not_redrivable")
    headers["Location"] = f"/api/jobs/{new}"
    return params.answer({"job_id": new, "redrive_of": job.id}, status=202, headers=headers)


async def redrive_jobs(request: web.Request, call: Call) -> web.Response:
    """Repeat the oldest matching failed invokes that were not repeated yet, at most a batch."""
    caller = call.caller
    app, user = request.app, caller.user.id
    where = await asked_for(request, user)
    most = app[SETTINGS].max_batch
    found = await app[JOBS].redrivable(user, function=where.function, reason=where.reason, limit=most + 1)
    accepted: Sequence[Submission] = ()
    if found:
        accepted = await app[SUBMITTER].redrive(user, await _repetitions(app, user, found[:most]))
    items = [{"job_id": job.id, "redrive_of": job.redrive_of} for job in accepted]
    return params.answer({"items": items, "more": len(found) > most}, status=202)


async def _repetitions(app: web.Application, user: UUID, failed: Sequence[tuple[UUID, UUID]]) -> list[Submission]:
    """Submissions that repeat failed jobs, given with their functions, on the versions that are live now.

    :raises NotFound: :raises Conflict: if a function is gone or cannot be called. :raises TooMany: beyond the quota.
    """
    ids = sorted(new_id() for _ in failed)  # jobs of a user wait in the order of their ids
    versions: dict[UUID, tuple[UUID, int]] = {}
    for function, count in Counter(function for _, function in failed).items():
        _, version_id, settings = await app[RESOLVER].resolve(user, str(function))
        await app[ADMISSION].admit(user, count)
        versions[function] = (version_id, settings.concurrency)
    return [
        Submission(
            id=new,
            user_id=user,
            function_id=function,
            version_id=versions[function][0],
            concurrency=versions[function][1],
            accepted_ms=now_ms(),
            redrive_of=old,
        )
        for new, (old, function) in zip(ids, failed, strict=True)
    ]


OPERATIONS = (
    Operation(
        method="POST",
        path="/api/jobs/{job}/redrive",
        handler=redrive_job,
        scope=Scope.INVOKE,
        summary="Repeat a failed job as a new one",
        responses={202: models.Redriven},
        headers={202: ("Location", "Idempotent-Replayed")},
    ),
    Operation(
        method="POST",
        path="/api/jobs/redrive",
        handler=redrive_jobs,
        scope=Scope.INVOKE,
        summary="Repeat failed jobs by filter, up to a batch at a time",
        parameters=(FUNCTION, REASON),
        responses={202: models.RedrivenPage},
    ),
)
