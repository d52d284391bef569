"""The record of an attempt, on its way through the Redis stream to Postgres.

A record is a line of JSON, then the result, the error, the payload and the log entries as they are: their lengths
stand in the line. The same bytes answer a waiting API process, which reads only what it needs. The Lua scripts write
records too, for ends that no worker reports (``closing_record``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson

from shared.ids import from_short

EPOCH_COUNTER_BITS = 40


def epoch_number(epoch: str) -> int:
    """``generation-counter`` as one integer that compares like the pair."""
    generation, _, counter = epoch.partition("-")
    return (int(generation) << EPOCH_COUNTER_BITS) + int(counter)


def epoch_text(number: int) -> str:
    """The reverse of :func:`epoch_number`."""
    return f"{number >> EPOCH_COUNTER_BITS}-{number & ((1 << EPOCH_COUNTER_BITS) - 1)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The end of an attempt, or of a job that had none.

    ``status`` is the job's state from now on; with ``running`` the record does not change the job, but adds to that of
    an attempt which another process ended. ``outcome`` is the attempt's (``None`` if there was none). A handed-back
    attempt does not count for its job, whatever its number. Times are Unix milliseconds, durations milliseconds. The
    next attempt is due ``run_at_ms - at_ms`` after Postgres gets this record, whatever the worker's clock says.
    ``request`` describes the call without its body. With keys, result, error and payload are sealed
    (:mod:`shared.sealing`), and so are, in base64, ``request`` and the messages within ``logs``.
    """

    id: UUID
    user_id: UUID
    function_id: UUID
    version_id: UUID
    queue: str
    status: str
    at_ms: float
    reason: str | None = None
    outcome: str | None = None
    attempt: int = 0
    lost: int = 0
    epoch: str | None = None
    worker: str = ""
    started_ms: float | None = None
    run_at_ms: float | None = None
    start_kind: str | None = None
    exit_code: int | None = None
    queue_ms: float | None = None
    sandbox_ms: float | None = None
    run_ms: float | None = None
    total_ms: float | None = None
    cpu_ms: float | None = None
    peak_memory_bytes: int | None = None
    timeout_ms: int | None = None
    memory_mb: int | None = None
    logs_truncated: bool = False
    request: dict[str, Any] | str | None = None
    kind: str = "invoke"
    result: bytes | None = None
    error: bytes | None = None
    payload: bytes | None = None
    logs: bytes | None = None

    def encode(self) -> bytes:
        blobs = (self.result, self.error, self.payload, self.logs)
        head: dict[str, Any] = {
            "id": str(self.id),
            "user": str(self.user_id),
            "function": str(self.function_id),
            "version": str(self.version_id),
            "queue": self.queue,
            "status": self.status,
            "at_ms": self.at_ms,
            "sizes": [-1 if blob is None else len(blob) for blob in blobs],
        }
        for name in _OPTIONAL:
            value = getattr(self, name)
            if value is not None:
                head[name] = value
        return b"".join((orjson.dumps(head), b"\n", *(blob for blob in blobs if blob)))

    @classmethod
    def decode(cls, data: bytes) -> Record:
        """:raises ValueError: for what is not a record."""
        line, _, rest = data.partition(b"\n")
        try:
            head = orjson.loads(line)
            blobs: list[bytes | None] = []
            start = 0
            for size in head.get("sizes", (-1, -1, -1, -1)):
                blobs.append(None if size < 0 else rest[start : start + size])
                start += max(size, 0)
            if start != len(rest):
                raise ValueError("the record's parts do not add up")
            result, error, payload, logs = blobs
            return cls(
                id=UUID(head["id"]),
                user_id=_identifier(head["user"]),
                function_id=_identifier(head["function"]),
                version_id=_identifier(head["version"]),
                queue=head["queue"],
                status=head["status"],
                at_ms=head["at_ms"],
                result=result,
                error=error,
                payload=payload,
                logs=logs,
                **{name: head[name] for name in _OPTIONAL if name in head},
            )
        except (KeyError, TypeError, AttributeError) as mistake:
            raise ValueError(f"not a record: {mistake}") from mistake


def _identifier(text: str) -> UUID:
    """Scripts write identifiers short."""
    return from_short(text) if len(text) == 22 else UUID(text)


_OPTIONAL = (
    "reason",
    "outcome",
    "attempt",
    "lost",
    "epoch",
    "worker",
    "started_ms",
    "run_at_ms",
    "start_kind",
    "exit_code",
    "queue_ms",
    "sandbox_ms",
    "run_ms",
    "total_ms",
    "cpu_ms",
    "peak_memory_bytes",
    "timeout_ms",
    "memory_mb",
    "logs_truncated",
    "request",
    "kind",
)
