"""What of an attempt's record is its owner's alone, sealed before it leaves the worker."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson

from shared.event import describe_payload
from shared.sealing import Keyring, Part, to_column
from worker.engine.contract import CallOutcome, LogEntry

_MANY_ENTRIES = 1000
"""Of the log: from here on, sealing them would hold up the event loop for milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedParts:
    """As :class:`shared.queue.records.Record` has them."""

    request: dict[str, Any] | str | None
    result: bytes | None
    error: bytes | None
    logs: bytes | None


async def sealed_parts(job: UUID, event: bytes, outcome: CallOutcome, keyring: Keyring) -> SealedParts:
    """:param event: what the function was called with; empty if it never got that far."""
    if len(outcome.logs) >= _MANY_ENTRIES:
        return await asyncio.to_thread(_sealed, job, event, outcome, keyring)
    return _sealed(job, event, outcome, keyring)


def _sealed(job: UUID, event: bytes, outcome: CallOutcome, keyring: Keyring) -> SealedParts:
    request: dict[str, Any] | str | None = (describe_payload(event) or None) if event else None
    lines: list[Any]
    if keyring.seals:
        lines = [(entry.stream, entry.level, _message(entry, job, keyring), True) for entry in outcome.logs]
        if request is not None:
            request = to_column(keyring.seal(orjson.dumps(request), job, Part.REQUEST))
    else:
        lines = [(entry.stream, entry.level, entry.message) for entry in outcome.logs]
    return SealedParts(
        request=request,
        result=outcome.result and keyring.seal(outcome.result, job, Part.RESULT),
        error=None if outcome.error is None else keyring.seal(orjson.dumps(outcome.error), job, Part.ERROR),
        logs=orjson.dumps(lines) if lines else None,
    )


def _message(entry: LogEntry, job: UUID, keyring: Keyring) -> str:
    # As it is shown where nothing is sealed: Postgres has no U+0000 there.
    return keyring.seal_column(entry.message.replace("\x00", "\\x00"), job, Part.LOG)
