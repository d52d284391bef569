"""A receiver of callbacks, on loopback: it answers as a test says and remembers what it got."""

from __future__ import annotations

import asyncio
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hmac import compare_digest, digest
from typing import Any, Self

import orjson
from aiohttp import web

Reply = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    target: str  # as it stood in the request line
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    def is_signed_with(self, secret: str) -> bool:
        """As a receiver checks it: any of the signatures may be its own."""
        signed = f"{self.id}.{self.headers['webhook-timestamp']}.".encode() + self.body
        mine = b64encode(digest(b64decode(secret.removeprefix("whsec_")), signed, "sha256")).decode()
        return any(compare_digest(each, f"v1,{mine}") for each in self.headers["webhook-signature"].split(" "))


class Receiver:
    """Listens while it is entered; on ``port``, or any that is free."""

    def __init__(self, *, status: int = 204, reply: Reply | None = None, port: int = 0) -> None:
        self.status = status
        self.reply = reply
        self.port = port
        self.received: list[Received] = []
        self._arrived = asyncio.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=10**8)
        app.router.add_route("*", "/{path:.*}", self._take)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._runner.cleanup()

    async def count(self, number: int, *, within_s: float = 20) -> list[Received]:
        """What was received once it is ``number`` callbacks."""
        async with asyncio.timeout(within_s), self._arrived:
            await self._arrived.wait_for(lambda: len(self.received) >= number)
        return self.received

    async def _take(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        got = Received(target=request.raw_path, headers=headers, body=await request.read())
        async with self._arrived:
            self.received.append(got)
            self._arrived.notify_all()
        return web.Response(status=self.status) if self.reply is None else await self.reply(request)
