"""For operators and tools: health, readiness, the OpenAPI document."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable

from aiohttp import web

from api import models, params
from api.call import Call
from api.keys import LEAVING, OPENAPI, PENDING_REPLIES, POOL, QUEUE, SETTINGS, VERSION
from api.metrics import CONTENT_TYPE, prometheus_text
from api.operation import Operation
from shared.errors import Forbidden, Unauthenticated, Unavailable
from shared.postgres.pool import postgres_errors

_PROCESS_NOTICE = "The process engine is for development only: functions are not isolated from this machine."


async def health(request: web.Request, call: Call) -> web.Response:
    """Answer that this process lives; other processes are not asked."""
    settings = request.app[SETTINGS]
    document: dict[str, object] = {"status": "ok", "version": request.app[VERSION], "engine": settings.engine}
    if settings.engine == "process":
        document["notice"] = _PROCESS_NOTICE
    return params.answer(document)


async def _outcome(check: Awaitable[bool], no: str) -> str:
    try:
        async with asyncio.timeout(2):
            return "ok" if await check else no
    except (Unavailable, TimeoutError) as error:
        return getattr(error, "message", "no answer in time")


async def ready(request: web.Request, call: Call) -> web.Response:
    """Answer 200 if calls can be served: Postgres and Redis answer, the queue is open, a worker beats, and this process
    is not stopping."""
    app = request.app
    queue = app[QUEUE]

    async def postgres() -> bool:
        with postgres_errors():
            return bool(await app[POOL].fetchval("SELECT true"))

    async def workers() -> bool:
        return bool(await queue.beats())

    async def listening() -> bool:
        return app[PENDING_REPLIES].listening

    outcomes = await asyncio.gather(
        _outcome(postgres(), "no answer"),
        _outcome(queue.is_open(), "being rebuilt"),
        _outcome(workers(), "no worker yet"),
        _outcome(listening(), "not listening yet"),
    )
    checks = dict(zip(("postgres", "queue", "workers", "push"), outcomes, strict=True))
    # Read last: the process may have been told to stop during the other checks.
    checks["process"] = "stopping" if app[LEAVING].is_set() else "ok"
    good = all(outcome == "ok" for outcome in checks.values())
    return params.answer(
        {"status": "ready" if good else "not_ready", "checks": checks},
        status=200 if good else 503,
        headers=None if good else {"Retry-After": "1"},
    )


async def metrics(request: web.Request, call: Call) -> web.Response:
    """Figures in Prometheus's text format, of all workers and the queue."""
    token = request.app[SETTINGS].metrics_token.get_secret_value()
    if token:
        given = request.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), f"Bearer {token}".encode()):
            raise Unauthenticated("Send METRICS_TOKEN as a bearer token.")
    elif request.remote not in ("127.0.0.1", "::1") or "X-Forwarded-For" in request.headers:
        raise Forbidden("Metrics are for this machine only, unless METRICS_TOKEN is set.", code="metrics_closed")
    figures = await request.app[QUEUE].figures()
    return web.Response(body=prometheus_text(figures), headers={"Content-Type": CONTENT_TYPE})


async def openapi(request: web.Request, call: Call) -> web.Response:
    return params.raw_answer(request.app[OPENAPI])


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/health",
        handler=health,
        scope=None,
        summary="Is this process alive",
        responses={200: models.Health},
    ),
    Operation(
        method="GET",
        path="/api/ready",
        handler=ready,
        scope=None,
        summary="Can calls be served",
        responses={200: models.Readiness, 503: models.Readiness},
        headers={503: ("Retry-After",)},
    ),
    Operation(
        method="GET",
        path="/metrics",
        handler=metrics,
        scope=None,
        summary="Figures for Prometheus",
        responses={200: "text/plain"},
    ),
    Operation(
        method="GET",
        path="/api/openapi.json",
        handler=openapi,
        scope=None,
        summary="This document",
        responses={200: None},
    ),
)
