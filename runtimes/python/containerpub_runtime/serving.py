"""The start of a sandbox, and the loop that answers its calls one by one."""

from __future__ import annotations

import os
import resource
import socket
import sys
from collections.abc import Sequence
from typing import Any

from containerpub import Context, FunctionError

from containerpub_runtime import ROOT
from containerpub_runtime.call_log import CallLog
from containerpub_runtime.channel import PREFIX, READY_NONCE, Channel, connect, printable
from containerpub_runtime.function import MESSAGE_CHARS, Function
from containerpub_runtime.residue import Residue
from containerpub_runtime.result import NoJson, encode
from containerpub_runtime.standard_logging import capture

_MOST_WISHED_S = 86_400
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # what the kernel counts the peak memory in


def main(kind: type[Function] = Function, also_wanted: Sequence[str] = ()) -> None:
    """Connect to the worker, become the sandbox of a function, and serve its calls.

    :param kind: what the user's code is served as.
    :param also_wanted: what a generic sandbox imports beside the modules that most Python functions need.
    """
    given = {name[len(PREFIX) :]: os.environ.pop(name) for name in list(os.environ) if name.startswith(PREFIX)}
    if "CONTROL" in given:
        channel = Channel(socket.socket(fileno=int(given["CONTROL"])))
        os.set_inheritable(int(given["CONTROL"]), False)
    else:
        channel = Channel(connect(given["ADDRESS"], "control", given["TOKEN"]))
        for descriptor, role in ((1, "stdout"), (2, "stderr")):
            with connect(given["ADDRESS"], role, given["TOKEN"]) as connection:
                os.dup2(connection.fileno(), descriptor)
    # Buffered by the line: a whole line reaches the worker whatever ends the process then, and it takes a third of the
    # system calls that output without a buffer takes.
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr  # type: ignore[misc]
    if "GENERIC" in given:
        from containerpub_runtime.specialize import be_specialized

        given = be_specialized(channel, also_wanted)
    folder = given.get("FOLDER", "/function")
    dependencies = given.get("DEPENDENCIES", "/dependencies")
    show_packages_to_children(dependencies)
    log = CallLog(channel)
    capture(log.write)
    function = kind(given["HANDLER"], folder, dependencies)
    serve(channel, log, function, given["FUNCTION"], int(given["VERSION"]), folder)
    os._exit(0)


def show_packages_to_children(dependencies: str) -> None:
    """Programs that the function starts find the scripts of its packages, and Pythons the packages."""
    if not os.path.isdir(dependencies):
        return
    scripts, children = os.path.join(dependencies, "bin"), os.path.join(ROOT, "containerpub_runtime", "children")
    os.environ["PATH"] = os.pathsep.join(filter(None, (scripts, os.environ.get("PATH"))))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), children)))
    os.environ["CONTAINERPUB_PACKAGES"] = dependencies


def serve(channel: Channel, log: CallLog, function: Function, name: str, version: int, folder: str) -> None:
    """Answer calls until the worker hangs up."""
    residue = Residue(folder)
    channel.send({"nonce": READY_NONCE, "kind": "ready"})
    while True:
        call = channel.receive()
        if call is None:
            return
        log.begin(call["nonce"], call["max_log_bytes"])
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
    forget_peak()
    before_ms, _, children_before = usage()
    function.room = call["max_result_bytes"]
    try:
        returned = function.run(call["event"], context)
        try:
            result, meta["response"] = encode(returned)
            meta["kind"] = "result"
        except NoJson as error:
            message = "the result is not JSON: " + printable(str(error))[:MESSAGE_CHARS]
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
    after_ms, peak, children_after = usage()
    if children_after > children_before:  # else the largest child was an earlier call's
        peak = max(peak, children_after)
    meta["cpu_ms"], meta["peak_memory_bytes"] = round(after_ms - before_ms, 3), peak
    return meta, result


def forget_peak() -> None:
    """Let the kernel measure the peak of this process's memory from now on, where it can."""
    try:
        descriptor = os.open("/proc/self/clear_refs", os.O_WRONLY)
    except OSError:
        return
    try:
        os.write(descriptor, b"5")
    except OSError:
        pass
    finally:
        os.close(descriptor)


def usage() -> tuple[float, int, int]:
    """CPU time of this process and its ended children in ms; its peak memory and that of the largest child in bytes."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    return seconds * 1000, own.ru_maxrss * _RSS_UNIT, children.ru_maxrss * _RSS_UNIT


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
