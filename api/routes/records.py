"""The logs of functions, and the records of their attempts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
from aiohttp import web

from api import models, params
from api.call import Call
from api.keys import INVOCATIONS, SETTINGS
from api.operation import CURSOR, LIMIT, Operation, Parameter, one_of
from api.session import function_of
from shared.errors import BadRequest
from shared.postgres.invocations import NEWEST_INVOCATION, NEWEST_LOG
from shared.queue.records import epoch_text
from shared.scopes import Scope

LEVELS = ("debug", "info", "warning", "error", "critical")
_NUMBERS = (2**62, 2**31)  # bounds of a cursor's epoch and sequence number
_TIMINGS = ("queue_ms", "sandbox_ms", "run_ms", "total_ms", "cpu_ms")


def _position(cursor: Any, parts: int) -> tuple[Any, ...] | None:
    if cursor is None:
        return None
    try:
        at, job, *numbers = cursor
        if len(numbers) != parts - 2 or not all(
            isinstance(number, int) and 0 <= number < most for number, most in zip(numbers, _NUMBERS, strict=False)
        ):
            raise ValueError
        return (datetime.fromisoformat(at).astimezone(UTC), UUID(job), *numbers)
    except (ValueError, TypeError, AttributeError, OverflowError):
        raise params.bad_cursor() from None


def _job_filter(request: web.Request) -> UUID | None:
    text = request.query.get("job_id")
    try:
        return None if text is None else UUID(text)
    except ValueError:
        raise BadRequest("job_id must be a job's id.", code="invalid_parameter", field="job_id") from None


async def list_logs(request: web.Request, call: Call) -> web.Response:
    caller = call.caller
    settings = request.app[SETTINGS]
    function = await function_of(request, caller)
    limit = params.page_limit(request, default=settings.default_page, most=settings.max_page)
    level = request.query.get("level")
    if level is not None and level not in LEVELS:
        raise BadRequest(f"level must be one of {', '.join(LEVELS)}.", code="invalid_parameter", field="level")
    before = _position(params.decode_cursor(request.query.get("cursor")), 4) or NEWEST_LOG
    lines, more = await request.app[INVOCATIONS].logs(
        function.id,
        job=_job_filter(request),
        levels=None if level is None else LEVELS[LEVELS.index(level) :],
        before=before,
        limit=limit,
    )
    following = params.encode_cursor(lines[-1].position) if more else None
    items = [
        {
            "job_id": line.job_id,
            "attempt": line.attempt,
            "stream": line.stream,
            "level": line.level,
            "message": line.message,
            "at": line.at,
            "cut": line.cut,
        }
        for line in lines
    ]
    return params.answer({"items": items, "next": following})


def _log_document(row: dict[str, Any]) -> dict[str, Any]:
    """The log document of one attempt: its output, its error, its limits."""
    streams: dict[str, list[str]] = {"stdout": [], "stderr": [], "logger": []}
    for stream, _, message in row["lines"]:
        streams[stream].append(message)
    errors = []
    if row["error"] is not None:
        error = orjson.loads(row["error"])
        errors.append({"phase": "execution", "message": error.get("message", ""), "code": row["reason"]})
    return {
        "container": {
            "stdout": "".join(streams["stdout"]),
            "stderr": "".join(streams["stderr"]),
            "exit_code": row["exit_code"],
            "timestamp": row["finished_at"],
        },
        "errors": errors,
        "metadata": {
            "function_uuid": row["function_id"],
            "start_time": row["started_at"],
            "end_time": row["finished_at"],
            "timeout_ms": row["timeout_ms"],
            "memory_limit_mb": row["memory_mb"],
        },
    }


async def list_invocations(request: web.Request, call: Call) -> web.Response:
    caller = call.caller
    settings = request.app[SETTINGS]
    function = await function_of(request, caller)
    limit = params.page_limit(request, default=settings.default_page, most=settings.max_page)
    before = _position(params.decode_cursor(request.query.get("cursor")), 3) or NEWEST_INVOCATION
    rows, more = await request.app[INVOCATIONS].page(
        function.id,
        job=_job_filter(request),
        before=before,
        limit=limit,
    )
    following = None
    if more:
        last = rows[-1]
        following = params.encode_cursor((last["accepted_at"], last["job_id"], last["epoch"]))
    items = [
        {
            "job_id": row["job_id"],
            "attempt": row["attempt"],
            "epoch": epoch_text(row["epoch"]),
            "version_id": row["version_id"],
            "worker_id": row["worker_id"],
            "outcome": row["outcome"],
            "reason": row["reason"],
            "start_kind": row["start_kind"],
            "exit_code": row["exit_code"],
            "timings": {name: row[name] for name in _TIMINGS},
            "peak_memory_bytes": row["peak_memory_bytes"],
            "logs_truncated": row["logs_truncated"],
            "request": orjson.Fragment(row["request"]),
            "logs": _log_document(row),
            "started_at": row["started_at"],
            "finished_at": row["finished_at"],
        }
        for row in rows
    ]
    return params.answer({"items": items, "next": following})


_JOB = Parameter(name="job_id", description="Only this job's.")

OPERATIONS = (
    Operation(
        method="GET",
        path="/api/functions/{function}/logs",
        handler=list_logs,
        scope=Scope.READ,
        summary="Read what a function printed, newest first",
        parameters=(_JOB, Parameter(name="level", description="Least level.", schema=one_of(LEVELS)), LIMIT, CURSOR),
        responses={200: models.LogPage},
    ),
    Operation(
        method="GET",
        path="/api/functions/{function}/invocations",
        handler=list_invocations,
        scope=Scope.READ,
        summary="Read the records of a function's attempts, newest first",
        parameters=(_JOB, LIMIT, CURSOR),
        responses={200: models.InvocationPage},
    ),
)
