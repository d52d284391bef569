"""Whether a result is JSON, told without holding up the event loop, whatever the result is made of."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from enum import IntEnum

import msgspec

from worker.errors import EngineUnavailable

ON_LOOP_BYTES = 1024 * 1024
"""Up to here a result is checked at once, which takes three milliseconds at worst. A larger one is checked by a child:
a parser holds Python's lock for as long as it takes, so that a thread would be of no use."""
_HEADERS_BYTES = 128 * 1024
_CHILD_S = 60.0


class Checked(IntEnum):
    """What a result is; also the exit code of the child that looked at it."""

    NO_JSON = 10
    JSON = 11
    ANSWER = 12
    """JSON of the shape that a :class:`Response` of the runtime's SDK has."""


_CHILD = f"""
import gc, json, resource, sys

def refuse(name):
    raise ValueError(name)

def is_answer(value):
    if type(value) is not dict or value.keys() not in ({{"status", "headers", "body"}}, {{"status", "headers", "body_base64"}}):
        return False
    status, headers = value["status"], value["headers"]
    if type(status) is not int or not 200 <= status <= 599:
        return False
    if type(headers) is dict:
        return all(type(text) is str for text in headers.values())
    return type(headers) is list and all(
        type(pair) is list and len(pair) == 2 and type(pair[0]) is type(pair[1]) is str for pair in headers
    )

gc.disable()
resource.setrlimit(resource.RLIMIT_AS, (1 << 31, 1 << 31))
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
try:
    value = json.loads(sys.stdin.buffer.read().decode(), parse_constant=refuse)
except (ValueError, RecursionError, MemoryError):
    sys.exit({int(Checked.NO_JSON)})
sys.exit({int(Checked.ANSWER)} if is_answer(value) else {int(Checked.JSON)})
"""  # noqa: E501


class _Answer(msgspec.Struct, forbid_unknown_fields=True):
    status: msgspec.Raw
    headers: msgspec.Raw
    body: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    body_base64: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_skip = msgspec.json.Decoder(msgspec.Raw).decode
_read_answer = msgspec.json.Decoder(_Answer).decode
_read_headers = msgspec.json.Decoder(dict[str, str] | list[tuple[str, str]]).decode


async def check(result: bytes, *, shaped: bool) -> Checked:
    """What ``result`` is: one JSON value in UTF-8 with nothing but space around it, and no more than that unless it
    claims to be ``shaped`` and is.

    Raises :class:`EngineUnavailable` if no child can be started that checks a large result.
    """
    if len(result) > ON_LOOP_BYTES:
        found = await asyncio.to_thread(_check_by_child, result)
        return Checked.JSON if found is Checked.ANSWER and not shaped else found
    try:
        _skip(result)
        result.decode()  # strings that are skipped are not decoded
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return Checked.NO_JSON
    return Checked.ANSWER if shaped and _is_answer(result) else Checked.JSON


def _is_answer(result: bytes) -> bool:
    try:
        answer = _read_answer(result)
        status = bytes(answer.status)
        if len(status) != len("200") or not status.isdigit() or not 200 <= int(status) <= 599:
            return False
        if (answer.body is msgspec.UNSET) is (answer.body_base64 is msgspec.UNSET):
            return False
        if len(memoryview(answer.headers)) > _HEADERS_BYTES:
            return False
        _read_headers(answer.headers)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True


def _check_by_child(result: bytes) -> Checked:
    """Blocking."""
    try:
        with tempfile.TemporaryFile() as file:
            file.write(result)
            file.seek(0)
            argv = (sys.executable, "-I", "-S", "-c", _CHILD)
            ended = subprocess.run(argv, stdin=file, capture_output=True, timeout=_CHILD_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineUnavailable(f"a large result cannot be checked: {error}") from error
    # Whatever else ends the child is the result's doing.
    return Checked(ended.returncode) if ended.returncode in list(Checked) else Checked.NO_JSON
