"""Accounts: register, log in, refresh, log out, who am I."""

from __future__ import annotations

from aiohttp import web

from api import models, params
from api.keys import ACCOUNTS
from api.operation import Operation
from api.session import authenticated, body_of
from shared.errors import Invalid


async def register(request: web.Request) -> web.Response:
    value = await body_of(request)
    if isinstance(value, dict):
        # Whatever a client adds to make itself more than a user is refused by name, not silently dropped.
        value = {
            name: item.strip() if name == "email" and isinstance(item, str) else item for name, item in value.items()
        }
    body = params.validate(models.RegisterBody, value)
    tokens = await request.app[ACCOUNTS].register(email=str(body.email), username=body.username, password=body.password)
    return params.answer(tokens, status=201)


async def login(request: web.Request) -> web.Response:
    body = params.validate(models.LoginBody, await body_of(request))
    tokens = await request.app[ACCOUNTS].login(
        email=body.email.strip(), password=body.password, address=request.remote or ""
    )
    return params.answer(tokens)


async def refresh(request: web.Request) -> web.Response:
    body = params.validate(models.RefreshBody, await body_of(request))
    if "." not in body.refresh_token:
        raise Invalid("refresh_token is not one of ours.", code="invalid_field", field="refresh_token")
    return params.answer(await request.app[ACCOUNTS].refresh(body.refresh_token))


async def logout(request: web.Request) -> web.Response:
    caller = await authenticated(request)
    await request.app[ACCOUNTS].logout(caller)
    return web.Response(status=204)


async def me(request: web.Request) -> web.Response:
    user = (await authenticated(request)).user
    return params.answer({"id": user.id, "email": user.email, "username": user.username, "created_at": user.created_at})


OPERATIONS = (
    Operation(
        method="POST",
        path="/api/auth/register",
        handler=register,
        summary="Make an account",
        body=models.RegisterBody,
        responses={201: models.Tokens},
        public=True,
    ),
    Operation(
        method="POST",
        path="/api/auth/login",
        handler=login,
        summary="Log in",
        body=models.LoginBody,
        responses={200: models.Tokens},
        public=True,
    ),
    Operation(
        method="POST",
        path="/api/auth/refresh",
        handler=refresh,
        summary="Exchange a refresh token for new tokens",
        body=models.RefreshBody,
        responses={200: models.Tokens},
        public=True,
    ),
    Operation(
        method="POST", path="/api/auth/logout", handler=logout, summary="Revoke this session", responses={204: None}
    ),
    Operation(method="GET", path="/api/auth/me", handler=me, summary="Who am I", responses={200: models.UserView}),
)
