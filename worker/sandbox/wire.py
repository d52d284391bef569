"""The words that worker and sandbox exchange over the control connection.

A frame is a 4-byte big-endian length and that many bytes. The bytes are one JSON object on one line, the *head*, whose
first member is ``nonce``; a frame that carries a result has a newline and the result's JSON text after it, so that a
result is handed on verbatim and large ones are never re-encoded. A log entry's message may stand there too, as plain
UTF-8.

==================  =======================================================================================
worker to sandbox   ``{"nonce", "job_id", "attempt", "deadline", "max_result_bytes", "max_log_bytes", "event"}``
worker to a generic sandbox   ``{"kind": "look", "paths"}``
                    ``{"kind": "specialize", "environment"}`` once, with all that a sandbox is started with otherwise
sandbox to worker   ``{"nonce": "0000000000000000", "kind": "seen", "seen"}`` the beginning of each file looked at
                    ``{"nonce": "0000000000000000", "kind": "ready"}`` once, when the function is imported
                    ``{"nonce", "kind": "log", "level", "message"}``, or
                    ``{"nonce", "kind": "log", "level"}`` newline, message
                    ``{"nonce", "kind": "progress", "fraction", "message"}``
                    ``{"nonce", "kind": "error", "reason", "error", "cpu_ms", "peak_memory_bytes", "residue"?}``
                    ``{"nonce", "kind": "result", "response", "cpu_ms", "peak_memory_bytes", "residue"?}``
                    newline, result
==================  =======================================================================================

``residue`` says what a call left behind that would disturb the next one: the sandbox serves none then.

Function code lives in the process at the other end, so nothing that arrives is trusted: a length is checked before
anything is buffered, and the fixed beginning of a frame is checked as soon as it is there, so that stray bytes are
noticed at once instead of being waited for as the rest of a frame that never comes. Only the answer to the running call
may be large, and only behind a small head. A head is read by its schema: the worker skips what it does not know of
without making objects of it, so that a head costs the event loop by its bytes, whatever it is made of.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypedDict, cast

import msgspec
import orjson

from worker.sandbox.contract import Call

HEADER_BYTES = 4
NONCE_CHARS = 16
READY_NONCE = b"0" * NONCE_CHARS
HEAD_BYTES = 1024 * 1024
"""The most that a head may have: an error's traceback and message, or a log entry, with every character escaped."""

_OPENING = b'{"nonce":"'
_NONCE_START = HEADER_BYTES + len(_OPENING)
_NONCE_END = _NONCE_START + NONCE_CHARS
_SHORTEST = len(_OPENING) + NONCE_CHARS + 2


_Scalar = str | int | float | bool | None


class _Error(TypedDict, total=False):
    type: _Scalar
    message: _Scalar
    traceback: _Scalar


class _Head(TypedDict, total=False):
    """All members that the worker knows. Their values are checked where they are used."""

    nonce: str
    kind: _Scalar
    level: _Scalar
    message: _Scalar
    fraction: _Scalar
    reason: _Scalar
    error: _Error | _Scalar
    retry: _Scalar
    response: _Scalar
    cpu_ms: _Scalar
    peak_memory_bytes: _Scalar
    residue: _Scalar
    seen: msgspec.Raw


class _Kind(TypedDict, total=False):
    nonce: str
    kind: _Scalar


_read_head = msgspec.json.Decoder(_Head).decode
_read_kind = msgspec.json.Decoder(_Kind).decode


class GarbledFrame(Exception):
    """What arrived is no frame."""


