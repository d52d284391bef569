"""The types of an event's members, as wide as what the runtimes take (``runtimes/*/README.md``)."""

from __future__ import annotations

import binascii
from typing import Annotated, Any

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

_PAIRS: list[dict[str, Any]] = [
    {"type": "object", "description": "The value of a repeated name is a list."},
    {"type": "array", "items": {"type": "array", "minItems": 2, "maxItems": 2}, "description": "[name, value] each."},
]


def _query(value: Any) -> Any:
    if value is None or isinstance(value, str) or _are_pairs(value):
        return value
    raise PydanticCustomError("query", "must be a text, an object, or a list of [name, value]")


def _headers(value: Any) -> Any:
    if value is None or _are_pairs(value):
        return value
    raise PydanticCustomError("headers", "must be an object, or a list of [name, value]")


def _are_pairs(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in value)
    return isinstance(value, dict)


def _base64(value: Any) -> Any:
    if value is None:
        return value
    try:
        # As runtimes read it: one that they refuse would fail every attempt.
        binascii.a2b_base64(value, strict_mode=True)
    except (TypeError, ValueError):
        raise PydanticCustomError(
            "base64", "must be base64 of the standard alphabet (+ and /), padded, without line breaks"
        ) from None
    return value


Query = Annotated[
    Any,
    AfterValidator(_query),
    WithJsonSchema({"anyOf": [{"type": "string", "description": "As behind the ? of a URL."}, *_PAIRS]}),
]
Headers = Annotated[Any, AfterValidator(_headers), WithJsonSchema({"anyOf": _PAIRS})]
Base64 = Annotated[Any, AfterValidator(_base64), WithJsonSchema({"type": "string", "contentEncoding": "base64"})]
