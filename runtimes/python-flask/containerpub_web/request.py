"""The HTTP request that an event describes."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote_to_bytes, urlencode

_TOKEN = re.compile(r"[!#$%&'*+.^`|~0-9A-Za-z-]+")
"""Names of headers. Not with an underscore, which an application could not tell from a hyphen."""
_NOT_PASSED_ON = frozenset(("connection", "content-length", "expect", "proxy", "transfer-encoding", "upgrade"))
_PATH_CHARACTERS = "/:@!$&'()*+,;=~-._%"


class Request:
    """What an application is asked. Text that HTTP carries as bytes is decoded as latin-1, as WSGI wants it.

    :ivar path: bytes, percent-decoded. :ivar raw_path: as in the URL. :ivar query: as in the URL, without ``?``.
    :ivar headers: pairs, names in lower case; ``content-length`` is the body's.
    """

    __slots__ = ("body", "headers", "method", "path", "query", "raw_path")

    def __init__(self, event: dict[str, Any]) -> None:
        self.method = str(event.get("method") or "POST").upper()
        path = str(event.get("path") or "/")
        self.raw_path = quote(path if path.startswith("/") else f"/{path}", safe=_PATH_CHARACTERS)
        self.path = unquote_to_bytes(self.raw_path)
        self.query = _query(event.get("query"))
        self.headers = [pair for pair in _headers(event.get("headers")) if pair[0] not in _NOT_PASSED_ON]
        names = {name for name, _ in self.headers}
        self.body, content_type = _body(event)
        if content_type and "content-type" not in names:
            self.headers.append(("content-type", content_type))
        if self.body:
            self.headers.append(("content-length", str(len(self.body))))
        if "host" not in names:
            self.headers.append(("host", "localhost"))

    @property
    def server(self) -> tuple[str, int]:
        """Name and port that the request was sent to."""
        host = next(value for name, value in self.headers if name == "host")
        name, colon, port = host.rpartition(":")
        return (name, int(port)) if colon and port.isdecimal() else (host, 80)


def _body(event: dict[str, Any]) -> tuple[bytes, str]:
    """The body's bytes, and their type if the event's headers say nothing."""
    encoded = event.get("body_base64")
    if encoded is not None:
        return base64.b64decode(encoded, validate=True), "application/octet-stream"
    body = event.get("body")
    if body is None:
        return b"", ""
    if isinstance(body, str):
        return body.encode("utf-8", "surrogatepass"), "text/plain; charset=utf-8"
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode(), "application/json"


def _query(query: Any) -> str:
    if isinstance(query, str):
        return quote(query.lstrip("?"), safe=_PATH_CHARACTERS + "?")
    pairs = [(name, _text(value)) for name, value in _pairs(query)]
    return urlencode(pairs)


def _headers(headers: Any) -> Iterator[tuple[str, str]]:
    for name, value in _pairs(headers):
        text = _text(value)
        if _TOKEN.fullmatch(name) and not set(text) & {"\r", "\n", "\0"}:
            yield name.lower(), text.encode("utf-8", "surrogatepass").decode("latin-1")


def _pairs(given: Any) -> Iterator[tuple[str, Any]]:
    """Names and values of an object, a value that is a list giving one pair each; or of a list of pairs."""
    items = given.items() if isinstance(given, dict) else given if isinstance(given, list) else ()
    for item in items:
        if not isinstance(item, (list, tuple)) or len(item) != 2:
            continue
        name, value = item
        for one in value if isinstance(value, list) else [value]:
            yield str(name), one


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
