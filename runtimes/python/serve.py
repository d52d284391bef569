"""The python runtime inside a sandbox: connects to the worker, imports the function, serves calls one by one.

Started as a generic sandbox it connects, imports what most functions need, and waits to be told which function it is.

Only the standard library of Python 3.9 and later. ``worker/sandbox/wire.py`` describes what is exchanged and
``worker/sandbox/attach.py`` how the connections are made. Function code shares this process: nothing kept here is
secret from it, and the worker trusts nothing that comes from here.
"""

from __future__ import annotations

import _thread
import gc
import json
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

_HERE = os.path.dirname(os.path.abspath(__file__))
_PREFIX = "CONTAINERPUB_ATTACH_"
_READY_NONCE = "0" * 16
_COROUTINE = 0x80  # inspect.CO_COROUTINE, without what importing inspect costs at every start
_MESSAGE_CHARS = 16 * 1024
_TRACEBACK_CHARS = 64 * 1024
_REPORT_EVERY_S = 0.05
_REPORT_CHARS = 1024
_MOST_WISHED_S = 86_400
_BEGINNERS_S = 0.1
_ENDING_S = 0.05
_KEPT_DESCRIPTORS = 32
"""More open files than after the import that a function may keep: clients that it opens lazily and uses again. One
that leaks is replaced at this point, far from where opening fails."""
_IMPORT_GC = (10_000, 10, 10)
"""Importing makes many objects and hardly any garbage: looking for some as often as usual takes a tenth of its time."""
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024

sys.path[0] = os.path.join(_HERE, "sdk")
from containerpub import Context, FunctionError, Response  # noqa: E402
from containerpub.marking import marked  # noqa: E402

PLATFORM_FOLDERS = [_HERE + os.sep]
"""Whose frames no traceback shows; a runtime that builds on this one adds its own."""
MOST_WANTED = [
    *("asyncio", "base64", "ctypes", "dataclasses", "datetime", "decimal", "encodings.idna", "hashlib", "http.client"),
    *("http.cookiejar", "importlib.metadata", "logging", "mimetypes", "pickle", "platform", "queue", "random", "re"),
    *("secrets", "site", "tempfile", "traceback", "typing", "urllib.request", "uuid"),
]
"""What a generic sandbox imports before it meets its function: what most functions and their packages import, or
serving one needs. A runtime that builds on this one adds its own."""


class NoHandler(Exception):
    """The function's code does not have the handler that it should have."""


class Channel:
    """The control connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._received = bytearray()
        # A forked child that spoke here would garble the parent's answers.
        os.register_at_fork(after_in_child=connection.close)

    def hand_over(self) -> int:
        """The descriptor, for the program that this process is about to become."""
        self._connection.set_inheritable(True)
        return self._connection.fileno()

    def receive(self) -> dict[str, Any] | None:
        """The next call, or ``None`` once the worker is gone."""
        received = self._received
        while True:
            if len(received) >= 4:
                end = 4 + int.from_bytes(received[:4], "big")
                if len(received) >= end:
                    call: dict[str, Any] = json.loads(received[4:end])
                    del received[:end]
                    return call
            data = self._connection.recv(262144)
            if not data:
                return None
            received += data

    def send(self, meta: dict[str, Any], result: bytes | None = None) -> None:
        """``meta`` must begin with its nonce; ``result`` is JSON text."""
        body = json.dumps(meta, separators=(",", ":")).encode()
        if result is not None:
            body += b"\n" + result
        with self._lock:
            self._connection.sendall(len(body).to_bytes(4, "big") + body)


class CallLog:
    """Where ``context.logger`` writes: frames of the call that runs, up to its log limit."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._logger: Any = None
        self.nonce = ""
        self.room = 0
        self.reported_at = 0.0

    def logger(self) -> Any:
        if self._logger is None:
            import logging

            log = self

            class ToWorker(logging.Handler):
                def emit(self, record: logging.LogRecord) -> None:
                    try:
                        log.write(record.levelno, self.format(record))
                    except Exception:  # noqa: BLE001 (as every handler of the standard library)
                        self.handleError(record)

            self._logger = logging.Logger("function", logging.DEBUG)
            self._logger.addHandler(ToWorker())
        return self._logger

    def write(self, level: int, message: str) -> None:
        # The message that passes the limit is still sent (cut): from it the worker knows that something is missing.
        if self.room < 0 or not self.nonce:
            return
        message = printable(message)[: self.room + 1]
        self.room -= max(len(message), 1)
        names = ((50, "critical"), (40, "error"), (30, "warning"), (20, "info"))
        name = next((name for bound, name in names if level >= bound), "debug")
        self._channel.send({"nonce": self.nonce, "kind": "log", "level": name, "message": message})

    def report(self, fraction: float, message: str) -> None:
        now = time.monotonic()
        if not self.nonce or (now - self.reported_at < _REPORT_EVERY_S and fraction < 1):
            return
        self.reported_at = now
        message = printable(message)[:_REPORT_CHARS]
        self._channel.send({"nonce": self.nonce, "kind": "progress", "fraction": fraction, "message": message})


