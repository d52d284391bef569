"""How the command ends: its exit statuses, and the one table that maps a server's answer to them.

::

    CliError
    ├── UsageError         the command line, the project folder or the configuration is wrong
    ├── NotLoggedIn        no credentials, or the server did not accept them
    ├── ApiError           the server answered with a problem document
    ├── Unreachable        no usable answer came
    ├── WaitRanOut         the job was not final when the wait ran out
    └── OutputClosed       the reader of the output went away
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum


class ExitStatus(IntEnum):
    """What the process exits with; scripts may rely on every one."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_ALLOWED = 3
    NOT_FOUND = 4
    REJECTED = 5
    UNAVAILABLE = 6
    WAIT_RAN_OUT = 7
    INTERRUPTED = 130
    OUTPUT_CLOSED = 141


EXIT_STATUS: Mapping[str, ExitStatus] = {
    "unauthenticated": ExitStatus.NOT_ALLOWED,
    "forbidden": ExitStatus.NOT_ALLOWED,
    "not_found": ExitStatus.NOT_FOUND,
    "bad_request": ExitStatus.REJECTED,
    "conflict": ExitStatus.REJECTED,
    "function_stopped": ExitStatus.REJECTED,
    "too_large": ExitStatus.REJECTED,
    "invalid": ExitStatus.REJECTED,
    "archive_rejected": ExitStatus.REJECTED,
    "too_many": ExitStatus.REJECTED,
    "artifact_missing": ExitStatus.UNAVAILABLE,
    "artifact_corrupt": ExitStatus.UNAVAILABLE,
    "unreadable": ExitStatus.UNAVAILABLE,
    "error": ExitStatus.UNAVAILABLE,
    "misconfigured": ExitStatus.UNAVAILABLE,
    "dependency_down": ExitStatus.UNAVAILABLE,
    "wait_timeout": ExitStatus.WAIT_RAN_OUT,
    "request_timeout": ExitStatus.UNAVAILABLE,
    "queue_timeout": ExitStatus.WAIT_RAN_OUT,
    "http_401": ExitStatus.NOT_ALLOWED,
    "http_403": ExitStatus.NOT_ALLOWED,
    "http_404": ExitStatus.NOT_FOUND,
    "http_4xx": ExitStatus.REJECTED,
    "http_5xx": ExitStatus.UNAVAILABLE,
}
"""A problem's ``code`` to exit status. Any other code goes by its HTTP status: ``http_404`` before ``http_4xx``."""


def exit_status(code: str, http_status: int) -> ExitStatus:
    """The exit status for a problem document with ``code`` that came with ``http_status``."""
    for key in (code, f"http_{http_status}", f"http_{http_status // 100}xx"):
        if key in EXIT_STATUS:
            return EXIT_STATUS[key]
    return ExitStatus.UNAVAILABLE


class CliError(Exception):
    """Ends the command.

    :param message: one sentence for a person, saying what is wrong.
    :param hint: what to do about it, if the message does not say.
    :param code: stable identifier, part of the ``--json`` document.
    """

    status = ExitStatus.USAGE
    default_code = "usage"

    def __init__(self, message: str, *, hint: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or self.default_code

    def document(self) -> dict[str, object]:
        """The members of ``error`` in the ``--json`` document."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "exit_status": int(self.status)}


class UsageError(CliError):
    """The command was given wrongly; nothing was sent."""


class NotLoggedIn(CliError):
    status = ExitStatus.NOT_ALLOWED
    default_code = "unauthenticated"


class Unreachable(CliError):
    """:param before_sending: no byte of the request left, so that sending it again cannot run anything twice."""

    status = ExitStatus.UNAVAILABLE
    default_code = "unreachable"

    def __init__(self, message: str, *, hint: str | None = None, before_sending: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.before_sending = before_sending


class WaitRanOut(CliError):
    status = ExitStatus.WAIT_RAN_OUT
    default_code = "wait_ran_out"


class OutputClosed(CliError):
    status = ExitStatus.OUTPUT_CLOSED
    default_code = "output_closed"


class ApiError(CliError):
    """The server refused. ``retry_after_s`` is from its ``Retry-After``, ``problem`` its whole document."""

    def __init__(self, *, http_status: int, problem: Mapping[str, object], retry_after_s: float | None = None) -> None:
        code = problem.get("code")
        code = code if isinstance(code, str) and code else f"http_{http_status}"
        detail = problem.get("detail") or problem.get("title")
        message = detail if isinstance(detail, str) else f"The server answered with HTTP status {http_status}."
        super().__init__(message, code=code, hint=_hint(code, http_status, retry_after_s))
        self.status = exit_status(code, http_status)
        self.http_status = http_status
        self.problem = problem
        self.retry_after_s = retry_after_s

    def document(self) -> dict[str, object]:
        known = {"type", "title", "status", "code", "detail"}
        more = {name: value for name, value in self.problem.items() if name not in known}
        return {**more, **super().document(), "http_status": self.http_status}


def _hint(code: str, http_status: int, retry_after_s: float | None) -> str | None:
    if http_status == 401:
        return "Run `containerpub login`."
    if code == "not_found":
        return "See `containerpub list` for functions and `containerpub jobs` for jobs."
    if retry_after_s is not None:
        return f"Try again in {retry_after_s:.0f} s."
    if http_status >= 500:
        return "Try again later; the server's log says more."
    return None
