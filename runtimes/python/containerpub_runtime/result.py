"""What a handler returns, as JSON text; or where in it something stands that JSON has no obvious form for."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from containerpub import Response

from containerpub_runtime.channel import printable

_MOST_DEEP = 250
_TOLD_CHARS = 80
_ADVICE = {
    "set": "sort it into a list: sorted(value)",
    "frozenset": "sort it into a list: sorted(value)",
    "bytes": "decode it, or encode it by base64; as an HTTP answer it may be the body of a Response",
    "bytearray": "decode it, or encode it by base64; as an HTTP answer it may be the body of a Response",
    "memoryview": "decode it, or encode it by base64; as an HTTP answer it may be the body of a Response",
    "timedelta": "return value.total_seconds()",
    "Timedelta": "return value.total_seconds()",
    "complex": "return its parts: [value.real, value.imag]",
    "generator": "make a list of it: list(value)",
    "coroutine": "await it, in an async handler",
    "function": "call it, and return what it returns",
    "ndarray": "return value.tolist()",
    "DataFrame": 'return value.to_dict("records")',
    "Series": "return value.tolist() or value.to_dict()",
    "Index": "return value.tolist()",
    "NaTType": "replace it by None",
    "NAType": "replace it by None",
}


class NoJson(Exception):
    """The result is not JSON. The message says where, of which type, and what to do."""


def encode(result: Any) -> tuple[bytes, bool]:
    """JSON text of ``result``, and whether it is a :class:`Response`. Raises :class:`NoJson`."""
    shaped = isinstance(result, Response)
    if shaped:
        result = result.document()
    try:
        text = _encoder.encode(result)
        _refuse_equal_names(result)
        return text.encode(), shaped
    except (TypeError, ValueError, RecursionError) as error:
        raise NoJson(_fault(result, "result", (), 0) or str(error)) from None


def _obvious(value: Any) -> Any:
    form = _form(value)
    _refuse_equal_names(form)
    return form


def _form(value: Any) -> Any:
    """``value`` by what JSON has; raises ``TypeError`` unless there is one obvious form."""
    kind = type(value)
    if hasattr(kind, "__dataclass_fields__"):
        form: Any = {name: getattr(value, name) for name in kind.__dataclass_fields__ if hasattr(value, name)}
    elif callable(getattr(kind, "model_dump", None)):  # pydantic
        form = value.model_dump(mode="json")
    elif callable(getattr(kind, "__get_validators__", None)) and callable(getattr(kind, "dict", None)):  # pydantic 1
        form = value.dict()
    elif _is(value, "enum", "Enum"):
        form = value.value
    elif _is(value, "datetime", "date") or _is(value, "datetime", "time"):
        if value != value:
            raise TypeError
        form = value.isoformat()
    elif _is(value, "decimal", "Decimal") or _is(value, "uuid", "UUID") or _is(value, "pathlib", "PurePath"):
        form = str(value)
    elif _is(value, "collections.abc", "Mapping"):
        form = dict(value)
    else:
        raise TypeError
    return form


def _is(value: Any, module: str, name: str) -> bool:
    # Looked up, not imported: without the module there is no such value. It may be one of the function's own.
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)


def _refuse_equal_names(value: Any) -> None:
    """Raise ``ValueError`` if two keys of a mapping have the same text: a reader of the JSON would see one of them.

    ``value`` has no circles.
    """
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, dict):
            if not {*map(type, one)} <= _TEXT and len({_name(key) for key in one}) < len(one):
                raise ValueError
            one = one.values()
        pending += [inner for inner in one if isinstance(inner, _NESTS)] if isinstance(one, _LISTS) else ()


_TEXT = {str}
_NESTS = (dict, list, tuple)
_LISTS = (list, tuple, type({}.values()))


def _name(key: Any) -> str:
    """A key as JSON has it."""
    if isinstance(key, str):
        return str.__str__(key)
    return json.dumps(key)


def _fault(value: Any, path: str, above: tuple[int, ...], depth: int) -> str | None:
    """What is wrong with ``value``, which stands at ``path``; ``None`` if nothing is."""
    if value is None or isinstance(value, (bool, int)):
        return _number_fault(value, path)
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{path} is {value!r}, which JSON cannot say: replace it by None"
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return f"{path} is a text with half a character (a lone surrogate): decode it from its bytes again"
        return None
    if id(value) in above:
        return f"{path} contains itself: leave out what leads back"
    if depth > _MOST_DEEP:
        return f"the result is nested more than {_MOST_DEEP} deep: return less, or as a text"
    above = (*above, id(value))
    if isinstance(value, dict):
        seen: dict[str, Any] = {}
        for key, inner in value.items():
            if not (key is None or isinstance(key, (str, int, float))):
                return f"{path} has the key {_told(key)}, of type {_type(key)}: keys are texts, so use str(key)"
            name = _name(key)
            if name in seen:
                return f"{path} has the keys {seen[name]!r} and {key!r}, which are one name in JSON: leave one out"
            seen[name] = key
            inner_path = f"{path}.{name}" if name.isidentifier() else f"{path}[{json.dumps(name)[:_TOLD_CHARS]}]"
            found = _fault(inner, inner_path, above, depth + 1)
            if found:
                return found
        return None
    if isinstance(value, (list, tuple)):
        faults = (_fault(inner, f"{path}[{at}]", above, depth + 1) for at, inner in enumerate(value))
        return next(filter(None, faults), None)
    try:
        form = _form(value)
    except (TypeError, ValueError):
        return _strange(value, path)
    return _fault(form, path, above, depth + 1)


def _number_fault(value: Any, path: str) -> str | None:
    try:
        json.dumps(value)
    except ValueError:
        return f"{path} is a number of too many digits: return it as a text, with a hexadecimal one by hex(value)"
    return None


def _strange(value: Any, path: str) -> str:
    name = type(value).__name__
    advice = _ADVICE.get(name)
    if advice is None and callable(getattr(type(value), "item", None)):  # a scalar of numpy
        advice = "return value.item()"
    if advice is None and callable(getattr(type(value), "tolist", None)):
        advice = "return value.tolist()"
    if advice is None:
        advice = "return what JSON has: objects, lists, texts, numbers, true, false and None"
    return f"{path} is of type {_type(value)}, which JSON does not have: {advice}"


def _type(value: Any) -> str:
    kind = type(value)
    named = (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )
    return printable(named)[: 2 * _TOLD_CHARS]


def _told(key: Any) -> str:
    try:
        return printable(repr(key))[:_TOLD_CHARS]
    except Exception:  # noqa: BLE001 (a user's __repr__)
        return "(a key without a readable form)"


_encoder = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":"), default=_obvious)
