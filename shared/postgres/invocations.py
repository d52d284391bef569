"""The records and logs of attempts, opened for their owner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson

from shared.errors import Unreadable
from shared.postgres.jobs import HIGHEST_ID, LIST_BYTES
from shared.postgres.pool import Pool, postgres_errors
from shared.postgres.queries import queries
from shared.sealing import Keyring, Part

_SQL = queries("jobs")
NEWEST_LOG = (datetime(9999, 1, 1, tzinfo=UTC), HIGHEST_ID, 2**62, 2**30)
NEWEST_INVOCATION = NEWEST_LOG[:3]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One stretch of output. ``position`` orders lines over all jobs of a function; ``cut``: it is the last one that is
    kept of an attempt that wrote more."""

    job_id: UUID
    attempt: int
    stream: str
    level: str
    message: str
    at: datetime
    cut: bool
    position: tuple[datetime, UUID, int, int]


class Invocations:
    """:param keyring: opens sealed texts; in place of one that it cannot open stands a sentence that says why."""

    def __init__(self, pool: Pool, keyring: Keyring | None = None) -> None:
        self._pool = pool
        self._keyring = keyring or Keyring()

    async def logs(
        self,
        function: UUID,
        *,
        job: UUID | None,
        levels: Sequence[str] | None,
        before: tuple[datetime, UUID, int, int],
        limit: int,
    ) -> tuple[Sequence[LogLine], bool]:
        """A page of a function's log, newest first, and whether there is more. A page with long lines is shorter than
        ``limit``."""
        with postgres_errors():
            rows = await self._pool.fetch(_SQL["list_logs"], function, job, levels, *before, limit + 1, LIST_BYTES)
        lines = [
            LogLine(
                job_id=row["job_id"],
                attempt=row["attempt"],
                stream=row["stream"],
                level=row["level"],
                message=self._message(row),
                at=row["logged_at"],
                cut=bool(row["cut"]),
                position=(row["accepted_at"], row["job_id"], row["epoch"], row["seq"]),
            )
            for row in rows[:limit]
        ]
        return lines, _more(rows, limit)

    async def page(
        self, function: UUID, *, job: UUID | None, before: tuple[datetime, UUID, int], limit: int
    ) -> tuple[Sequence[dict[str, Any]], bool]:
        """A page of a function's invocations, newest first, as rows, each with the ``lines`` it printed
        as (stream, level, message); and whether there are more. A page with much output is shorter than ``limit``."""
        with postgres_errors():
            found = await self._pool.fetch(_SQL["list_invocations"], function, job, *before, limit + 1, LIST_BYTES)
            rows = found[:limit]
            printed = await self._pool.fetch(
                _SQL["logs_of_invocations"],
                [row["accepted_at"] for row in rows],
                [row["job_id"] for row in rows],
                [row["epoch"] for row in rows],
            )
        lines: dict[tuple[UUID, int], list[tuple[str, str, str]]] = {}
        for row in printed:
            line = (row["stream"], row["level"], self._message(row))
            lines.setdefault((row["job_id"], row["epoch"]), []).append(line)
        invocations = [
            dict(row)
            | {
                "lines": lines.get((row["job_id"], row["epoch"]), []),
                "error": self._error(row),
                "request": self._request(row),
            }
            for row in rows
        ]
        return invocations, _more(found, limit)

    def _message(self, row: Any) -> str:
        message: str = row["message"]
        return self._keyring.shown(message, row["job_id"], Part.LOG) if row["sealed"] else message

    def _error(self, row: Any) -> str | None:
        if row["error"] is None:
            return None
        try:
            return self._keyring.open_column(row["error"], row["job_id"], Part.ERROR)
        except Unreadable as error:
            return orjson.dumps({"type": "Unreadable", "message": error.message}).decode()

    def _request(self, row: Any) -> str:
        request: str = row["request"]
        if not request.startswith('"'):  # an object, as it was before there were keys
            return request
        try:
            return self._keyring.open_column(orjson.loads(request), row["job_id"], Part.REQUEST)
        except Unreadable:
            return "{}"


def _more(rows: Sequence[Any], limit: int) -> bool:
    """Whether there is more than the first ``limit`` of these rows."""
    return bool(rows) and rows[0]["found"] > min(limit, len(rows))
