"""Seals the private parts of an attempt's record before it leaves the worker, and stores a large result apart."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson

from shared.errors import Unavailable
from shared.event import describe_payload
from shared.payload_store import PayloadStore
from shared.sealing import Keyring, Part, to_column
from worker.sandbox.contract import CallOutcome
from worker.sandbox.log import LogEntry

log = logging.getLogger(__name__)

_MANY_ENTRIES = 1000
"""A log of more entries is sealed in a thread: it would hold up the event loop for milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedParts:
    """As :class:`shared.queue.records.Record` has them."""

    request: dict[str, Any] | str | None
    result: bytes | None
    error: bytes | None
    logs: bytes | None


async def sealed_parts(job: UUID, event: bytes, outcome: CallOutcome, payload_store: PayloadStore) -> SealedParts:
    """:param event: what the function was called with; empty if it never got that far."""
    result = outcome.result
    if result:
        try:
            result = await payload_store.put(result, job, Part.RESULT)
        except Unavailable as error:
            # The function ran: a large result in the record is better than a second run.
            log.warning("a large result stays in the record", extra={"job": str(job), "error": error.message})
            result = payload_store.keyring.seal(result, job, Part.RESULT)
    if len(outcome.logs) >= _MANY_ENTRIES:
        return await asyncio.to_thread(_sealed, job, event, outcome, result, payload_store.keyring)
    return _sealed(job, event, outcome, result, payload_store.keyring)


def _sealed(job: UUID, event: bytes, outcome: CallOutcome, result: bytes | None, keyring: Keyring) -> SealedParts:
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
        result=result,
        error=None if outcome.error is None else keyring.seal(orjson.dumps(outcome.error), job, Part.ERROR),
        logs=orjson.dumps(lines) if lines else None,
    )


def _message(entry: LogEntry, job: UUID, keyring: Keyring) -> str:
    # As it is shown where nothing is sealed: Postgres has no U+0000 there.
    return keyring.seal_column(entry.message.replace("\x00", "\\x00"), job, Part.LOG)
