"""Invoke: run a function and wait for its result, or accept a job and answer with its id."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from typing import Any
from uuid import UUID

import orjson
from aiohttp import web

from api import models, params
from api.call import EVENT, Call
from api.keys import ADMISSION, API_ID, JOBS, PAYLOAD_STORE, PENDING_REPLIES, QUEUE, RESOLVER, SETTINGS, SUBMITTER
from api.operation import CALLBACK_URL, DELAY, EXPIRES_AT, IDEMPOTENCY_KEY, PREFER, PRIORITY, RATES, RUN_AT, Operation
from api.pending_replies import Leaving
from api.rates import within_rate
from api.routes.jobs import await_end
from shared.errors import Unavailable, Unreadable, WaitTimeout
from shared.event import complete
from shared.ids import new_id
from shared.jobs import PLATFORM_REASONS, Job, Missing, Reason
from shared.queue.message import NO_REPLY, now_ms
from shared.queue.queue import CancelledWhere
from shared.queue.records import Record
from shared.queue.scripts import QueueClosed
from shared.scopes import Scope
from shared.sealing import Part
from shared.submission.submission import IdempotencyKey, Submission

_LATE_REPLY_S = 1.0


async def invoke(request: web.Request, call: Call) -> web.Response:
    """Run a function.

    Without ``Prefer`` the call waits for the function's timeout plus ``QUEUE_TIMEOUT_SECONDS`` plus one second.
    Postgres gets the job with the record of its end, or before that if this process has to stop. With ``respond-async``
    the job is committed first, and the answer is its id. With an ``Idempotency-Key`` the job is committed first too,
    and a call with the same key waits for the same job. With ``delay`` or ``run_at`` the job waits in Postgres until it
    is due.
    """
    app = request.app
    caller = call.caller
    settings = app[SETTINGS]
    payload = _event(call.data, max_depth=settings.max_json_depth)
    key = params.idempotency_key(request)
    respond_async, wait_s = params.preferences(request, max_wait=settings.max_wait_seconds)
    run_at, expires_at, priority, callback_url = None, None, 0, None
    if request.query:
        run_at = params.due_time(request, max_delay=settings.max_delay_seconds)
        expires_at = params.expiry(request, due=run_at, max_delay=settings.max_delay_seconds)
        priority = params.priority(request)
        callback_url = params.callback_url(request, settings.callback_networks)
        respond_async = respond_async or set(request.query) != {"priority"}
    if wait_s == 0:
        respond_async, wait_s = True, None
    target, version_id, function_settings = await app[RESOLVER].resolve(caller.user.id, request.match_info["function"])
    await within_rate(request, caller.user.id, target.function_id, function_settings)
    await app[ADMISSION].admit(caller.user.id)
    if run_at is not None:
        await app[ADMISSION].admit_later(caller.user.id)
    patience_s = function_settings.timeout_s + settings.queue_timeout_seconds + 1
    durable = respond_async or key is not None
    accepted_ms = now_ms()
    deadline_ms = 0
    if expires_at is not None:
        deadline_ms = round(expires_at.timestamp() * 1000)
    elif not durable and wait_s is None:
        # A call with Prefer: wait goes on as a durable job after its wait, so the queue must not drop it before.
        deadline_ms = accepted_ms + round(patience_s * 1000)
    submission = Submission(
        id=new_id(),
        user_id=caller.user.id,
        function_id=target.function_id,
        version_id=version_id,
        concurrency=function_settings.concurrency,
        deadline_ms=deadline_ms,
        priority=priority,
        reply=NO_REPLY if durable else app[API_ID],
        accepted_ms=accepted_ms,
        payload=payload,
        run_at=run_at,
        counted=run_at is not None and "delay" in request.query,
        callback_url=callback_url,
        idempotency=None if key is None else _idempotency(request, key, target.function_id, call.data),
    )
    if not durable:
        return await _wait(app, submission, patience_s if wait_s is None else wait_s, durable=wait_s is not None)
    job_id = await app[SUBMITTER].submit(submission)
    response = await _follow(app, caller.user.id, job_id, wait_s if respond_async or wait_s else patience_s)
    if job_id != submission.id:
        response.headers["Idempotent-Replayed"] = "true"
    return response


def _event(data: bytes, *, max_depth: int) -> bytes:
    """The event as JSON text. The parsed event takes many times as much memory, and is freed when this returns, not
    when the call is answered."""
    event = params.parse_json(data, max_depth=max_depth) if data else {}
    params.validate(models.InvokeBody, event)
    return complete(data, event)


def _idempotency(request: web.Request, key: str, function: UUID, data: bytes) -> IdempotencyKey:
    asked = sha256(function.bytes + request.query_string.encode() + b"\n" + data).digest()
    return IdempotencyKey(key=key, fingerprint=asked, keep_s=request.app[SETTINGS].idempotency_seconds)


async def _follow(app: web.Application, user: UUID, job_id: UUID, wait_s: float | None) -> web.Response:
    """The end of a durable job if it comes within ``wait_s``, else its id."""
    job = None if wait_s is None else await await_end(app, user, job_id, wait_s)
    return _accepted(job_id) if job is None or not job.final else _job_answer(job)


async def _wait(app: web.Application, submission: Submission, wait_s: float, *, durable: bool) -> web.Response:
    pending = app[PENDING_REPLIES]
    if not pending.listening:
        raise Unavailable("The queue is away; try again.", retry_after_s=1)
    reply = pending.expect_reply(submission.id)
    try:
        async with asyncio.timeout(wait_s):
            await app[SUBMITTER].send(submission)
            pending.sent(submission.id)
            data = await reply
    except TimeoutError:
        return await (_make_durable(app, submission) if durable else _give_up(app, submission, reply))
    except Leaving:
        return await _make_durable(app, submission)
    except asyncio.CancelledError:
        # The client went away: cancel its call, so that the slot goes to another one.
        app[SUBMITTER].abandon(submission)
        raise
    finally:
        pending.drop_reply(submission.id)
    return await _reply_answer(app, data)


async def _make_durable(app: web.Application, submission: Submission) -> web.Response:
    """Put the job into Postgres, since the caller's wait is over or this process stops, and answer with its state
    there: the result if it has ended, else its id."""
    try:
        await app[SUBMITTER].keep(submission)
        job = await app[JOBS].get(submission.user_id, submission.id)
    except Unavailable as away:
        away.extra |= {"job_id": str(submission.id), "may_have_run": True}
        raise
    return _job_answer(job) if job is not None and job.final else _accepted(submission.id)


async def _give_up(app: web.Application, submission: Submission, reply: asyncio.Future[bytes]) -> web.Response:
    """End a job whose caller's wait ran out, and raise the error that says whether it had started."""
    try:
        where = await app[QUEUE].cancel(
            submission.queue, submission.id, queued=("failed", "queue_timeout"), running=("cancelled", "")
        )
    except QueueClosed as error:
        raise Unavailable("The queue is being rebuilt.", retry_after_s=1, extra={"may_have_run": True}) from error
    extra: dict[str, object] = {"job_id": str(submission.id)}
    if where is CancelledWhere.RUNNING:
        raise WaitTimeout("The function was still running when the wait ran out; it was cancelled.", extra=extra)
    if where is CancelledWhere.QUEUED:
        raise Unavailable(
            "No worker had a free slot in time; the call did not run.",
            code="queue_timeout",
            retry_after_s=1,
            extra=extra,
        )
    # The job ended at the same moment: its reply is here or on its way.
    try:
        async with asyncio.timeout(_LATE_REPLY_S):
            data = await reply
    except TimeoutError:
        extra["may_have_run"] = True
        raise Unavailable("The call was lost on the queue.", retry_after_s=1, extra=extra) from None
    return await _reply_answer(app, data)


