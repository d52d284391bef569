"""What calls leave behind: tasks, threads, children, open descriptors, files in /tmp, streams that lead elsewhere, an
alarm that is set."""

from __future__ import annotations

import _signal
import _thread
import os
import sys
import time
from typing import Any

from containerpub_runtime.folders import writable_folders
from containerpub_runtime.own_modules import standard

_BEGINNERS_S = 0.1
_ENDING_S = 0.05
_KEPT_DESCRIPTORS = 32
"""How many more descriptors than after the import a function may keep open, for clients that it opens lazily and uses
again. With more than that its sandbox is replaced: a function that leaks them never comes to where opening fails."""


class Residue:
    """Notices what calls leave behind that would disturb later ones."""

    def __init__(self, folder: str) -> None:
        """What is there now, after the import, may stay.

        :param folder: the function's own code, whose timers and callbacks are its calls'.
        """
        self._folder = folder.rstrip(os.sep) + os.sep
        self._tasks = frozenset(unfinished_tasks())
        self._handles = self._own_handles()
        self._threads = frozenset(sys._current_frames())
        self._thread_count = _thread._count()
        self._foreign = tasks() - self._thread_count
        self._children = children_of(os.getpid())
        self._orphans = children_of(os.getppid())
        self._descriptors = open_descriptors()
        self._streams = streams()
        self._newest = newest_process()
        self._folders = writable_folders()

    def found(self) -> str | None:
        """What kind of thing the last call left, ``None`` if nothing."""
        if not self._tasks_end():
            return "tasks"
        # Most calls start neither threads nor processes. To see that none was started is cheaper than to list them.
        newest = newest_process()
        if not newest or newest != self._newest or _thread._count() != self._thread_count:
            self._await_beginners()
            if not self._threads_rest():
                return "threads"
            if (self._children or has_children()) and children_of(os.getpid()) - self._children:
                return "processes"
            if children_of(os.getppid()) - self._orphans:
                return "processes"
            self._newest = newest
        if open_descriptors() > self._descriptors + _KEPT_DESCRIPTORS:
            return "descriptors"
        for folder in self._folders:
            if folder.is_short():
                return f"files in {folder.path}"
        if streams() != self._streams:
            return "streams"  # closed or led elsewhere: the next call could not print
        if _signal.getitimer(_signal.ITIMER_REAL)[0]:
            return "alarm"  # it would go off in the next call
        return None

    def _tasks_end(self) -> bool:
        """Whether no task, timer or callback of a call waits in an event loop: it would go on in the next call. Tasks
        that were just cancelled, or are about to end, get a moment for it."""
        asyncio: Any = standard("asyncio")
        if asyncio is None:  # not looked for by importing it: without it there are none
            return True
        deadline = time.monotonic() + _ENDING_S
        while left := [task for task in unfinished_tasks() if task not in self._tasks]:
            if time.monotonic() > deadline:
                return False
            loop = left[0].get_loop()
            if loop.is_running():  # in a thread
                time.sleep(0.001)
                continue
            if loop.is_closed():
                return False
            waited = [task for task in left if task.get_loop() is loop]
            try:
                loop.run_until_complete(asyncio.wait(waited, timeout=max(deadline - time.monotonic(), 0)))
            except BaseException:  # noqa: BLE001 (a task left by sys.exit)
                return False
        return all(any(handle is one for one in self._handles) for handle in self._own_handles())

    def _own_handles(self) -> list[Any]:
        """Timers and callbacks of the function's own code that an event loop is to run. Those of packages may stay: a
        client that keeps its connections closes them by a timer."""
        found = []
        for loop in event_loops():
            handles = [*getattr(loop, "_scheduled", ()), *getattr(loop, "_ready", ())]
            found += [one for one in handles if not one.cancelled() and self._is_own(one._callback)]
        return found

    def _is_own(self, callback: Any) -> bool:
        for _ in range(8):
            callback = getattr(callback, "func", None) or getattr(callback, "__func__", None) or callback
        code = getattr(callback, "__code__", None)
        return code is not None and code.co_filename.startswith(self._folder)

    def _await_beginners(self) -> None:
        """Wait for threads that were just started: the kernel counts a thread at once, Python only when it gets its
        first turn. One that Python still does not count after this wait is a library's own, and may stay."""
        deadline = time.monotonic() + _BEGINNERS_S
        while tasks() - _thread._count() > self._foreign:
            if time.monotonic() > deadline:
                self._foreign = tasks() - _thread._count()
            time.sleep(0.001)

    def _threads_rest(self) -> bool:
        """Whether the call's threads have ended or gone idle: one that just gave its result away may still be on
        its way there."""
        deadline = time.monotonic() + _ENDING_S
        while self._busy_threads():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True

    def _busy_threads(self) -> bool:
        """Whether a thread is there that a call started, other than idle ones of an executor that is kept."""
        # Looked up, not imported: without the module there is no such thread.
        executors = standard("concurrent.futures.thread")
        idle = None if executors is None else executors._worker.__code__
        own = [frame for thread, frame in sys._current_frames().items() if thread not in self._threads]
        # A thread that runs no Python code has no frame.
        return any(frame.f_code is not idle for frame in own) or _thread._count() - self._thread_count > len(own)


def unfinished_tasks() -> list[Any]:
    """The tasks of all event loops that have not ended."""
    tasks: Any = standard("asyncio.tasks")
    if tasks is None:
        return []
    every = getattr(tasks, "_all_tasks", None)
    if every is None and hasattr(tasks, "_scheduled_tasks"):  # since Python 3.12
        every = [*tasks._scheduled_tasks, *tasks._eager_tasks]
    elif every is None:
        every = [task for loop in event_loops() for task in tasks.all_tasks(loop)]
    return [task for task in list(every) if not task.done()] if every else []


def event_loops() -> list[Any]:
    """The event loop that handlers run in, and the one that the main thread calls its own."""
    events: Any = standard("asyncio.events")
    policy = events and getattr(events, "_event_loop_policy", None)
    loop = getattr(getattr(policy, "_local", None), "_loop", None)
    return [] if loop is None or loop.is_closed() else [loop]


def has_children() -> bool:
    """Whether this process has children, running or not waited for."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def children_of(pid: int) -> frozenset[bytes]:
    """Ids of the child processes of ``pid``; empty where the kernel does not tell.

    Asked about our own parent it tells of processes that the function detached: they become children of that one.
    """
    found: list[bytes] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += file.read().split()
    except OSError:
        pass
    return frozenset(found)


def newest_process() -> bytes:
    """Id of the process or thread that was started last in our namespace; empty where the kernel does not tell."""
    try:
        with open("/proc/loadavg", "rb", buffering=0) as file:
            newest: bytes = file.read(128).split()[-1]
    except (OSError, IndexError):
        return b""
    return newest.strip(b"0") and newest


def tasks() -> int:
    """The threads of this process as the kernel counts them, give or take a constant."""
    try:
        return os.stat("/proc/self/task").st_nlink
    except OSError:
        return 0


def streams() -> list[tuple[int, int] | None]:
    """What stdout and stderr lead to; ``None`` for one that is closed."""
    found: list[tuple[int, int] | None] = []
    for descriptor in (1, 2):
        try:
            at = os.fstat(descriptor)
            found.append((at.st_dev, at.st_ino))
        except OSError:
            found.append(None)
    return found


def open_descriptors() -> int:
    try:
        # The size is their number since Linux 6.2, and zero before.
        return os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0
