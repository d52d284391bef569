"""Callbacks of finished jobs: list them, send them again, read and rotate the secret that signs them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from aiohttp import web

from api import models, params
from api.call import Call
from api.keys import DELIVERIES, SETTINGS
from api.operation import CURSOR, LIMIT, Operation, Parameter, one_of
from api.routes.jobs import job_of
from shared.errors import BadRequest, NotFound
from shared.postgres.deliveries import Delivery, DeliveryStatus, WebhookSecret
from shared.postgres.jobs import HIGHEST_ID
from shared.scopes import Scope


def delivery_view(delivery: Delivery) -> dict[str, Any]:
    return {
        "id": delivery.id,
        "job_id": delivery.job_id,
        "url": delivery.url,
        "event": delivery.event,
        "status": delivery.status,
        "attempts": delivery.attempts,
        "next_at": delivery.next_at if delivery.status is DeliveryStatus.PENDING else None,
        "last_status": delivery.last_status,
        "last_error": delivery.last_error,
        "created_at": delivery.created_at,
        "attempted_at": delivery.attempted_at,
        "delivered_at": delivery.delivered_at,
    }


async def list_deliveries(request: web.Request, call: Call) -> web.Response:
    caller = call.caller
    return await _page(request, caller.user.id, job=None)


async def list_job_deliveries(request: web.Request, call: Call) -> web.Response:
    caller = call.caller
    job = await job_of(request, caller.user.id)
    return await _page(request, caller.user.id, job=job.id)


async def _page(request: web.Request, user: UUID, *, job: UUID | None) -> web.Response:
    settings = request.app[SETTINGS]
    limit = params.page_limit(request, default=settings.default_page, most=settings.max_page)
    cursor = params.decode_cursor(request.query.get("cursor"))
    try:
        before = HIGHEST_ID if cursor is None else UUID(cursor)
    except (ValueError, AttributeError, TypeError):
        raise params.bad_cursor() from None
    status = request.query.get("status")
    if status is not None and status not in set(DeliveryStatus):
        known = ", ".join(DeliveryStatus)
        raise BadRequest(f"status must be one of {known}.", code="invalid_parameter", field="status")
    found = await request.app[DELIVERIES].list(user, before=before, limit=limit + 1, job=job, status=status)
    following = params.encode_cursor(str(found[limit - 1].id)) if len(found) > limit else None
    return params.answer({"items": [delivery_view(each) for each in found[:limit]], "next": following})


async def redeliver(request: web.Request, call: Call) -> web.Response:
    """Send a callback once more, delivered or not; it keeps its id."""
    caller = call.caller
    identifier = params.uuid_in_path(request, "delivery")
    found = None if identifier is None else await request.app[DELIVERIES].redeliver(caller.user.id, identifier)
    if found is None:
        raise NotFound("You have no such delivery.", code="delivery_not_found")
    return params.answer(delivery_view(found), status=202)


async def read_webhook_secret(request: web.Request, call: Call) -> web.Response:
    caller = call.caller
    return _secret_answer(await request.app[DELIVERIES].secret(caller.user.id))


async def rotate_webhook_secret(request: web.Request, call: Call) -> web.Response:
    """Make a new secret. For a while callbacks are also signed with the old one, so that receivers have time to
    change."""
    caller = call.caller
    overlap_s = request.app[SETTINGS].callback_secret_overlap_seconds
    return _secret_answer(await request.app[DELIVERIES].rotate_secret(caller.user.id, overlap_s=overlap_s))


def _secret_answer(found: WebhookSecret) -> web.Response:
    document = {"secret": found.secret, "created_at": found.created_at, "previous_until": found.previous_until}
    return params.answer(document, headers={"Cache-Control": "no-store"})


_STATUS = Parameter(name="status", description="Only those in this state.", schema=one_of(DeliveryStatus))

OPERATIONS = (
    Operation(
        method="GET",
        path="/api/deliveries",
        handler=list_deliveries,
        scope=Scope.READ,
        summary="List your callbacks, newest first",
        parameters=(_STATUS, LIMIT, CURSOR),
        responses={200: models.DeliveryPage},
    ),
    Operation(
        method="GET",
        path="/api/jobs/{job}/deliveries",
        handler=list_job_deliveries,
        scope=Scope.READ,
        summary="List a job's callbacks",
        parameters=(_STATUS, LIMIT, CURSOR),
        responses={200: models.DeliveryPage},
    ),
    Operation(
        method="POST",
        path="/api/deliveries/{delivery}/redeliver",
        handler=redeliver,
        scope=Scope.INVOKE,
        summary="Send a callback once more, under the same id",
        responses={202: models.DeliveryView},
    ),
    Operation(
        method="GET",
        path="/api/webhook-secret",
        handler=read_webhook_secret,
        scope=Scope.ADMIN,
        summary="Read the secret that your callbacks are signed with",
        responses={200: models.WebhookSecretView},
    ),
    Operation(
        method="POST",
        path="/api/webhook-secret/rotate",
        handler=rotate_webhook_secret,
        scope=Scope.ADMIN,
        summary="Make another secret; the one before signs along for a while",
        responses={200: models.WebhookSecretView},
    ),
)
