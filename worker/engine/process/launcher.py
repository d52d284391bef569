"""Starts one function's process and stays its parent: a small init, run as a script of its own.

``launcher.py <limits as JSON> <program> [argument]...``. Limits are set here, between fork and exec, in a process
that has one thread and none of the worker's state. Everything that the function starts, however it detaches itself,
ends up as this process's child, so that it can be found; and where it is the first process of a namespace, killing it
takes all of them along. When the function's process ends, this one kills what is left below it and ends too. Only the
standard library.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from typing import NoReturn

_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38


def become(limits: dict[str, int], argv: list[str]) -> NoReturn:
    """Turn this freshly forked process into the function's."""
    os.setsid()
    for name, value in limits.items():
        kind = getattr(resource, "RLIMIT_" + name)
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(kind, (value, value))
    os.execv(argv[0], argv)  # noqa: S606


def children() -> list[int]:
    """Processes whose parent we are, by birth or because theirs ended."""
    found = []
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as stat:
                    # The name before the last parenthesis may hold anything; state and parent follow it.
                    if int(stat.read().rpartition(")")[2].split()[1]) == os.getpid():
                        found.append(int(entry))
            except OSError:
                continue
    return found


def clear_away() -> None:
    """Kill all that is below us: a process that loses its parent by that becomes our child, and is next."""
    while below := children():
        for child in below:
            os.kill(child, signal.SIGKILL)
        for _ in below:
            os.wait()


def main() -> NoReturn:
    limits, argv = json.loads(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    child = os.fork()
    if child == 0:
        try:
            become(limits, argv)
        except BaseException as error:  # noqa: BLE001 (whatever it is, the exit code tells)
            os.write(2, (f"{type(error).__name__}: {error}\n").encode())
        finally:
            os._exit(127)
    while True:
        ended, status = os.wait()
        if ended == child:
            clear_away()
            # As a shell tells it: 128 and the signal's number.
            os._exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))


main()
