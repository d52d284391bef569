"""The outcome of a call by a program's exit code and by its result file.

The file is the function's: what is in it, and with the ``process`` engine whether it still is a file, is not trusted.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from worker.sandbox.attached import ExitStatus, failure
from worker.sandbox.contract import Call, CallOutcome
from worker.sandbox.hints import ended
from worker.sandbox.result_document import NotRead, Unreadable, body_of, error_of

_SLACK_BYTES = 64 * 1024
"""What the file may hold beside the result: the object around it."""
_FAILED = 1


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
    """The outcome, without logs and figures. ``status`` is ``None`` for a timeout. Blocking."""
    try:
        return _judged(call, memory_mb, status, result)
    except NotRead as error:
        return _failed("sandbox_start_failed", "EngineUnavailable", str(error), None)


def _judged(call: Call, memory_mb: int, status: ExitStatus | None, result: bytes | BadResult) -> CallOutcome:
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
        body = body_of(result)
    except Unreadable as error:
        return _invalid(str(error))
    if len(body) > call.max_result_bytes:
        return _too_large(call)
    return CallOutcome(reason=None, result=body)


def _handler_error(result: bytes) -> CallOutcome:
    """Exit code 1: the error that the body names, or a crash if there is none to be read."""
    try:
        said = error_of(result)
    except Unreadable:
        return _crashed(_FAILED)
    if not said:
        return _crashed(_FAILED)
    error = {**said, "message": failure(said["message"])}
    return CallOutcome(reason="handler_error", error=error, exit_code=_FAILED)


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
