"""What a failed call most likely met of its sandbox's limits, and what to do about it."""

from __future__ import annotations

import signal
from collections.abc import Mapping

_NO_NETWORK = (
    'the function has no network; network = "egress" in its project file lets it reach public addresses '
    "(where the operator allows that)"
)
_SIGNS = (
    (
        ("No space left on device", "ENOSPC"),
        "/tmp and /dev/shm are small and in memory, and here one of them is full: "  # noqa: S108
        "remove files after use, work on streams, or keep less in them",
    ),
    (
        ("Too many open files", "EMFILE"),
        "the sandbox may have only so many files and connections open at once: close them after use (with, "
        "finally), and use one client for all calls",
    ),
    (
        ("Read-only file system", "EROFS"),
        "the function's own folder cannot be written; only /tmp can, and it lasts no longer than the sandbox",
    ),
    (
        ("can't start new thread", "pthread_create failed", "BlockingIOError: [Errno 11]"),
        "the sandbox may have only so many processes and threads at once: wait for those that are started, or use "
        "a pool of a few",
    ),
)
_NAMES_NOT_FOUND = (
    *("gaierror", "Name or service not known", "Temporary failure in name resolution", "NameResolutionError"),
    *("EAI_AGAIN", "ENOTFOUND", "ENETUNREACH", "Network is unreachable", "No address associated with hostname"),
)
_LIKELY = {
    "SIGSEGV": "native code, of a package or by ctypes, used memory that is not its own",
    "SIGBUS": "memory behind a file was not there: /dev/shm or /tmp is full (shared memory takes room there), or a "
    "mapped file was shortened",
    "SIGKILL": "the function killed itself, or its memory ran out at once",
    "SIGABRT": "native code gave up, as when it is out of memory; its last words may be in the log",
    "SIGILL": "native code uses an instruction that this processor lacks: a package was built for another one",
    "SIGFPE": "native code divided by zero",
    "SIGSYS": "native code made a system call that sandboxes do not allow",
    "SIGXFSZ": "a file became larger than a sandbox may write",
    "SIGXCPU": "it used up the processor time of a sandbox's whole life",
    "SIGTERM": "the function ended itself, or was told to by a program that it started",
}


def ended(code: int | None) -> str:
    """How a process ended before it gave a result; where a signal did it, which one and why that usually is."""
    message = f"the process ended with exit code {code} before it gave a result"
    if code is None or not 128 < code < 128 + signal.NSIG:
        return message
    try:
        name = signal.Signals(code - 128).name
    except ValueError:
        return message
    likely = _LIKELY.get(name)
    return f"{message} ({name}{': ' + likely if likely else ''})"


def hint(reason: str, error: Mapping[str, str], *, network: bool | None) -> str | None:
    """What to do about ``error``, if a limit of the sandbox is its likely cause.

    :param network: whether the sandbox has one; ``None`` if that is not known.
    """
    if reason == "timeout":
        more_time = "timeout_s of the function's settings gives a call more time"
        return (
            f"{more_time}; if it waited for an address that it cannot reach, {_NO_NETWORK}"
            if network is False
            else more_time
        )
    if reason == "out_of_memory":
        return (
            "memory_mb of the function's settings gives it more; files in /tmp count as memory too, and so does "
            "what global "
            "variables keep from call to call"
        )
    said = f"{error.get('type', '')}: {error.get('message', '')}\n{error.get('traceback', '')[-2048:]}"
    for signs, advice in _SIGNS:
        if any(sign in said for sign in signs):
            return advice
    if network is False and any(sign in said for sign in _NAMES_NOT_FOUND):
        return _NO_NETWORK
    return None
