"""Jobs that follow others, and the event that such a job's function gets.

A following job is inserted in the transaction that ends the job before, which must not wait for the artifact store and
has no keys. So its payload only names the job before: the byte ``03`` and its id. The worker that runs the following
job makes the event from the row of the job before.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

import orjson

from shared.errors import Unreadable
from shared.event import complete
from shared.jobs import JobStatus, Missing
from shared.payload_store import PayloadStore
from shared.sealing import Part

_MARK = b"\x03"  # no JSON text begins with it


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a job ended, as it is kept."""

    job: UUID
    function: str | None
    status: str
    reason: str | None
    result: bytes | None
    error: bytes | None


def reference(job: UUID) -> bytes:
    """The payload of the job that follows ``job``."""
    return _MARK + str(job).encode("ascii")


def referred(payload: bytes) -> UUID | None:
    """The job that an opened payload names; None for one that is an event itself."""
    return UUID(payload[1:].decode("ascii")) if payload[:1] == _MARK else None


async def envelope(end: End, payload_store: PayloadStore) -> bytes:
    """The event that the next function gets. :raises Unavailable: if the artifact store does not give the result."""
    succeeded = end.status == JobStatus.SUCCEEDED
    kept, part = (end.result, Part.RESULT) if succeeded else (end.error, Part.ERROR)
    missing: Missing | None = Missing.EXPIRED if succeeded and kept is None else None
    text = None
    try:
        text = kept and await payload_store.get(kept, end.job, part)
    except Unreadable:
        missing = Missing.UNREADABLE
    body = {
        "job_id": str(end.job),
        "function": end.function,
        "status": end.status,
        "reason": end.reason,
        "result" if succeeded else "error": orjson.Fragment(text) if text else None,
    }
    if missing is not None:
        body["missing"] = missing
    return complete(orjson.dumps({"body": body}), {"body": body})