class Residue:
    """Notices what calls leave behind that would disturb later ones."""

    def __init__(self) -> None:
        """What is there now, after the import, may stay."""
        self._threads = frozenset(sys._current_frames())
        self._thread_count = _thread._count()
        self._foreign = tasks() - self._thread_count
        self._children = children_of(os.getpid())
        self._orphans = children_of(os.getppid())
        self._descriptors = open_descriptors()
        self._streams = streams()
        self._newest = newest_process()

    def found(self) -> str | None:
        """What kind of thing the last call left, ``None`` if nothing."""
        # Most calls start nothing, which is cheaper to see than what there is.
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
        if streams() != self._streams:
            return "streams"  # closed or led elsewhere: the next call could not print
        return None

    def _await_beginners(self) -> None:
        """A thread that was only just started shows itself once it gets its turn; the kernel knows it before. What does
        not show itself is a library's own, and may stay."""
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
        executors = sys.modules.get("concurrent.futures.thread")
        idle = None if executors is None else executors._worker.__code__
        own = [frame for thread, frame in sys._current_frames().items() if thread not in self._threads]
        # One that runs no Python code has no frame.
        return any(frame.f_code is not idle for frame in own) or _thread._count() - self._thread_count > len(own)


class Function:
    """The user's code: its handler, or what went wrong while it was imported."""

    def __init__(self, name: str, folder: str, dependencies: str) -> None:
        self._folders = ((folder, "/function"), (dependencies, "/dependencies"))
        self._loop: Any = None
        self.room = 0  # bytes that the running call's result may have
        self._handler: Callable[..., Any] | None = None
        self._broken: BaseException | None = None
        sys.path[0:0] = [folder]
        _unload_shadowed(folder)
        if os.path.isdir(dependencies):
            import site

            site.addsitedir(dependencies)
        usual_gc = gc.get_threshold()
        gc.set_threshold(*_IMPORT_GC)
        try:
            self._handler = self.adapt(find_handler(name, folder))
            code = getattr(self._handler, "__code__", None)
            if code is not None and code.co_flags & _COROUTINE:
                self._event_loop()
        except BaseException as error:  # noqa: BLE001 (whatever it is, each call reports it)
            self._broken, self._broken_at = error, error.__traceback__
            if isinstance(error, MemoryError):
                # The frames in its traceback hold on to all that memory, and without some no call can be received.
                self._broken, self._broken_at = MemoryError(), None
        if gc.get_threshold() == _IMPORT_GC:  # else the function knows better
            gc.set_threshold(*usual_gc)

    def adapt(self, found: Callable[..., Any]) -> Callable[..., Any]:
        """The handler of what was found under the handler's name."""
        return found

    def run(self, event: Any, context: Context) -> Any:
        if self._handler is None:
            assert self._broken is not None
            raise self._broken.with_traceback(self._broken_at)
        result = self._handler(event, context)
        if hasattr(result, "__await__"):
            return self._event_loop().run_until_complete(_await(result))
        return result

    def describe(self, error: BaseException) -> dict[str, str]:
        """``error`` for the caller, with a traceback of the function's own frames."""
        try:
            message = str(error)
        except Exception:  # noqa: BLE001 (a user's __str__)
            message = "(the error has no readable message)"
        described = {"type": type(error).__name__, "message": printable(message)[:_MESSAGE_CHARS]}
        if not isinstance(error, (FunctionError, NoHandler)):
            try:
                described["traceback"] = self._traceback(error)
            except OSError:
                # Not a descriptor is left to read source with: the function's frames hold what it opened.
                clear_frames(error)
                described["traceback"] = self._traceback(error)
        return described

    def _event_loop(self) -> Any:
        # One loop for the sandbox's life, so that clients which a handler keeps stay usable.
        if self._loop is None:
            import asyncio

            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        return self._loop

    def _traceback(self, error: BaseException) -> str:
        import traceback

        whole = traceback.TracebackException(type(error), error, error.__traceback__)
        pending = [whole]
        while pending:
            part = pending.pop()
            own = [frame for frame in part.stack if not _is_platform(frame.filename)]
            part.stack = traceback.StackSummary.from_list(own)
            pending += [one for one in (part.__cause__, part.__context__) if one is not None]
            pending += getattr(part, "exceptions", None) or []
        text = "".join(whole.format())
        for folder, shown in self._folders:
            text = text.replace(folder, shown)
        return printable(text)[-_TRACEBACK_CHARS:]


