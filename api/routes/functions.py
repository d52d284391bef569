"""Functions: list, read, stop and start, delete."""

from __future__ import annotations

from typing import Any, Literal

from aiohttp import web

from api import models, params
from api.accounts import Caller
from api.call import Call
from api.keys import FUNCTIONS, QUEUE, RESOLVER, SETTINGS, SUBMITTER
from api.operation import CURSOR, LIMIT, Operation
from api.resolver import no_such_function
from api.session import function_of
from shared.errors import Unavailable
from shared.functions import Function
from shared.queue.queue import Change
from shared.queue.scripts import QueueClosed
from shared.scopes import Scope


def function_view(function: Function) -> dict[str, Any]:
    settings = function.settings
    return {
        "id": function.id,
        "name": function.name,
        "status": function.status,
        "runtime": settings.runtime if settings else None,
        "handler": settings.handler if settings else None,
        "timeout_s": settings.timeout_s if settings else None,
        "memory_mb": settings.memory_mb if settings else None,
        "live_version": function.live_version,
        "created_at": function.created_at,
        "updated_at": function.updated_at,
    }


async def list_functions(request: web.Request, call: Call) -> web.Response:
    caller = call.caller
    settings = request.app[SETTINGS]
    limit = params.page_limit(request, default=settings.default_page, most=settings.max_page)
    after = params.decode_cursor(request.query.get("cursor"))
    if after is None:
        after = ""
    if not isinstance(after, str) or "\0" in after:
        raise params.bad_cursor()
    found = await request.app[FUNCTIONS].list(caller.user.id, after=after, limit=limit + 1)
    following = params.encode_cursor(found[limit - 1].name) if len(found) > limit else None
    return params.answer({"items": [function_view(item) for item in found[:limit]], "next": following})


async def read_function(request: web.Request, call: Call) -> web.Response:
    caller = call.caller
    return params.answer(function_view(await function_of(request, caller)))


async def stop_function(request: web.Request, call: Call) -> web.Response:
    """Refuse new invokes from here on, let waiting jobs wait, and have workers destroy idle sandboxes."""
    return await _set_status(request, call.caller, "inactive")


async def start_function(request: web.Request, call: Call) -> web.Response:
    """Serve calls again; jobs that wait go first."""
    return await _set_status(request, call.caller, "active")


async def _set_status(request: web.Request, caller: Caller, status: Literal["active", "inactive"]) -> web.Response:
    function = await function_of(request, caller)
    app, queue = request.app, request.app[QUEUE]
    live = await app[FUNCTIONS].set_status(function.id, status)
    change = Change(function=function.id, live=live if status == "active" else None)
    app[RESOLVER].changed(change.encode().encode())
    try:
        if status == "active":
            await queue.start_function(function.id)  # the scheduler goes on if many wait
        else:
            await queue.stop_function(function.id)
        await queue.announce_change(change)
    except (Unavailable, QueueClosed):
        pass  # the scheduler brings the queue in line, and cached copies of the function expire within seconds
    return params.answer(function_view(await function_of(request, caller)))


async def delete_function(request: web.Request, call: Call) -> web.Response:
    caller = call.caller
    function = await function_of(request, caller)
    job = await request.app[FUNCTIONS].delete(caller.user.id, function.id)
    if job is None:
        raise no_such_function(request.match_info["function"])
    change = Change(function=function.id, live=None)
    request.app[RESOLVER].changed(change.encode().encode())
    request.app[SUBMITTER].hand_over([job])
    try:
        await request.app[QUEUE].announce_change(change)
    except Unavailable:
        pass  # it is deleted; cached copies of it expire within seconds, and when a process reconnects to Redis
    return params.answer({"job_id": job.id}, status=202, headers={"Location": f"/api/jobs/{job.id}"})


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/functions",
        handler=list_functions,
        scope=Scope.READ,
        summary="List your functions by name",
        parameters=(LIMIT, CURSOR),
        responses={200: models.FunctionPage},
    ),
    Operation(
        method="GET",
        path="/api/functions/{function}",
        handler=read_function,
        scope=Scope.READ,
        summary="Read a function, by id or name",
        responses={200: models.FunctionView},
    ),
    Operation(
        method="DELETE",
        path="/api/functions/{function}",
        handler=delete_function,
        scope=Scope.DEPLOY,
        summary="Delete a function; a job clears up behind it",
        responses={202: models.Accepted},
        headers={202: ("Location",)},
    ),
    Operation(
        method="POST",
        path="/api/functions/{function}/stop",
        handler=stop_function,
        scope=Scope.DEPLOY,
        summary="Stop a function: new invokes are refused, jobs that wait go on waiting",
        responses={200: models.FunctionView},
    ),
    Operation(
        method="POST",
        path="/api/functions/{function}/start",
        handler=start_function,
        scope=Scope.DEPLOY,
        summary="Start a stopped function again",
        responses={200: models.FunctionView},
    ),
)
