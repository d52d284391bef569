"""Accounts: register, log in, refresh, log out, who am I."""

from __future__ import annotations

from aiohttp import web

from api import models, params
from api.call import Call
from api.client_address import client_address
from api.keys import ACCOUNTS
from api.operation import Operation
from shared.errors import Invalid
from shared.scopes import Scope


async def register(request: web.Request, call: Call) -> web.Response:
    body: models.RegisterBody = call.body
    tokens = await request.app[ACCOUNTS].register(
        email=str(body.email), username=body.username, password=body.password, address=client_address(request)
    )
    return params.answer(tokens, status=201)


async def login(request: web.Request, call: Call) -> web.Response:
    body: models.LoginBody = call.body
    tokens = await request.app[ACCOUNTS].login(
        email=body.email.strip(), password=body.password, address=client_address(request)
    )
    return params.answer(tokens)


async def refresh(request: web.Request, call: Call) -> web.Response:
    body: models.RefreshBody = call.body
    if "." not in body.refresh_token:
        raise Invalid("refresh_token is not one of ours.", code="invalid_field", field="refresh_token")
    return params.answer(await request.app[ACCOUNTS].refresh(body.refresh_token))


async def logout(request: web.Request, call: Call) -> web.Response:
    caller = call.caller
    await request.app[ACCOUNTS].logout(caller)
    return web.Response(status=204)


async def me(request: web.Request, call: Call) -> web.Response:
    user = call.caller.user
    return params.answer({"id": user.id, "email": user.email, "username": user.username, "created_at": user.created_at})


OPERATIONS = (
    Operation(
        method="POST",
        path="/api/auth/register",
        handler=register,
        scope=None,
        rated=True,
        summary="Make an account",
        body=models.RegisterBody,
        responses={201: models.Tokens},
    ),
    Operation(
        method="POST",
        path="/api/auth/login",
        handler=login,
        scope=None,
        rated=True,
        summary="Log in",
        body=models.LoginBody,
        responses={200: models.Tokens},
    ),
    Operation(
        method="POST",
        path="/api/auth/refresh",
        handler=refresh,
        scope=None,
        rated=True,
        summary="Exchange a refresh token for new tokens",
        body=models.RefreshBody,
        responses={200: models.Tokens},
    ),
    Operation(
        method="POST",
        path="/api/auth/logout",
        handler=logout,
        scope=Scope.ADMIN,
        summary="Revoke this session",
        responses={204: None},
    ),
    Operation(
        method="GET",
        path="/api/auth/me",
        handler=me,
        scope=Scope.READ,
        summary="Who am I",
        responses={200: models.UserView},
    ),
)