class OversizeFrame(Exception):
    """A frame with a valid beginning that announces more than may be buffered. ``nonce`` is the one it named."""

    def __init__(self, nonce: bytes) -> None:
        super().__init__(nonce)
        self.nonce = nonce


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One frame from a sandbox: the known members of its head and, for results, the JSON text after it."""

    nonce: bytes
    meta: Mapping[str, object]
    result: bytes | None
    size: int = field(default=0, compare=False)  # in bytes


def encode_call(call: Call, nonce: str) -> bytes:
    """The frame that asks a sandbox to run ``call``. The deadline counts from now, in Unix seconds."""
    head = (
        f'{{"nonce":"{nonce}","job_id":"{call.job_id}","attempt":{call.attempt},'
        f'"deadline":{time.time() + call.timeout_ms / 1000:.6f},'
        f'"max_result_bytes":{call.max_result_bytes},"max_log_bytes":{call.max_log_bytes},"event":'
    ).encode()
    length = len(head) + len(call.event) + 1
    return b"".join((length.to_bytes(HEADER_BYTES, "big"), head, call.event, b"}"))


def encode_generic(kind: str, **members: object) -> bytes:
    """A frame for a generic sandbox: ``look`` or ``specialize``."""
    body = orjson.dumps({"kind": kind, **members})
    return len(body).to_bytes(HEADER_BYTES, "big") + body


class FrameReader:
    """Cuts what a sandbox sends into frames. Holds at most one frame and one chunk."""

    __slots__ = ("_buffer", "_searched", "answer_bytes", "head_bytes", "nonce")

    def __init__(self, head_bytes: int = HEAD_BYTES) -> None:
        self._buffer = bytearray()
        self._searched = 0  # bytes of the buffer in which no newline is
        self.head_bytes = head_bytes
        self.nonce = b""
        """Of the call that runs, whose answer may be large."""
        self.answer_bytes = 0
        """What such an answer may have after its head."""

    @property
    def missing(self) -> int:
        """How many bytes the frame that has begun to arrive still lacks, 0 if that is unknown."""
        buffer = self._buffer
        if len(buffer) < HEADER_BYTES:
            return 0
        return max(HEADER_BYTES + int.from_bytes(buffer[:HEADER_BYTES], "big") - len(buffer), 0)

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> Frame | None:
        """The next whole frame, or ``None`` until more is fed.

        :raises GarbledFrame: what is there cannot become a frame.
        :raises OversizeFrame: the frame is larger than a frame of its nonce may be.
        """
        buffer = self._buffer
        have = len(buffer)
        if have < HEADER_BYTES:
            return None
        length = int.from_bytes(buffer[:HEADER_BYTES], "big")
        if length < _SHORTEST:
            raise GarbledFrame
        if have < _NONCE_END:
            if not _OPENING.startswith(buffer[HEADER_BYTES:_NONCE_START]):
                raise GarbledFrame
            return None
        if buffer[HEADER_BYTES:_NONCE_START] != _OPENING:
            raise GarbledFrame
        nonce = bytes(buffer[_NONCE_START:_NONCE_END])
        if length > self.head_bytes + (self.answer_bytes if nonce == self.nonce else 0):
            raise OversizeFrame(nonce)
        end = HEADER_BYTES + length
        newline = buffer.find(b"\n", max(self._searched, _NONCE_END), min(have, end))
        if newline < 0:
            self._searched = min(have, end)
        if (self._searched if newline < 0 else newline) - HEADER_BYTES > self.head_bytes:
            raise GarbledFrame
        if have < end:
            return None
        self._searched = 0
        with memoryview(buffer) as view:
            head = view[HEADER_BYTES : end if newline < 0 else newline].tobytes()
            result = None if newline < 0 else view[newline + 1 : end].tobytes()
        del buffer[:end]
        return Frame(nonce=nonce, meta=_meta(head), result=result, size=end)


def _meta(head: bytes) -> Mapping[str, object]:
    try:
        try:
            return cast(Mapping[str, object], _read_head(head))
        except msgspec.ValidationError:
            # A member is of a kind that none of its name has. What the frame calls itself still counts.
            return cast(Mapping[str, object], _read_kind(head))
    except msgspec.ValidationError:
        return {}
    except (msgspec.DecodeError, RecursionError) as error:
        raise GarbledFrame from error