def _accepted(job: UUID) -> web.Response:
    return params.answer(
        {"job_id": job}, status=202, headers={"Location": f"/api/jobs/{job}", "Preference-Applied": "respond-async"}
    )


async def _reply_answer(app: web.Application, data: bytes) -> web.Response:
    record, payload_store = Record.decode(data), app[PAYLOAD_STORE]
    try:
        result = record.result and await payload_store.get(record.result, record.id, Part.RESULT)
        error = record.error and await payload_store.get(record.error, record.id, Part.ERROR)
    except Unavailable as mistake:
        mistake.extra["job_id"] = str(record.id)
        raise
    return _answer(record.id, record.status, record.reason, result, error)


def _job_answer(job: Job) -> web.Response:
    extra: dict[str, object] = {"job_id": str(job.id)}
    if job.missing is Missing.UNREADABLE:
        raise Unreadable("The job's result is sealed with a key that the server does not have.", extra=extra)
    if job.missing is Missing.AWAY:
        raise Unavailable("The artifact store, which has the result, is away; read the job later.", extra=extra)
    return _answer(job.id, job.status, job.reason, job.result, job.error)


def _answer(job: UUID, status: str, reason: str | None, result: bytes | None, error: bytes | None) -> web.Response:
    """200, also when the function itself failed; 503 with the job's id when the platform failed."""
    if status == "succeeded":
        return params.raw_answer(b'{"success":true,"result":%b,"job_id":"%b"}' % (result or b"null", str(job).encode()))
    if reason in PLATFORM_REASONS:
        raise Unavailable(
            _PLATFORM_SENTENCES.get(reason, "The platform could not run the function; try again."),
            code=reason,
            retry_after_s=None if reason == Reason.EXPIRED else 1,  # a retry after its expires_at makes no sense
            extra={"job_id": str(job)},
        )
    if status == "cancelled":
        document: dict[str, Any] = {"type": "Cancelled", "message": "The job was cancelled."}
        error, reason = orjson.dumps(document), "cancelled"
    return params.raw_answer(
        b'{"success":false,"error":%b,"reason":%b,"job_id":"%b"}'
        % (error or b"null", orjson.dumps(reason), str(job).encode())
    )


_PLATFORM_SENTENCES = {
    "expired": "The job had not started by its expires_at; it did not run.",
    "queue_timeout": "No worker had a free slot in time; the call did not run.",
    "worker_lost": "The workers that ran the call were lost, several times over.",
    "sandbox_start_failed": "No sandbox could be started for the function.",
}

OPERATIONS = (
    Operation(
        method="POST",
        path="/api/functions/{function}/invoke",
        handler=invoke,
        scope=Scope.INVOKE,
        summary="Run a function and wait for its result, or accept it as a job",
        body=models.InvokeBody,
        limit=EVENT,
        parses=True,
        parameters=(PREFER, IDEMPOTENCY_KEY, DELAY, RUN_AT, EXPIRES_AT, PRIORITY, CALLBACK_URL),
        responses={200: models.InvokeResult, 202: models.Accepted},
        headers={
            "default": RATES,
            200: ("Idempotent-Replayed", *RATES),
            202: ("Location", "Preference-Applied", "Idempotent-Replayed", *RATES),
        },
    ),
)
