"""Follows a job: yields its events as they happen, and connects again whenever the connection breaks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from cli.client import Request
from cli.errors import ApiError, Unreachable
from cli.session import Session, job_path

PATIENCE_S = 30.0
_PAUSE_S = 0.5
_LAST = "end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """``name`` is ``state``, ``log`` or ``progress``."""

    name: str
    data: dict[str, Any]


async def events(session: Session, job_id: str) -> AsyncIterator[Event]:
    """The events of a job until its final state, each once.

    :raises Unreachable: when no event came for :data:`PATIENCE_S` and the server does not answer.
    """
    last_id, heard_at = "", time.monotonic()
    while last_id != _LAST:
        # A call of the ordinary kind first: it renews a token that ran out, and says so when there is no such job.
        await session.call(Request(method="GET", path=job_path(job_id)))
        headers = {"Last-Event-ID": last_id} if last_id else {}
        request = Request(method="GET", path=job_path(job_id, "events"), headers=headers)
        try:
            async for name, event_id, data in session.client.stream(request, token=session.target.access_token):
                heard_at = time.monotonic()
                last_id = event_id or last_id
                yield Event(name=name, data=data)
        except (Unreachable, ApiError) as error:
            if isinstance(error, ApiError) and error.http_status not in (401, 429, 502, 503, 504):
                raise
            if time.monotonic() - heard_at > PATIENCE_S:
                raise
        if last_id != _LAST:
            await asyncio.sleep(_PAUSE_S)
