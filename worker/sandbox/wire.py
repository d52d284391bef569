"""The words that worker and sandbox exchange over the control connection.

A frame is a 4-byte big-endian length and that many bytes. The bytes are one JSON object on one line whose first
member is ``nonce``; a frame that carries a result has a newline and the result's JSON text after it, so that a result
is handed on verbatim and large ones are never re-encoded.

==================  =======================================================================================
worker to sandbox   ``{"nonce", "job_id", "attempt", "deadline", "max_result_bytes", "max_log_bytes", "event"}``
worker to a generic sandbox   ``{"kind": "look", "paths"}``
                    ``{"kind": "specialize", "environment"}`` once, with all that a sandbox is started with otherwise
sandbox to worker   ``{"nonce": "0000000000000000", "kind": "seen", "seen"}`` the beginning of each file looked at
                    ``{"nonce": "0000000000000000", "kind": "ready"}`` once, when the function is imported
                    ``{"nonce", "kind": "log", "level", "message"}``
                    ``{"nonce", "kind": "progress", "fraction", "message"}``
                    ``{"nonce", "kind": "error", "reason", "error", "cpu_ms", "peak_memory_bytes", "residue"?}``
                    ``{"nonce", "kind": "result", "response", "cpu_ms", "peak_memory_bytes", "residue"?}``
                    newline, result
==================  =======================================================================================

``residue`` says what a call left behind that would disturb the next one: the sandbox serves none then.

Function code lives in the process at the other end, so nothing that arrives is trusted: a length is checked before
anything is buffered, and the fixed beginning of a frame is checked as soon as it is there, so that stray bytes are
noticed at once instead of being waited for as the rest of a frame that never comes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from worker.sandbox.contract import Call

HEADER_BYTES = 4
NONCE_CHARS = 16
READY_NONCE = b"0" * NONCE_CHARS
FRAME_SLACK_BYTES = 128 * 1024
"""What a frame may need beside the result: the object before it, or an error with its traceback."""

_OPENING = b'{"nonce":"'
_NONCE_START = HEADER_BYTES + len(_OPENING)
_NONCE_END = _NONCE_START + NONCE_CHARS
_SHORTEST = len(_OPENING) + NONCE_CHARS + 2


class GarbledFrame(Exception):
    """What arrived is no frame."""


class OversizeFrame(Exception):
    """A frame with a valid beginning that announces more than may be buffered. ``nonce`` is the one it named."""

    def __init__(self, nonce: bytes) -> None:
        super().__init__(nonce)
        self.nonce = nonce


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One frame from a sandbox: the object before the newline and, for results, the JSON text after it."""

    nonce: bytes
    meta: Mapping[str, object]
    result: bytes | None


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
    """Cuts what a sandbox sends into frames. Holds at most ``limit`` bytes and one chunk."""

    __slots__ = ("_buffer", "limit")

    def __init__(self, limit: int) -> None:
        self._buffer = bytearray()
        self.limit = limit

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> Frame | None:
        """The next whole frame, or ``None`` until more is fed.

        :raises GarbledFrame: what is there cannot become a frame.
        :raises OversizeFrame: the frame is larger than ``limit``.
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
        if length > self.limit:
            raise OversizeFrame(nonce)
        end = HEADER_BYTES + length
        if have < end:
            return None
        newline = buffer.find(b"\n", _NONCE_END, end)
        with memoryview(buffer) as view:
            head = view[HEADER_BYTES : end if newline < 0 else newline].tobytes()
            result = None if newline < 0 else view[newline + 1 : end].tobytes()
        del buffer[:end]
        try:
            meta = orjson.loads(head)
        except orjson.JSONDecodeError as error:
            raise GarbledFrame from error
        if not isinstance(meta, dict):
            raise GarbledFrame
        return Frame(nonce=nonce, meta=meta, result=result)
