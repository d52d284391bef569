"""Bounds on how slowly a request may arrive, so that a client cannot hold a connection open by doing nothing.

aiohttp waits for a request's head as long as for the next request of a kept connection, and for a body for ever.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import web
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import _ErrInfo

from api.keys import LOOPS
from api.middleware import problem
from shared.errors import ContainerPubError, RequestTimeout
from shared.ids import new_id
from shared.loop import Loop

log = logging.getLogger(__name__)

LEAST_BYTES = 1024
"""Bytes of a body that must arrive within the longest pause: fewer than that count as a pause, too."""


class SlowBody(RequestTimeout, TimeoutError):
    """A body does not arrive. It is a ``TimeoutError`` too, since aiohttp, which reads on after a refusal, expects
    one."""

    def __init__(self, timeout_s: float) -> None:
        RequestTimeout.__init__(
            self, f"The body of the request did not arrive: no pause may be longer than {timeout_s:g} s."
        )


class Connection(web.RequestHandler):
    """One connection, which remembers when the client last sent something."""

    __slots__ = ("_body", "_head_since", "_heard", "_heard_at", "_window_at", "_window_heard")

    def __init__(self, manager: web.Server, *, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(manager, loop=loop, **options)
        self._heard_at = self._window_at = loop.time()
        self._heard = self._window_heard = 0
        self._head_since: float | None = self._heard_at  # from when on a head is under way; None: none is
        self._body: StreamReader = EMPTY_PAYLOAD  # of the request that was heard last

    def data_received(self, data: bytes) -> None:
        requests, in_body = self._request_count, not self._body.is_eof()
        try:
            super().data_received(data)
        except Exception as error:  # noqa: BLE001 - aiohttp's decoders fail assertions on truncated bodies
            self._refuse(error)
        now = self._heard_at = self._loop.time()
        self._heard += len(data)
        if self._request_count != requests:
            self._head_since = None
            self._window_at, self._window_heard = now, self._heard
            if self._messages:
                self._body = self._messages[-1][1]
        elif data and not in_body and self._head_since is None:
            self._head_since = now

    def _refuse(self, error: Exception) -> None:
        """Answer 400, as for a request that cannot be parsed."""
        body = self._body
        if not body.is_eof() and body.exception() is None:
            body.set_exception(web.RequestPayloadError(str(error)))
        self._messages.append((_ErrInfo(status=400, exc=error, message=""), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def end_if_overdue(self, now: float, timeout_s: float) -> None:
        """Close the connection if a head takes too long; fail the reading of a body that does not arrive."""
        if self._waiter is not None:
            if self._head_since is not None and now - self._head_since >= timeout_s:
                self.force_close()
            return
        body = self._body
        if body.is_eof() or body.exception() is not None:
            return
        if self._reading_paused or self._buffer_paused:  # this process does not read, so the client is not at fault
            self._heard_at = self._window_at = now
            return
        slow = now - self._heard_at >= timeout_s
        if now - self._window_at >= timeout_s:
            slow = slow or self._heard - self._window_heard < LEAST_BYTES
            self._window_at, self._window_heard = now, self._heard
        if slow:
            body.set_exception(SlowBody(timeout_s))

    def log_exception(self, *args: Any, **options: Any) -> None:
        # A broken body was answered with 400; aiohttp stumbles over it again as it reads on.
        if not isinstance(options.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **options)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that never reached the application: one that is not HTTP, or an error in our own code."""
        request_id = str(new_id())
        if status == 400:
            log.info("malformed request", extra={"request": request_id, "error": type(exc).__name__})
            error = ContainerPubError("This is not a well-formed HTTP request.", code="malformed_request")
        else:
            log.error("request failed", exc_info=exc, extra={"request": request_id})
            error = ContainerPubError(
                "Something is wrong on our side; the log has the request id.", code="internal_error"
            )
        if request.writer.output_size > 0:
            raise ConnectionError("the answer was begun already")
        response = problem(error, request_id, status=status)
        response.headers["X-Request-ID"] = request_id
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.force_close()
        return response


class _Server(web.Server):
    def __call__(self) -> Connection:
        return Connection(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """An ``AppRunner`` whose connections have ``request_timeout_s`` for a head, and for a pause within a body."""

    __slots__ = ("_request_timeout_s",)

    def __init__(self, app: web.Application, *, request_timeout_s: float, **options: Any) -> None:
        super().__init__(app, **options)
        self._request_timeout_s = request_timeout_s

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        server = _Server(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            loop=made._loop,
            **made._kwargs,
        )
        self.app[LOOPS].start(
            Loop(
                name="slow-requests",
                run_once=lambda: self._look_over(server),
                interval_s=min(1.0, self._request_timeout_s / 4),
            )
        )
        return server

    async def _look_over(self, server: web.Server) -> int:
        """End overdue heads and bodies on all connections; how many connections there are."""
        now = asyncio.get_running_loop().time()
        for connection in server.connections:
            if isinstance(connection, Connection):
                connection.end_if_overdue(now, self._request_timeout_s)
        return len(server.connections)
