"""Invoke many times at once: one request, one commit, one answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from api import models, params
from api.call import EVENT, Call
from api.keys import ADMISSION, RESOLVER, SETTINGS, SUBMITTER
from api.operation import CALLBACK_URL, RATES, Operation
from api.rates import within_rate
from shared.errors import BadRequest, Invalid
from shared.event import complete
from shared.ids import new_id
from shared.jsontext import elements, member
from shared.queue.message import now_ms
from shared.scopes import Scope
from shared.settings import Settings
from shared.submission.submission import Submission

_LEVELS = 2  # around an event: the list and the object that it is in


async def invoke_batch(request: web.Request, call: Call) -> web.Response:
    """Accept a job for each item, all in one commit.

    The answer has an entry for each item, in the same order: the job's id, or the error for which that item alone was
    refused.
    """
    app = request.app
    caller = call.caller
    settings = app[SETTINGS]
    events = await _events(call.data, settings)
    if (name := "Idempotency-Key") in request.headers:
        raise BadRequest(f"{name} is not a parameter of a batch.", code="unknown_parameter", field=name)
    callback_url = params.callback_url(request, settings.callback_networks)
    target, version_id, function_settings = await app[RESOLVER].resolve(caller.user.id, request.match_info["function"])
    accepted_ms = now_ms()
    # A user's jobs wait in the order of their ids, and ids of one millisecond are in random order.
    ids = sorted(new_id() for _ in events)
    submissions: list[Submission] = []
    entries: list[dict[str, Any]] = []
    for event, job_id in zip(events, ids, strict=True):
        if isinstance(event, dict):
            entries.append(event)
            continue
        submission = Submission(
            id=job_id,
            user_id=caller.user.id,
            function_id=target.function_id,
            version_id=version_id,
            concurrency=function_settings.concurrency,
            accepted_ms=accepted_ms,
            payload=event,
            callback_url=callback_url,
        )
        submissions.append(submission)
        entries.append({"job_id": job_id})
    if not submissions:
        raise Invalid("No item could be accepted: see items.", code="no_item_accepted", extra={"items": entries})
    await within_rate(request, caller.user.id, target.function_id, function_settings, calls=len(submissions))
    await app[ADMISSION].admit(caller.user.id, len(submissions))
    await app[SUBMITTER].submit_together(submissions)
    return params.answer({"items": entries}, status=202)


async def _events(data: bytes, settings: Settings) -> list[bytes | dict[str, Any]]:
    """The events of a batch as JSON texts; in place of one that is not as it must be, what the answer says of it.

    The parsed batch takes many times as much memory, and is freed when this returns, not when the batch is accepted.
    """
    document = params.parse_json(data, max_depth=settings.max_json_depth + _LEVELS) if data else {}
    items = params.validate(models.InvokeBatchBody, document).items
    if not 1 <= len(items) <= settings.max_batch:
        raise Invalid(f"items must have 1 to {settings.max_batch} elements.", code="invalid_field", field="items")
    texts = await asyncio.to_thread(_texts, data)
    if len(texts) != len(items):
        raise Invalid("items: write this name without escapes, and once.", code="invalid_field", field="items")
    return [_event(item, text) for item, text in zip(items, texts, strict=True)]


def _event(item: Any, text: bytes) -> bytes | dict[str, Any]:
    try:
        params.validate(models.InvokeBody, item)
    except Invalid as error:
        return {"error": {"code": error.code, "detail": error.message, "field": error.field}}
    return complete(text, item)


def _texts(data: bytes) -> Sequence[bytes]:
    """The items as they were sent."""
    items = member(data, b"items")
    return [] if items is None else elements(items)


OPERATIONS = (
    Operation(
        method="POST",
        path="/api/functions/{function}/invoke-batch",
        handler=invoke_batch,
        scope=Scope.INVOKE,
        summary="Accept many jobs of a function at once",
        body=models.InvokeBatchBody,
        limit=EVENT,
        parses=True,
        parameters=(CALLBACK_URL,),
        responses={202: models.BatchAccepted},
        headers={"default": RATES, 202: RATES},
    ),
)
