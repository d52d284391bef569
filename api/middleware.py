"""Around every request: an id, errors as problem documents, a log line, CORS, and headers that keep browsers safe."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from http import HTTPStatus

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler

from api.keys import CORS_ORIGINS, LEAVING, RATE_HEADERS, REQUEST_ID
from shared.errors import BadRequest, ContainerPubError, http_status
from shared.ids import new_id

log = logging.getLogger("api.request")

_GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ALLOWED_HEADERS = "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Prefer, X-Request-ID"
_EXPOSED_HEADERS = (
    "Idempotent-Replayed, Location, Preference-Applied, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, "
    "Retry-After, X-Request-ID"
)
_CODES = {400: "bad_request", 401: "unauthenticated", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}


def problem(error: ContainerPubError, request_id: str, *, status: int | None = None) -> web.Response:
    """``error`` as ``application/problem+json``, with its class's status unless another is given."""
    status = status or http_status(error)
    document: dict[str, object] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": error.code,
        "detail": _text(error.message),
        "request_id": request_id,
    }
    if error.field is not None:
        document["field"] = _text(error.field)
    document.update(error.extra)
    response = web.Response(body=orjson.dumps(document), status=status, content_type="application/problem+json")
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _text(text: str) -> str:
    # Bytes of a request line that are not UTF-8 arrive as lone surrogates, which JSON text cannot hold.
    return text.encode("utf-8", "backslashreplace").decode()


def _http_problem(error: web.HTTPException, request_id: str) -> web.Response:
    sentence = {
        404: "There is nothing at this address.",
        405: "This address does not take that method.",
        413: "The request is larger than this installation takes.",
    }.get(error.status, error.reason or "The request cannot be served.")
    own = ContainerPubError(sentence, code=_CODES.get(error.status, f"http_{error.status}"))
    response = problem(own, request_id, status=error.status)
    if isinstance(error, web.HTTPMethodNotAllowed):
        response.headers["Allow"] = error.headers["Allow"]
    return response


@web.middleware
async def around(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The only middleware, since each further layer would cost every request time."""
    started = time.perf_counter()
    given = request.headers.get("X-Request-ID", "")
    request_id = given if _GIVEN_ID.fullmatch(given) else str(new_id())
    request[REQUEST_ID] = request_id
    response: web.StreamResponse
    try:
        origin = request.headers.get("Origin")
        if origin is not None and request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            response = web.Response(status=204)
        else:
            response = await handler(request)
    except ContainerPubError as error:
        response = problem(error, request_id)
    except (web.RequestPayloadError, HttpProcessingError):
        sentence = "The body of the request is broken: its encoding or its framing is wrong."
        response = problem(BadRequest(sentence, code="broken_body"), request_id)
        response.force_close()
    except web.HTTPException as error:
        response = _http_problem(error, request_id) if error.status >= 400 else error
    except (asyncio.CancelledError, ConnectionResetError):
        log.info("request abandoned", extra={"request": request_id, "method": request.method, "path": request.path})
        raise
    except Exception:
        log.exception("request failed", extra={"request": request_id, "method": request.method, "path": request.path})
        response = problem(
            ContainerPubError("Something is wrong on our side; the log has the request id.", code="internal_error"),
            request_id,
        )
    if response.status >= 400 and not request.content.is_eof():
        response.force_close()  # the rest of the body is not read, so the connection cannot be used again
    mark(request, response)
    if log.isEnabledFor(logging.INFO):
        took_ms = round((time.perf_counter() - started) * 1000, 2)
        log.info(
            "request",
            extra={
                "request": request_id,
                "method": request.method,
                "path": request.path,
                "status": response.status,
                "ms": took_ms,
            },
        )
    return response


def mark(request: web.Request, response: web.StreamResponse) -> None:
    """Set the headers that every response has; call it before a stream begins."""
    headers = response.headers
    headers["X-Request-ID"] = request[REQUEST_ID]
    headers["X-Content-Type-Options"] = "nosniff"
    if request.app[LEAVING].is_set():
        response.force_close()  # this process stops: the client's next request must go to another one
    headers["Cache-Control"] = headers.get("Cache-Control", "no-store")
    if (rates := request.get(RATE_HEADERS)) is not None:
        headers.update(rates)
    origin = request.headers.get("Origin")
    if origin is not None:
        _allow_origin(request, response, origin)


def _allow_origin(request: web.Request, response: web.StreamResponse, origin: str) -> None:
    response.headers["Vary"] = "Origin"
    if origin not in request.app[CORS_ORIGINS]:
        return
    response.headers["Access-Control-Allow-Origin"] = origin
    response.headers["Access-Control-Expose-Headers"] = _EXPOSED_HEADERS
    if request.method == "OPTIONS":
        response.headers["Access-Control-Allow-Methods"] = "GET, POST, PUT, PATCH, DELETE"
        response.headers["Access-Control-Allow-Headers"] = _ALLOWED_HEADERS
        response.headers["Access-Control-Max-Age"] = "600"
