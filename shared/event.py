"""The event of an invoke: what the caller sends as JSON and the handler receives, and its description for records."""

from __future__ import annotations

from typing import Any

import orjson

FIELDS = ("body", "query", "headers", "method", "path")
_CREDENTIALS = frozenset(
    {
        "authorization",
        "proxy-authorization",
        "cookie",
        "set-cookie",
        "x-api-key",
        "x-auth-token",
        "x-amz-security-token",
    }
)
_MAX_VALUE = 1024
_MAX_ITEMS = 64


_DEFAULTS = {"body": b"null", "query": b"{}", "headers": b"{}", "method": b'"POST"', "path": b'"/"'}


def complete(payload: bytes, event: dict[str, Any]) -> bytes:
    """``payload``, the JSON text of ``event``, with the members that it leaves out; what it has stays verbatim."""
    missing = [b'"%b":%b' % (name.encode(), _DEFAULTS[name]) for name in FIELDS if name not in event]
    if not missing:
        return payload
    rest = payload.lstrip()[1:] if event else b"}"
    return b"{" + b",".join(missing) + (b"," if event else b"") + rest


def describe(event: dict[str, Any]) -> dict[str, Any]:
    """Headers without credentials, query, method, path and content type of an event; never its body.

    Long values are shortened and long lists cut, so that a record stays small whatever was sent.
    """
    described: dict[str, Any] = {}
    headers = _named(event.get("headers"))
    if headers:
        kept = {name.lower(): value for name, value in headers.items()}
        described["headers"] = {name: value for name, value in kept.items() if name not in _CREDENTIALS}
        if "content-type" in kept:
            described["content_type"] = kept["content-type"]
    query = event.get("query")
    if isinstance(query, str) and query:
        described["query"] = _short(query)
    elif named := _named(query):
        described["query"] = named
    for name in ("method", "path"):
        if event.get(name) is not None:
            described[name] = _short(event[name])
    return described


def _named(given: object) -> dict[str, str]:
    """Names and values of an object, or of a list of pairs, in which a name may be repeated."""
    if isinstance(given, dict):
        return {_short(name): _short(value) for name, value in list(given.items())[:_MAX_ITEMS]}
    found: dict[str, list[object]] = {}
    for name, value in given[:_MAX_ITEMS] if isinstance(given, list) else ():
        found.setdefault(_short(name), []).append(value)
    return {name: _short(values[0] if len(values) == 1 else values) for name, values in found.items()}


def describe_payload(payload: bytes) -> dict[str, Any]:
    """The description of an event that is given as JSON text."""
    event = orjson.loads(payload)
    return describe(event) if isinstance(event, dict) else {}


def _short(value: object) -> str:
    # Postgres's jsonb has no U+0000.
    text = (value if isinstance(value, str) else orjson.dumps(value).decode()).replace("\x00", "\\x00")
    return text if len(text) <= _MAX_VALUE else text[:_MAX_VALUE] + "…"
