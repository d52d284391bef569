"""Asks an ASGI 3 application: its lifespan is started with the sandbox, requests come one at a time."""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import Callable
from typing import Any

from containerpub_web.answer import Answer
from containerpub_web.request import Request

_VERSIONS = {"version": "3.0", "spec_version": "2.3"}


def is_asgi(app: Callable[..., Any]) -> bool:
    """Whether ``app`` takes what ASGI gives (scope, receive, send), and not what WSGI does (environ, start_response).

    Where it would take both, calling it gives a coroutine, or its first parameter is called ``scope``.
    """
    import inspect

    if _is_coroutine_function(app):
        return True
    try:
        signature = inspect.signature(app)
    except (TypeError, ValueError):
        return False  # written in C: none of ASGI's is
    takes = [_binds(signature, count) for count in (2, 3)]
    if takes == [True, True]:
        return next(iter(signature.parameters), "") == "scope"
    return takes == [False, True]


def _is_coroutine_function(app: Any) -> bool:
    import inspect

    app = inspect.unwrap(app)
    while hasattr(app, "func"):  # functools.partial
        app = app.func
    return inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(getattr(app, "__call__", None))  # noqa: B004


def _binds(signature: Any, count: int) -> bool:
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


class Lifespan:
    """The application's start-up, and what it keeps for requests.

    Its shutdown never comes: a sandbox ends by being killed.
    """

    def __init__(self, app: Callable[..., Any]) -> None:
        self._app = app
        self.state: dict[str, Any] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns once the application is ready, or does not know of lifespans. Raises what kept it from starting."""
        ready: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        asked = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if asked.is_set():
                await asyncio.Event().wait()
            asked.set()
            return {"type": "lifespan.startup"}

        async def send(message: dict[str, Any]) -> None:
            kind = message["type"]
            if not kind.startswith("lifespan."):
                raise RuntimeError(f"{kind!r} is no answer to a lifespan")
            if not ready.done() and kind == "lifespan.startup.complete":
                ready.set_result(None)
            elif not ready.done() and kind == "lifespan.startup.failed":
                ready.set_result(message.get("message") or "the application's start-up failed")

        scope = {"type": "lifespan", "asgi": _VERSIONS, "state": self.state}
        # Held, or nothing would keep it from being collected while it waits for its shutdown.
        self._task = asyncio.ensure_future(self._run(scope, receive, send))
        await asyncio.wait((self._task, ready), return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            failure = ready.result()
            if failure is not None:
                raise RuntimeError(failure)
        elif self._task.exception() is not None:
            # As servers do: an application that knows no lifespans says so by raising.
            self._task = None

    async def _run(self, *asked: Any) -> None:
        await self._app(*asked)


async def exchange(app: Callable[..., Any], request: Request, context: Any, state: dict[str, Any], room: int) -> Answer:
    """The application's answer to ``request``; what is streamed is joined, up to ``room`` bytes and one chunk."""
    answer = Answer(room, request.method)
    sent = False
    done = asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": request.body, "more_body": False}
        await done.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = message.get("headers", ())
            answer.start(
                message["status"], [(bytes(n).decode("latin-1"), bytes(v).decode("latin-1")) for n, v in headers]
            )
        elif message["type"] == "http.response.body":
            answer.add(message.get("body", b""))
            if answer.is_full or not message.get("more_body", False):
                done.set()
            if answer.is_full:
                raise OSError("the answer is larger than a result may be")

    try:
        await app(scope_of(request, context, state), receive, send)
    except BaseException as error:
        # Middlewares send their 500 and raise all the same, for the server to log.
        if not done.is_set() or not isinstance(error, Exception):
            raise
        if not answer.is_full:
            traceback.print_exception(type(error), error, error.__traceback__, file=sys.stderr)
    if not answer.started:
        raise RuntimeError("the application sent no answer")
    return answer


def scope_of(request: Request, context: Any, state: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": _VERSIONS,
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.path.decode("utf-8", "replace"),
        "raw_path": request.raw_path.encode("ascii"),
        "query_string": request.query.encode("ascii"),
        "root_path": "",
        "headers": [(name.encode("ascii"), value.encode("latin-1")) for name, value in request.headers],
        "client": None,
        "server": request.server,
        "state": dict(state),
        "extensions": {"containerpub.context": {"context": context}},
    }
