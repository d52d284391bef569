"""The caller of a request, and the caller's function that the path names."""

from __future__ import annotations

from aiohttp import web

from api.accounts import Caller
from api.keys import ACCOUNTS, FUNCTIONS
from api.resolver import no_such_function
from shared.errors import Forbidden
from shared.functions import Function
from shared.scopes import Scope


async def allowed(request: web.Request, scope: Scope) -> Caller:
    """The caller, whose credential allows ``scope``.

    :raises Unauthenticated: without a valid credential. :raises Forbidden: with one of other scopes.
    """
    caller = await request.app[ACCOUNTS].authenticate(request.headers.get("Authorization"))
    if scope not in caller.scopes:
        raise Forbidden(f"This credential does not have the scope {scope}.", code="scope_missing")
    return caller


async def function_of(request: web.Request, caller: Caller) -> Function:
    """The caller's function that the path names by id or name. :raises NotFound: also for another user's."""
    reference = request.match_info["function"]
    function = await request.app[FUNCTIONS].get(caller.user.id, reference)
    if function is None:
        raise no_such_function(reference)
    return function
