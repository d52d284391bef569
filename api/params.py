"""Reads JSON, headers and query parameters of requests, within bounds, and writes JSON answers."""

from __future__ import annotations

import codecs
import gc
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

import orjson
from aiohttp import web
from pydantic import BaseModel, ValidationError

from shared.addresses import Network
from shared.callbacks.url import checked_url
from shared.errors import BadRequest, Invalid
from shared.jobview import PRIORITIES

Model = TypeVar("Model", bound=BaseModel)
_STRING = re.compile(rb'"(?:[^"\\]+|\\.)*+"')
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_OTHERS = bytes(code for code in range(256) if code not in b"[]{}")
_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_LARGE_BYTES = 64 * 1024
_LEAP_SECOND = re.compile(r"(.+T[0-9]{2}:[0-9]{2}):60(?:[.,][0-9]+)?(.+)")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_PREFERENCE = re.compile(r"\s*([A-Za-z-]+)\s*(?:=\s*\"?([^\";,]*)\"?)?\s*(?:[;,]|$)")


def answer(document: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=orjson.dumps(document, default=plain), status=status, headers=headers, content_type="application/json"
    )


def plain(value: object) -> str:
    """The JSON form of values that orjson does not know."""
    # asyncpg's UUIDs are a subclass, and orjson takes only the class itself.
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def raw_answer(body: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """An answer whose body is JSON text already."""
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")


def parse_json(data: bytes, *, max_depth: int) -> Any:
    """Parse JSON text; raises :class:`BadRequest` for what is not, for numbers out of range and for deep nesting."""
    try:
        value = _loaded(data)
    except orjson.JSONDecodeError as error:
        mark = ": it begins with a byte order mark; send it as UTF-8 without one." if data.startswith(_MARKS) else ""
        raise BadRequest(f"The body is not valid JSON{mark or f': {error}'}", code="invalid_json") from error
    # Only a document with that many brackets can be nested that deep.
    if data.count(b"[") + data.count(b"{") > max_depth and _deeper_than(data, max_depth):
        raise BadRequest(f"The body is nested deeper than {max_depth} levels.", code="json_too_deep")
    return value


def _loaded(data: bytes) -> Any:
    """The value of a JSON text. A large one may have millions of values, and Python's collector of cycles would visit
    all of them several times while they are made: other calls would wait five times as long."""
    if len(data) < _LARGE_BYTES:
        return orjson.loads(data)
    gc.disable()
    try:
        return orjson.loads(data)
    finally:
        gc.enable()


def _deeper_than(data: bytes, most: int) -> bool:
    """Whether valid JSON text is nested deeper than ``most``. Removes brackets from the inside, a level at a time,
    without visiting every value: a few megabytes may hold millions of them."""
    brackets = _STRING.sub(b"", data).translate(_BRACKETS, _OTHERS)
    for _ in range(most):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


def validate(model: type[Model], value: Any) -> Model:
    """:raises Invalid: naming the first member at fault."""
    if not isinstance(value, dict):
        raise Invalid("The body must be a JSON object.", code="invalid_body")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        sentence = f"{field}: {first['msg']}"
        if first["type"] == "extra_forbidden":
            known = ", ".join(model.model_fields) or "none"
            sentence = f"{field}: there is no such member; there are: {known}.{_more(model)}"
        raise Invalid(sentence, code="invalid_field", field=field) from error


def _more(model: type[BaseModel]) -> str:
    more: str = getattr(model, "unknown_member", "")
    return more and f" {more}"


def number_parameter(request: web.Request, name: str, *, most: float) -> float | None:
    """A non-negative number of the query, at most ``most`` (a larger one is cut, as waiting shorter is safe)."""
    text = request.query.get(name)
    return None if text is None else _seconds(text, name, most)


def _seconds(text: str, name: str, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < float("inf"):
        raise BadRequest(f"{name} must be a number of seconds.", code="invalid_parameter", field=name)
    return min(value, most)


def page_limit(request: web.Request, *, default: int, most: int) -> int:
    text = request.query.get("limit")
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= most:
        raise BadRequest(f"limit must be a whole number from 1 to {most}.", code="invalid_parameter", field="limit")
    return int(text)


def preferences(request: web.Request, *, max_wait: float) -> tuple[bool, float | None]:
    """The ``Prefer`` header (RFC 7240): whether to respond asynchronously, and how long to wait; None if it does not
    say."""
    respond_async, wait = False, None
    for header in request.headers.getall("Prefer", ()):
        for name, value in _PREFERENCE.findall(header):
            if name.lower() == "respond-async":
                respond_async = True
            elif name.lower() == "wait" and wait is None:
                wait = _seconds(value, "Prefer: wait", max_wait)
    return respond_async, wait


def idempotency_key(request: web.Request) -> str | None:
    """:raises BadRequest: for one that is empty, too long, or has other characters than printable ASCII."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not _KEY.fullmatch(key):
        raise BadRequest(
            "Idempotency-Key must have 1 to 255 printable ASCII characters.",
            code="invalid_parameter",
            field="Idempotency-Key",
        )
    return key


def due_time(request: web.Request, *, max_delay: float) -> datetime | None:
    """When an invoke is due by its parameters ``delay`` (seconds) or ``run_at`` (RFC 3339); None for now, also for a
    time that has passed. Raises :class:`BadRequest`."""
    delay, run_at = request.query.get("delay"), request.query.get("run_at")
    if delay is not None and run_at is not None:
        raise BadRequest("delay and run_at exclude each other.", code="invalid_parameter", field="run_at")
    now = datetime.now(UTC)
    if delay is not None:
        due, field = now + timedelta(seconds=_seconds(delay, "delay", 2 * max_delay)), "delay"
    elif run_at is not None:
        due, field = _time(run_at, "run_at"), "run_at"
    else:
        return None
    if due - now > timedelta(seconds=max_delay):
        raise BadRequest(f"{field} is more than {max_delay:g} s ahead.", code="invalid_parameter", field=field)
    return due if due > now else None


def priority(request: web.Request) -> int:
    """The priority of an invoke, from -1 to 1; 0 unless the query says otherwise. Raises :class:`BadRequest`."""
    text = request.query.get("priority", "normal")
    if text not in PRIORITIES:
        raise BadRequest("priority must be low, normal or high.", code="invalid_parameter", field="priority")
    return PRIORITIES[text]


def expiry(request: web.Request, *, due: datetime | None, max_delay: float) -> datetime | None:
    """By when an invoke that is ``due`` then, or now, must have started; None for ever. Raises :class:`BadRequest`."""
    text = request.query.get("expires_at")
    if text is None:
        return None
    now = datetime.now(UTC)
    expires = _time(text, "expires_at")
    if expires <= (due or now):
        when = "is due" if due is not None else "is accepted"
        raise BadRequest(f"expires_at is before the job {when}.", code="invalid_parameter", field="expires_at")
    if expires - (due or now) > timedelta(seconds=max_delay):
        sentence = f"expires_at is more than {max_delay:g} s after the time at which the job is due."
        raise BadRequest(sentence, code="invalid_parameter", field="expires_at")
    return expires


def callback_url(request: web.Request, allow: Sequence[Network]) -> str | None:
    """The address for an invoke's callback; None without one. :raises Invalid: if no callback may go there."""
    text = request.query.get("callback_url")
    if text is not None:
        checked_url(text, allow)
    return text


def _time(text: str, field: str) -> datetime:
    # In a query a plus sign that is not escaped arrives as a space. RFC 3339 lets t and z be small, and a minute that
    # ends with a leap second have a second 60: that is when the next minute begins.
    written = text.replace(" ", "+").upper()
    leap = _LEAP_SECOND.fullmatch(written)
    try:
        time = datetime.fromisoformat(f"{leap[1]}:59{leap[2]}" if leap else written)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise BadRequest(
            f"{field} must be a time like 2030-01-31T09:00:00Z, with its offset from UTC.",
            code="invalid_parameter",
            field=field,
        )
    return time.replace(microsecond=0) + timedelta(seconds=1) if leap else time


def uuid_in_path(request: web.Request, name: str) -> UUID | None:
    try:
        return UUID(request.match_info[name])
    except ValueError:
        return None


def encode_cursor(position: object) -> str:
    return urlsafe_b64encode(orjson.dumps(position, default=plain)).rstrip(b"=").decode()


def decode_cursor(text: str | None) -> Any:
    """What :func:`encode_cursor` was given; None without a cursor. Raises :class:`BadRequest`."""
    if text is None:
        return None
    try:
        position = orjson.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except ValueError as error:
        raise bad_cursor() from error
    if position is None:
        raise bad_cursor()
    return position


def bad_cursor() -> BadRequest:
    return BadRequest(
        "cursor is not one of ours; take `next` of the page before.", code="invalid_cursor", field="cursor"
    )
