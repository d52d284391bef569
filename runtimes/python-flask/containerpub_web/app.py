"""The user's application, served as handlers are."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from containerpub import Response
from containerpub_runtime.function import PLATFORM_FOLDERS, Function
from containerpub_runtime.own_modules import library

from containerpub_web import asgi, wsgi
from containerpub_web.answer import Answer
from containerpub_web.request import Request

_USUAL = "app:app"

PLATFORM_FOLDERS.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep)


class WebApp(Function):
    """The user's application, asked through what looks like a handler."""

    def __init__(self, name: str, folder: str, dependencies: str) -> None:
        super().__init__(name or _USUAL, folder, dependencies)

    def adapt(self, found: Callable[..., Any]) -> Callable[..., Any]:
        with library():
            asked_by_asgi = asgi.is_asgi(found)
        if asked_by_asgi:
            lifespan = asgi.Lifespan(found)
            self._event_loop().run_until_complete(lifespan.start())

            async def ask_asgi(event: Any, context: Any) -> Response:
                return shaped(await asgi.exchange(found, Request(event), context, lifespan.state, self.room))

            return ask_asgi

        def ask_wsgi(event: Any, context: Any) -> Response:
            return shaped(wsgi.exchange(found, Request(event), context, self.room))

        return ask_wsgi


def shaped(answer: Answer) -> Response:
    """``answer`` as the platform takes it: repeated headers need a list of pairs."""
    names = [name.lower() for name, _ in answer.headers]
    headers = dict(answer.headers) if len(set(names)) == len(names) else answer.headers
    return Response(answer.status, headers, answer.body)
