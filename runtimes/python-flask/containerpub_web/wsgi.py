"""Asks a WSGI application (PEP 3333)."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

from containerpub_web.answer import Answer
from containerpub_web.request import Request


def exchange(app: Callable[..., Any], request: Request, context: Any, room: int) -> Answer:
    """The application's answer to ``request``; what is streamed is joined, up to ``room`` bytes and one chunk."""
    answer = Answer(room, request.method)

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], None]:
        if answer.started and exc_info is None:
            raise RuntimeError("start_response was called twice")
        if exc_info is not None and answer.has_body:
            raise exc_info[1].with_traceback(exc_info[2])
        answer.start(int(status.split(None, 1)[0]), headers)
        return write

    def write(chunk: bytes) -> None:
        answer.add(chunk)

    chunks = app(environ_of(request, context), start_response)
    try:
        for chunk in chunks:
            answer.add(chunk)
            if answer.is_full:
                break
    finally:
        if hasattr(chunks, "close"):
            chunks.close()
    if not answer.started:
        raise RuntimeError("the application did not call start_response")
    return answer


def environ_of(request: Request, context: Any) -> dict[str, Any]:
    host, port = request.server
    environ: dict[str, Any] = {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": request.path.decode("latin-1"),
        "QUERY_STRING": request.query,
        "REQUEST_URI": request.raw_path + (f"?{request.query}" if request.query else ""),
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(request.body),
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "containerpub.context": context,
    }
    for name, value in request.headers:
        key = name.upper().replace("-", "_")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = f"HTTP_{key}"
        separator = "; " if name == "cookie" else ","
        environ[key] = f"{environ[key]}{separator}{value}" if key in environ else value
    return environ
