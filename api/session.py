"""What every handler does first: who calls, and with what body."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from api import params
from api.accounts import Caller
from api.keys import ACCOUNTS, FUNCTIONS, SETTINGS
from api.resolver import no_such_function
from shared.errors import BadRequest
from shared.functions import Function


async def authenticated(request: web.Request) -> Caller:
    """:raises Unauthenticated: without a valid token."""
    return await request.app[ACCOUNTS].authenticate(request.headers.get("Authorization"))


async def read_body(request: web.Request) -> bytes:
    """The request's body, unpacked. :raises BadRequest: when there is something and it unpacks to nothing."""
    data = await request.read()
    if not data and "Content-Encoding" in request.headers:
        raise BadRequest("The body of the request is broken: it unpacks to nothing.", code="broken_body")
    return data


async def body_of(request: web.Request) -> Any:
    """The request's JSON body; ``{}`` when there is none."""
    data = await read_body(request)
    return params.parse_json(data, max_depth=request.app[SETTINGS].max_json_depth) if data else {}


async def function_of(request: web.Request, caller: Caller) -> Function:
    """The caller's function that the path names by id or name. :raises NotFound: also for somebody else's."""
    reference = request.match_info["function"]
    function = await request.app[FUNCTIONS].get(caller.user.id, reference)
    if function is None:
        raise no_such_function(reference)
    return function
