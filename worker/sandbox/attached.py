"""A sandbox that has connected to us: runs calls over the wire, whatever engine it lives in.

The engine's part is a :class:`Vessel`, the container or process that holds the function.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from worker.build.recipe import Exhaustion
from worker.errors import EngineUnavailable
from worker.sandbox.attach import Connections
from worker.sandbox.contract import Call, CallOutcome
from worker.sandbox.hints import ended, hint
from worker.sandbox.log import LogEntry, LogStream
from worker.sandbox.output import Output
from worker.sandbox.result_check import Checked, check
from worker.sandbox.tail import Tail
from worker.sandbox.wire import (
    HEAD_BYTES,
    READY_NONCE,
    Frame,
    FrameReader,
    GarbledFrame,
    OversizeFrame,
    encode_call,
    encode_generic,
)

_CHUNK_BYTES = 64 * 1024
_FEW_BYTES = 16 * 1024
"""Read at once when no large frame is on its way: some hundred frames of the smallest, which take a millisecond."""
_START_LOG_BYTES = 256 * 1024
_CHATTER_BYTES = 4 * 1024 * 1024
_CHATTER_BYTES_PER_S = 32 * 1024
_FRAME_COST_BYTES = 64
"""Beyond a call's log limit, how much may come over the control connection beside its result, counted in whole frames
and something for each: so much at once, and reports of progress for as long as the call may run."""
_MOST_CPU_MS = 1e12
_MOST_MEMORY_BYTES = 2**50
_REASONS = frozenset(("handler_error", "invalid_result", "result_too_large", "out_of_memory"))
_REUSABLE = frozenset((None, "handler_error", "invalid_result", "result_too_large"))
_FIELD_LIMITS = (("type", 256), ("message", 16 * 1024), ("traceback", 64 * 1024))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitStatus:
    """How a vessel ended. ``code`` is ``None`` if it closed its connection and went on running."""

    code: int | None
    out_of_memory: bool


class Vessel(Protocol):
    """The container or process of a sandbox."""

    def kill(self) -> None:
        """Begin to kill everything in it, at once and without waiting; idempotent."""

    async def pause(self) -> None:
        """Freeze everything in it. Raises :class:`EngineUnavailable`."""

    async def unpause(self) -> None:
        """Let it run again. Raises :class:`EngineUnavailable`."""

    async def exit_status(self) -> ExitStatus:
        """How it ended, waiting a moment for that. Raises :class:`EngineUnavailable`."""

    async def remove(self) -> None:
        """Kill it and return when nothing of it is left; idempotent. Raises :class:`EngineUnavailable`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ending:
    """The end of a call: a frame, or the cause for which none came."""

    frame: Frame | None = None
    cause: str = "frame"  # frame, timeout, lost, garbled, oversize


_TIMEOUT = _Ending(cause="timeout")
_LOST = _Ending(cause="lost")
_GARBLED = _Ending(cause="garbled")
_OVERSIZE = _Ending(cause="oversize")


def failure(message: str) -> str:
    """The sentence of every failure that is not a timeout."""
    return f"Function execution failed: {message}"


