"""The outcome of a call by a program's exit code and by its result file.

The file is the function's: what is in it, and with the ``process`` engine whether it still is a file, is not trusted.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Never

from worker.sandbox.attached import ExitStatus, failure
from worker.sandbox.contract import Call, CallOutcome
from worker.sandbox.hints import ended

_SLACK_BYTES = 64 * 1024
"""What the file may hold beside the result: the object around it."""
_FAILED = 1
_FIELD_LIMITS = (("type", 256), ("message", 16 * 1024), ("traceback", 64 * 1024))


@dataclass(frozen=True, slots=True, kw_only=True)
class BadResult:
    """Why a file holds no result."""

    what: str
    too_large: bool = False


def read_result(path: Path, max_result_bytes: int) -> bytes | BadResult:
    """What is in the file, if it is one that may be read. Blocking."""
    limit = max_result_bytes + _SLACK_BYTES
    try:
        # A link would be read with our rights, and a pipe would never end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return BadResult(what="/result.json is no plain file any more")
            if status.st_size > limit:
                return BadResult(what="/result.json is too large", too_large=True)
            return file.read(limit)
    except OSError:
        return BadResult(what="/result.json cannot be read any more")


def judge(call: Call, memory_mb: int, status: ExitStatus | None, result: bytes | BadResult) -> CallOutcome:
    """The outcome, without logs and figures. ``status`` is ``None`` for a timeout."""
    if status is None:
        message = f"Function execution timed out ({call.timeout_ms}ms)"
        return CallOutcome(reason="timeout", error={"type": "Timeout", "message": message}, exit_code=-1)
    if status.out_of_memory:
        return _failed("out_of_memory", "OutOfMemory", f"it used more than its {memory_mb} MB of memory", status.code)
    if status.code not in (0, _FAILED):
        return _crashed(status.code)
    if isinstance(result, BadResult):
        if result.too_large:
            return _too_large(call)
        return _crashed(_FAILED) if status.code else _invalid(result.what)
    if status.code == _FAILED:
        return _handler_error(result)
    if not result.strip():
        return _invalid("it left nothing in /result.json")
    try:
        document = json.loads(result, parse_constant=_no_constant)
        if not isinstance(document, dict) or "body" not in document:
            return _invalid("/result.json does not hold an object with a body")
        body = json.dumps(document["body"], ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (ValueError, RecursionError):
        return _invalid("/result.json does not hold JSON")
    if len(body) > call.max_result_bytes:
        return _too_large(call)
    return CallOutcome(reason=None, result=body)


def _handler_error(result: bytes) -> CallOutcome:
    """Exit code 1: the error that the body names, or a crash if there is none to be read."""
    try:
        document = json.loads(result, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return _crashed(_FAILED)
    body = document.get("body") if isinstance(document, dict) else None
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, str):
        error = {"message": error}
    if not isinstance(error, dict) or not error:
        return _crashed(_FAILED)
    said = {name: _printable(error[name])[:limit] for name, limit in _FIELD_LIMITS if isinstance(error.get(name), str)}
    message = failure(said.get("message", "unknown error"))
    return CallOutcome(reason="handler_error", error={"type": "Error", **said, "message": message}, exit_code=_FAILED)


def _failed(reason: str, kind: str, what: str, code: int | None) -> CallOutcome:
    error: Mapping[str, str] = {"type": kind, "message": failure(what)}
    return CallOutcome(reason=reason, error=error, exit_code=code)


def _crashed(code: int | None) -> CallOutcome:
    return _failed("crashed", "Crashed", ended(code), code)


def _invalid(what: str) -> CallOutcome:
    return _failed("invalid_result", "InvalidResult", what, 1)


def _too_large(call: Call) -> CallOutcome:
    what = f"the result is larger than {call.max_result_bytes} bytes"
    return _failed("result_too_large", "ResultTooLarge", what, 1)


def _printable(text: str) -> str:
    """``text`` with lone surrogates escaped, which no encoding of ours could carry."""
    return text.encode("utf-8", "backslashreplace").decode()


def _no_constant(name: str) -> Never:
    raise ValueError(name)
