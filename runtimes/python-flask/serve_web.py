"""The python-flask runtime inside a sandbox: connects as the python runtime does, and asks a WSGI or ASGI application.

In the image the python runtime's side lies beside this file; in its source folder otherwise.
"""

from __future__ import annotations

import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
_SHARED = next(
    folder for folder in (_HERE, f"{os.path.dirname(_HERE)}/python") if os.path.isdir(f"{folder}/containerpub_runtime")
)

_USUAL = "app:app"

sys.path[0] = _SHARED
from containerpub_runtime.function import PLATFORM_FOLDERS, Function  # noqa: E402 (notes first what is imported)
from containerpub_runtime.own_modules import library  # noqa: E402
from containerpub_runtime.serving import main  # noqa: E402

_SDK, sys.path[0] = sys.path[0], _HERE
from collections.abc import Callable  # noqa: E402
from typing import Any  # noqa: E402

from containerpub_web import asgi, wsgi  # noqa: E402
from containerpub_web.answer import Answer  # noqa: E402
from containerpub_web.request import Request  # noqa: E402

sys.path[0] = _SDK
PLATFORM_FOLDERS.append(_HERE + os.sep)
from containerpub import Response  # noqa: E402 (found since the runtime's package put the SDK on sys.path)


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


if __name__ == "__main__":
    main(WebApp, also_wanted=("difflib", "gettext", "html", "http.server", "pkgutil", "pprint"))