_preloaded: set[str] = set()
"""Names of the modules that were imported for a function that was not there yet."""


def _unload_shadowed(folder: str) -> None:
    """Forget the preloaded modules that the function has one of its own for, which goes first as in a plain start."""
    names = {entry.partition(".")[0] for entry in os.listdir(folder)} & _preloaded if _preloaded else None
    if not names:
        return
    from importlib.machinery import PathFinder

    for name in names:
        own = PathFinder.find_spec(name, [folder])
        if own is not None and own.loader is not None:
            for module in [one for one in sys.modules if one == name or one.startswith(name + ".")]:
                del sys.modules[module]


async def _await(awaitable: Any) -> Any:
    return await awaitable


def _is_platform(filename: str) -> bool:
    return filename.startswith((*PLATFORM_FOLDERS, "<frozen importlib"))


def find_handler(name: str, folder: str) -> Callable[..., Any]:
    """Import the module that ``name`` (``module:attribute``) means, and return the handler.

    Without a name it is the function marked ``@function``, in ``main.py`` or in the only module there is.
    """
    module_name, _, attribute = name.partition(":")
    module_name = module_name or _only_module(folder)
    try:
        __import__(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise
        message = f"there is no module {module_name!r} for the handler {name!r} in the function's folder"
        raise NoHandler(message) from None
    found: Any = sys.modules[module_name]
    if not attribute and marked:
        if len(marked) > 1:
            names = ", ".join(sorted(one.__name__ for one in marked))
            raise NoHandler(f"several functions are marked @function ({names}): name one as the handler")
        return marked[0]
    for part in (attribute or "handler").split("."):
        found = getattr(found, part, None)
    if not callable(found):
        what = f"function {attribute!r}" if attribute else "function that is marked @function or called 'handler'"
        raise NoHandler(f"the module {module_name!r} has no {what}")
    return found  # type: ignore[no-any-return]


def _only_module(folder: str) -> str:
    modules = sorted(entry[:-3] for entry in os.listdir(folder) if entry.endswith(".py"))
    if "main" in modules:
        return "main"
    if len(modules) == 1:
        return modules[0]
    raise NoHandler("no handler is named, and there is no main.py to look for one in")


def printable(text: str) -> str:
    """``text`` with lone surrogates escaped, which no encoding of ours could carry."""
    return text.encode("utf-8", "backslashreplace").decode()


def encode(result: Any) -> tuple[bytes, bool]:
    """JSON text of ``result``, and whether it is a :class:`Response`."""
    shaped = isinstance(result, Response)
    if shaped:
        result = result.document()
    text = json.dumps(result, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.encode(), shaped


def usage() -> tuple[float, int]:
    """CPU time of this process and its ended children in ms, and the peak memory of the largest in bytes."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    return seconds * 1000, max(own.ru_maxrss, children.ru_maxrss) * _RSS_UNIT


def serve(channel: Channel, function: Function, name: str, version: int) -> None:
    """Answer calls until the worker hangs up."""
    log = CallLog(channel)
    residue = Residue()
    channel.send({"nonce": _READY_NONCE, "kind": "ready"})
    while True:
        call = channel.receive()
        if call is None:
            return
        log.nonce, log.room, log.reported_at = call["nonce"], call["max_log_bytes"], 0.0
        context = Context(call["job_id"], call["attempt"], name, version, call["deadline"], log.logger, log.report)
        meta, result = answer(function, call, context)
        log.nonce = ""
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:  # noqa: BLE001, S110 (the function closed or replaced it)
                pass
        left = residue.found()
        if left is not None:
            meta["residue"] = left
        channel.send(meta, result)


def answer(function: Function, call: dict[str, Any], context: Context) -> tuple[dict[str, Any], bytes | None]:
    """Run one call; the frame to send for it."""
    meta: dict[str, Any] = {"nonce": call["nonce"], "kind": "error"}
    result: bytes | None = None
    before_ms, _ = usage()
    function.room = call["max_result_bytes"]
    try:
        returned = function.run(call["event"], context)
        try:
            result, meta["response"] = encode(returned)
            meta["kind"] = "result"
        except (TypeError, ValueError, RecursionError) as error:
            message = "the result is not JSON: " + printable(str(error))[:_MESSAGE_CHARS]
            meta.update(reason="invalid_result", error={"type": "InvalidResult", "message": message})
        limit = call["max_result_bytes"]
        if result is not None and len(result) > limit:
            message = f"the result has {len(result)} bytes, the limit is {limit}"
            meta.update(kind="error", reason="result_too_large", error={"type": "ResultTooLarge", "message": message})
            result = None
    except SystemExit as error:
        leave(error)
    except MemoryError:
        meta.update(reason="out_of_memory", error={"type": "MemoryError", "message": "it ran out of memory"})
    except BaseException as error:  # noqa: BLE001 (whatever the function raises is its result)
        meta.update(reason="handler_error", error=function.describe(error))
        if isinstance(error, FunctionError):
            wish = wish_of(error)
            if wish is not None:
                meta["retry"] = wish
    after_ms, peak = usage()
    meta["cpu_ms"], meta["peak_memory_bytes"] = round(after_ms - before_ms, 3), peak
    return meta, result


def wish_of(error: FunctionError) -> float | bool | None:
    """What a failure says of another attempt: False for none, seconds until it, None for what the settings say."""
    if not error.retry:
        return False
    wish: Any = error.retry_after_s
    is_number = isinstance(wish, (int, float)) and not isinstance(wish, bool)
    if wish is None:
        return None
    if is_number and wish >= 0:
        return min(wish, _MOST_WISHED_S)
    given = str(wish) if is_number else type(wish).__name__
    try:
        sys.stderr.write(f"retry_after_s must be a number of seconds, not {given}: the function's settings hold\n")
    except Exception:  # noqa: BLE001, S110 (the function closed or replaced it)
        pass
    return None


def leave(error: SystemExit) -> None:
    """End the process as ``sys.exit`` would, but without waiting for threads that the function left running."""
    code = error.code
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # noqa: BLE001, S110 (the function closed or replaced it)
            pass
    os._exit((code or 0) & 0xFF)


def has_children() -> bool:
    """Whether this process has children, running or not waited for."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def children_of(pid: int) -> frozenset[bytes]:
    """Ids of the processes that are children of ``pid``: of our own, or, of our parent, of those that lost theirs.

    Empty where the kernel does not tell.
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


def clear_frames(error: BaseException) -> None:
    """Let go of what the ended frames in the error's traceback hold."""
    at = error.__traceback__
    while at is not None:
        try:
            at.tb_frame.clear()
        except RuntimeError:  # it has not ended
            pass
        at = at.tb_next


def open_descriptors() -> int:
    try:
        # The size is their number since Linux 6.2, and zero before.
        return os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0


def connect(address: str, role: str, token: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(address)
    connection.sendall(f"{role:<7} {token}".encode())
    return connection


def be_specialized(channel: Channel) -> dict[str, str]:
    """Wait as a generic sandbox; then the environment is the function's, and the names that are the platform's are
    returned."""
    before = set(sys.modules)
    for name in MOST_WANTED:
        __import__(name)
    _preloaded.update(set(sys.modules) - before)
    while True:
        told = channel.receive()
        if told is None:
            os._exit(0)
        if told["kind"] == "look":
            seen = {path: _read(path) for path in told["paths"]}
            channel.send({"nonce": _READY_NONCE, "kind": "seen", "seen": seen})
            continue
        environment: dict[str, str] = told["environment"]
        given = {n[len(_PREFIX) :]: environment.pop(n) for n in list(environment) if n.startswith(_PREFIX)}
        if "HOSTNAME" in os.environ:
            environment.setdefault("HOSTNAME", os.environ["HOSTNAME"])  # the engine's to set
        os.chdir(given.get("FOLDER", "/function"))
        if any(_shapes_the_start(name) and os.environ.get(name) != environment[name] for name in environment):
            # Only a program that starts reads them.
            environment.update({_PREFIX + name: value for name, value in given.items()})
            arguments = getattr(sys, "orig_argv", None) or [sys.executable, os.path.abspath(__file__)]
            environment[_PREFIX + "CONTROL"] = str(channel.hand_over())
            os.execve(sys.executable, arguments, environment)  # noqa: S606
        os.environ.clear()
        os.environ.update(environment)
        return given


def _shapes_the_start(name: str) -> bool:
    return name.startswith(("PYTHON", "LD_", "LC_", "MALLOC_", "GLIBC_")) or name in ("LANG", "LANGUAGE", "TZ")


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read(256)
    except OSError:
        return ""


def main(kind: type[Function] = Function) -> None:
    """``kind`` is what the user's code is served as."""
    given = {name[len(_PREFIX) :]: os.environ.pop(name) for name in list(os.environ) if name.startswith(_PREFIX)}
    if "CONTROL" in given:
        channel = Channel(socket.socket(fileno=int(given["CONTROL"])))
        os.set_inheritable(int(given["CONTROL"]), False)
    else:
        channel = Channel(connect(given["ADDRESS"], "control", given["TOKEN"]))
        for descriptor, role in ((1, "stdout"), (2, "stderr")):
            with connect(given["ADDRESS"], role, given["TOKEN"]) as connection:
                os.dup2(connection.fileno(), descriptor)
    # By the line: whole lines survive whatever ends the process, at a third of the system calls of no buffer.
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr  # type: ignore[misc]
    if "GENERIC" in given:
        given = be_specialized(channel)
    folder = given.get("FOLDER", "/function")
    function = kind(given["HANDLER"], folder, given.get("DEPENDENCIES", "/dependencies"))
    serve(channel, function, given["FUNCTION"], int(given["VERSION"]))
    os._exit(0)


if __name__ == "__main__":
    main()
