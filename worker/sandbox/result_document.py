"""Reads the document that a command function leaves in ``/result.json``.

Python's parser holds the interpreter's lock for as long as it reads, so that a thread would hold up the event loop all
the same: a second for 6 MB of brackets. Large documents are read by a child process, which runs this very file and so
imports nothing but the standard library.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, Never

_SMALL_BYTES = 32 * 1024
"""What is parsed in a few milliseconds, whatever it is made of."""
_CHILD_S = 60.0
_MEMORY_BYTES = 2 << 30
_CPU_S = 20
_NO_JSON, _NO_BODY = 10, 11
_FIELD_LIMITS = (("type", 256), ("message", 16 * 1024), ("traceback", 64 * 1024))


class Unreadable(Exception):
    """The document is none; the message says why."""


class NotRead(Exception):
    """No child could read the document, which may be a good one."""


def body_of(document: bytes) -> bytes:
    """The JSON text of the document's body. Blocking. Raises :class:`Unreadable`, and :class:`NotRead`."""
    return _body(document) if len(document) <= _SMALL_BYTES else _by_child("body", document)


def error_of(document: bytes) -> dict[str, str]:
    """The error that the document's body names, or nothing. Blocking. Raises :class:`Unreadable`, and
    :class:`NotRead`."""
    if len(document) <= _SMALL_BYTES:
        return _error(document)
    found: dict[str, str] = json.loads(_by_child("error", document))
    return found


def _body(document: bytes) -> bytes:
    value = _parsed(document)
    if not isinstance(value, dict) or "body" not in value:
        raise Unreadable("/result.json does not hold an object with a body")
    try:
        return json.dumps(value["body"], ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (ValueError, RecursionError, MemoryError) as error:
        raise Unreadable("/result.json does not hold JSON") from error


def _error(document: bytes) -> dict[str, str]:
    value = _parsed(document)
    body = value.get("body") if isinstance(value, dict) else None
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, str):
        error = {"message": error}
    if not isinstance(error, dict) or not error:
        return {}
    said = {name: _printable(error[name])[:limit] for name, limit in _FIELD_LIMITS if isinstance(error.get(name), str)}
    return {"type": "Error", "message": "unknown error", **said}


def _parsed(document: bytes) -> Any:
    try:
        return json.loads(document, parse_constant=_no_constant)
    except (ValueError, RecursionError, MemoryError) as error:
        raise Unreadable("/result.json does not hold JSON") from error


def _by_child(what: str, document: bytes) -> bytes:
    argv = (sys.executable, "-I", "-S", str(Path(__file__)), what)
    try:
        ended = subprocess.run(argv, env={}, input=document, capture_output=True, timeout=_CHILD_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotRead(f"a large /result.json could not be read ({error})") from error
    if ended.returncode == 0:
        return ended.stdout
    if ended.returncode == _NO_BODY:
        raise Unreadable("/result.json does not hold an object with a body")
    # Whatever else ends the child is the document's doing.
    raise Unreadable("/result.json does not hold JSON")


def _printable(text: str) -> str:
    """``text`` with lone surrogates escaped, which no encoding of ours could carry."""
    return text.encode("utf-8", "backslashreplace").decode()


def _no_constant(name: str) -> Never:
    raise ValueError(name)


def _main(what: str) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
    document = sys.stdin.buffer.read()
    try:
        found = _body(document) if what == "body" else json.dumps(_error(document)).encode()
    except Unreadable as error:
        return _NO_BODY if error.__cause__ is None else _NO_JSON
    sys.stdout.buffer.write(found)
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
