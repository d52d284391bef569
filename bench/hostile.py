"""Functions that misbehave, each in one of many ways, and the reason that each way truly has."""

from __future__ import annotations

from dataclasses import dataclass

HOSTILE = """
import ctypes
import os
import random
import signal
import socket
import stat
import sys
import threading
import time


def loop():
    while True:
        pass


def allocate():
    held = []
    while True:
        held.append(bytearray(os.urandom(4096) * 1024))


def fork_bomb():
    while True:
        try:
            os.fork()
        except OSError:
            pass


def leave_children():
    for _ in range(20):
        if os.fork() == 0:
            os.setsid()
            while True:
                time.sleep(1)
    return "left children"


def fill_disk():
    with open("/tmp/full", "wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 20))


def fill_inodes():
    number = 0
    while True:
        number += 1
        open("/tmp/%d" % number, "w").close()


def open_files():
    held = []
    while True:
        held.append(open("/dev/null"))


def close_streams():
    os.close(1)
    os.close(2)
    return "closed my streams"


def kill_parent():
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(3600)


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


def stop_self():
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(3600)


def sockets():
    for name in os.listdir("/proc/self/fd"):
        try:
            if int(name) > 2 and stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                yield int(name)
        except OSError:
            pass


def garbage():
    for descriptor in list(sockets()):
        try:
            os.write(descriptor, os.urandom(random.randint(64, 4096)))
        except OSError:
            pass
    time.sleep(3600)


def huge_frame():
    for descriptor in list(sockets()):
        try:
            os.write(descriptor, b"\\xff\\xff\\xff\\xff" + bytes(4096))
        except OSError:
            pass
    time.sleep(3600)


def hang_up():
    for descriptor in list(sockets()):
        os.close(descriptor)
    time.sleep(3600)


def leave():
    os._exit(3)


def fault():
    ctypes.string_at(0)


def large_result():
    return "x" * 50_000_000


def not_a_number():
    return float("nan")


def not_json():
    return {"thread": threading.current_thread()}


def flood(megabytes=100):
    line = b"x" * 99 + b"\\n"
    block = line * 10_000
    for _ in range(megabytes):
        left = memoryview(block)
        while left:
            left = left[os.write(1, left):]
    return "printed"


def flood_a_little():
    return flood(1)


def ignore_signals():
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    loop()


def leave_threads():
    for _ in range(4):
        threading.Thread(target=loop).start()
    return "left threads"


def deep():
    return deep()


def handler(event, context):
    return globals()[event["body"]]()
"""
MEMORY_MB = 256
"""Enough for a result of 50 MB and its JSON: the size is what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """:param reason: ``None`` for a call that succeeds. :param exit_code: where it says more than the reason.
    :param patient: it needs the longer time-out, having much to do.
    """

    reason: str | None
    exit_code: int | None = None
    truncated: bool = False
    patient: bool = False


WAYS: dict[str, Way] = {
    "loop": Way(reason="timeout", exit_code=-1),
    "ignore_signals": Way(reason="timeout", exit_code=-1),
    "fork_bomb": Way(reason="timeout", exit_code=-1),
    "stop_self": Way(reason="timeout", exit_code=-1),
    "allocate": Way(reason="out_of_memory", exit_code=137, patient=True),
    "fill_disk": Way(reason="handler_error", patient=True),
    "fill_inodes": Way(reason="handler_error", patient=True),
    "open_files": Way(reason="handler_error", patient=True),
    "deep": Way(reason="handler_error", patient=True),
    "kill_parent": Way(reason="crashed", patient=True),
    "kill_self": Way(reason="crashed", exit_code=137, patient=True),
    "garbage": Way(reason="crashed", patient=True),
    "huge_frame": Way(reason="crashed", patient=True),
    "hang_up": Way(reason="crashed", patient=True),
    "leave": Way(reason="crashed", exit_code=3, patient=True),
    "fault": Way(reason="crashed", patient=True),
    "large_result": Way(reason="result_too_large", patient=True),
    "not_a_number": Way(reason="invalid_result", patient=True),
    "not_json": Way(reason="invalid_result", patient=True),
    "flood_a_little": Way(reason=None, truncated=True, patient=True),
    "flood": Way(reason=None, truncated=True, patient=True),
    "close_streams": Way(reason=None, patient=True),
    "leave_children": Way(reason=None, patient=True),
    "leave_threads": Way(reason=None, patient=True),
}