class AttachedSandbox:
    """Implements :class:`worker.sandbox.contract.Sandbox`."""

    def __init__(
        self,
        sandbox_id: str,
        memory_mb: int,
        vessel: Vessel,
        connections: Connections,
        remove: Callable[[], Awaitable[None]],
    ) -> None:
        """``remove`` removes the vessel with all that it owns, however often it is called."""
        self.id = sandbox_id
        self._memory_mb = memory_mb
        self._vessel = vessel
        self._remove = remove
        self.exhaustion: Exhaustion | None = None
        self.network: bool | None = None  # whether it has one, if that is known
        self._loop = asyncio.get_running_loop()
        self._control = connections.control
        self._control_fd = connections.control.fileno()
        self._output = Output(connections.stdout, connections.stderr, _START_LOG_BYTES)
        self._reader = FrameReader()
        self._ready = self._loop.create_future()
        self._seen: asyncio.Future[Mapping[str, object]] | None = None
        self._late = False
        self._broken: _Ending | None = None
        self._nonce = b""
        self._tail: Tail | None = None
        self._waiter: asyncio.Future[_Ending] | None = None
        self._chatter = _CHATTER_BYTES
        self._unsent: memoryview | None = None
        self._hung_up = False
        self._destroyed = False
        self._loop.add_reader(self._control_fd, self._on_readable)

    @property
    def reusable(self) -> bool:
        return self._broken is None

    async def imported(self, timeout_s: float) -> None:
        """Wait until the function's module is imported or cannot be. One that takes longer than ``timeout_s`` has
        used up the time of its first call, which then reports the timeout."""
        done, _ = await asyncio.wait((self._ready,), timeout=timeout_s)
        self._late = not done

    async def look(self, paths: Sequence[str], timeout_s: float) -> Mapping[str, object]:
        """What a generic sandbox reads in the files ``paths``. Raises :class:`EngineUnavailable`."""
        seen: asyncio.Future[Mapping[str, object]] = self._loop.create_future()
        self._seen = seen
        self._send(encode_generic("look", paths=paths))
        if self._broken is not None:
            seen.cancel()
        done, _ = await asyncio.wait((seen,), timeout=timeout_s)
        self._seen = None
        if not done or seen.cancelled():
            raise EngineUnavailable(f"The generic sandbox {self.id} does not answer.")
        return seen.result()

    def specialize(self, environment: Mapping[str, str]) -> None:
        """Send a generic sandbox the environment of its function, which any other sandbox gets at its start."""
        self._send(encode_generic("specialize", environment=environment))

    async def call(self, call: Call) -> CallOutcome:
        if self._waiter is not None or self._destroyed:
            raise RuntimeError(f"sandbox {self.id} is busy or destroyed")
        nonce = secrets.token_hex(8)
        self._nonce = nonce.encode()
        self._reader.nonce = self._nonce
        self._reader.head_bytes = max(HEAD_BYTES, 4 * call.max_log_bytes)
        self._reader.answer_bytes = call.max_result_bytes
        self._chatter = call.max_log_bytes + _CHATTER_BYTES + _CHATTER_BYTES_PER_S * call.timeout_ms // 1000
        self._output.begin(call.max_log_bytes, call.tail)
        self._tail = call.tail
        waiter = self._waiter = self._loop.create_future()
        timer = self._loop.call_later(call.timeout_ms / 1000, self._break, _TIMEOUT)
        started = time.perf_counter()
        try:
            if self._broken is not None:
                self._settle(self._broken)
            elif self._late:
                self._break(_TIMEOUT)
            else:
                self._send(encode_call(call, nonce))
            ending = await waiter
        except asyncio.CancelledError:
            self._break(_LOST)
            self._vessel.kill()
            self._output.finish()  # its tail has it
            raise
        finally:
            timer.cancel()
            self._waiter = self._tail = None
        run_ms = (time.perf_counter() - started) * 1000
        logs, truncated = self._output.finish()
        outcome = await self._reported(ending.frame, call) if ending.frame is not None else None
        if outcome is None:
            outcome = await self._unreported(_GARBLED if ending.frame is not None else ending, call, logs)
        if outcome.reason not in _REUSABLE or self._unsent is not None or _left_residue(ending.frame):
            self._break(_LOST)
        error = outcome.error
        if error is not None and outcome.reason is not None:
            advice = hint(outcome.reason, error, network=self.network)
            error = error if advice is None else {**error, "hint": advice}
        return CallOutcome(
            reason=outcome.reason,
            result=outcome.result,
            error=error,
            logs=logs,
            logs_truncated=truncated,
            exit_code=outcome.exit_code,
            run_ms=run_ms,
            cpu_ms=outcome.cpu_ms,
            peak_memory_bytes=outcome.peak_memory_bytes,
            is_response=outcome.is_response,
            retry=outcome.retry,
        )

    async def pause(self) -> None:
        await self._change(self._vessel.pause())

    async def unpause(self) -> None:
        await self._change(self._vessel.unpause())

    async def destroy(self) -> None:
        self.hang_up()
        await self._remove()

    def hang_up(self) -> None:
        """Close the connections: no call is taken any more, and one that runs ends. Idempotent."""
        self._destroyed = True
        self._break(_LOST)
        if self._hung_up:
            return
        self._hung_up = True
        self._output.close()
        self._control.close()

    async def _change(self, change: Awaitable[None]) -> None:
        """Pause or unpause. If that fails or is cancelled, the sandbox may be either, so it serves no call any more."""
        try:
            await change
        except BaseException:
            self._break(_LOST)
            raise

    async def _reported(self, frame: Frame, call: Call) -> CallOutcome | None:
        """The outcome that the sandbox reports, or ``None`` when its report makes no sense."""
        meta = frame.meta
        cpu_ms = meta.get("cpu_ms")
        peak = meta.get("peak_memory_bytes")
        # The sandbox may be hostile: figures that no machine has would not fit into the record.
        if not isinstance(cpu_ms, int | float) or not 0 <= cpu_ms < _MOST_CPU_MS:
            return None
        if not isinstance(peak, int) or not 0 <= peak < _MOST_MEMORY_BYTES:
            return None
        # The kernel counts pages of files that processes share, too, which are not the sandbox's.
        peak = min(peak, self._memory_mb * 1024**2)
        if meta.get("kind") == "result":
            result = frame.result
            if result is None:
                return None
            if len(result) > call.max_result_bytes:
                return self._too_large(call)
            try:
                checked = await check(result, shaped=meta.get("response") is True)
            except EngineUnavailable as lost:
                return _lost(lost)
            if checked is Checked.NO_JSON:
                return CallOutcome(
                    reason="invalid_result",
                    error={"type": "InvalidResult", "message": failure("the result is not JSON")},
                    exit_code=1,
                    cpu_ms=cpu_ms,
                    peak_memory_bytes=peak,
                )
            shaped = checked is Checked.ANSWER
            return CallOutcome(reason=None, result=result, cpu_ms=cpu_ms, peak_memory_bytes=peak, is_response=shaped)
        reason, error = meta.get("reason"), meta.get("error")
        if not isinstance(reason, str) or reason not in _REASONS or not isinstance(error, dict):
            return None
        said = {name: error[name][:limit] for name, limit in _FIELD_LIMITS if isinstance(error.get(name), str)}
        said["message"] = failure(said.get("message", "unknown error"))
        retry = meta.get("retry")
        if retry is not False and (isinstance(retry, bool) or not isinstance(retry, int | float) or not retry >= 0):
            retry = None
        return CallOutcome(reason=reason, error=said, exit_code=1, cpu_ms=cpu_ms, peak_memory_bytes=peak, retry=retry)

    async def _unreported(self, ending: _Ending, call: Call, logs: Sequence[LogEntry]) -> CallOutcome:
        """The outcome of a call that the sandbox did not answer."""
        if ending.cause == "timeout":
            message = f"Function execution timed out ({call.timeout_ms}ms)"
            return CallOutcome(reason="timeout", error={"type": "Timeout", "message": message}, exit_code=-1)
        if ending.cause == "oversize":
            return self._too_large(call)
        if ending.cause == "garbled":
            return self._crashed("it sent what is no answer to the platform", 1)
        try:
            status = await self._vessel.exit_status()
        except EngineUnavailable as error:
            return _lost(error)
        if status.out_of_memory or self._is_exhausted(status.code, logs):
            message = failure(f"it used more than its {self._memory_mb} MB of memory")
            return CallOutcome(
                reason="out_of_memory", error={"type": "OutOfMemory", "message": message}, exit_code=status.code
            )
        if status.code is None:
            return self._crashed("it closed its connection to the platform", 1)
        return self._crashed(ended(status.code), status.code)

    def _is_exhausted(self, code: int | None, logs: Sequence[LogEntry]) -> bool:
        """Whether the runtime itself says that memory ran out. A function that says so harms only itself."""
        way = self.exhaustion
        if way is None or code != way.exit_code:
            return False
        return any(way.says in entry.message for entry in logs if entry.stream is LogStream.STDERR)

    @staticmethod
    def _crashed(what: str, code: int) -> CallOutcome:
        return CallOutcome(reason="crashed", error={"type": "Crashed", "message": failure(what)}, exit_code=code)

    @staticmethod
    def _too_large(call: Call) -> CallOutcome:
        message = failure(f"the result is larger than {call.max_result_bytes} bytes")
        return CallOutcome(reason="result_too_large", error={"type": "ResultTooLarge", "message": message}, exit_code=1)

    def _send(self, frame: bytes) -> None:
        try:
            sent = self._control.send(frame)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._break(_LOST)
            return
        if sent < len(frame):
            self._unsent = memoryview(frame)[sent:]
            self._loop.add_writer(self._control_fd, self._on_writable)

    def _on_writable(self) -> None:
        unsent = self._unsent
        if unsent is None:
            return
        try:
            unsent = unsent[self._control.send(unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self._break(_LOST)
            return
        self._unsent = unsent if len(unsent) else None
        if self._unsent is None:
            self._loop.remove_writer(self._control_fd)

    def _on_readable(self) -> None:
        try:
            data = self._control.recv(min(max(self._reader.missing, _FEW_BYTES), _CHUNK_BYTES))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._break(_LOST)
            return
        reader = self._reader
        reader.feed(data)
        try:
            while (frame := reader.next()) is not None:
                self._on_frame(frame)
        except GarbledFrame:
            self._break(_GARBLED)
        except OversizeFrame as error:
            self._break(_OVERSIZE if error.nonce == self._nonce and self._waiter is not None else _GARBLED)

    def _on_frame(self, frame: Frame) -> None:
        kind = frame.meta.get("kind")
        self._chatter -= _FRAME_COST_BYTES + frame.size
        if frame.nonce == self._nonce and self._waiter is not None:
            if kind in ("result", "error"):
                # From here on the nonce is spent: a second answer to the same call is dropped.
                self._nonce = self._reader.nonce = b""
                self._settle(_Ending(frame=frame))
                return
            if kind == "log":
                level, message = frame.meta.get("level"), frame.meta.get("message")
                if frame.result is not None:
                    message = frame.result.decode("utf-8", "backslashreplace")
                if isinstance(level, str) and isinstance(message, str):
                    self._output.add(level, message)
            elif kind == "progress" and self._tail is not None:
                self._tail.report(frame.meta.get("fraction"), frame.meta.get("message"))
        elif frame.nonce == READY_NONCE and kind == "ready" and not self._ready.done():
            self._ready.set_result(None)
        elif self._seen is not None and kind == "seen" and not self._seen.done():
            self._seen.set_result(_files_seen(frame.meta.get("seen")))
        if self._chatter < 0:
            self._break(_GARBLED)

    def _settle(self, ending: _Ending) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(ending)

    def _break(self, ending: _Ending) -> None:
        """Make the sandbox unusable. The first cause stays, and a running call ends with it."""
        if self._broken is None:
            self._broken = ending
            if ending is not _LOST:
                self._vessel.kill()
            if not self._ready.done():
                self._ready.set_result(None)
            if self._seen is not None:
                self._seen.cancel()
            self._loop.remove_reader(self._control_fd)
            self._loop.remove_writer(self._control_fd)
        self._settle(ending)


def _left_residue(frame: Frame | None) -> bool:
    """Whether a call left something in its sandbox that would disturb the next one. Only the sandbox can tell, and one
    that lies disturbs nothing but its own function."""
    return frame is not None and frame.meta.get("residue") is not None


def _lost(error: EngineUnavailable) -> CallOutcome:
    message = failure(f"its sandbox was lost ({error})")
    return CallOutcome(
        reason="sandbox_start_failed", error={"type": "EngineUnavailable", "message": message}, exit_code=None
    )


def _files_seen(told: object) -> Mapping[str, object]:
    try:
        return msgspec.json.decode(told, type=dict[str, str]) if isinstance(told, msgspec.Raw) else {}
    except msgspec.MsgspecError:
        return {}
