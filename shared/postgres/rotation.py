"""Seals anew, in short steps while everything serves, each text in Postgres that the first key did not seal.

Each step is a commit of its own, and a rotation passes over rows that are done: one that was stopped is started again
and goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson

from shared.errors import Unreadable
from shared.postgres.jobs import LOWEST_ID
from shared.postgres.pool import Connection, Pool, postgres_errors
from shared.postgres.queries import queries
from shared.sealing import Keyring, Part, from_column, to_column

_SQL = queries("rotation")
_PAGE = 1000
_RECORDS_PAGE = 200
_MOST_ROWS = 200
_MOST_BYTES = 8_000_000
_FIRST = datetime(1, 1, 1, tzinfo=UTC)
_PARTS = (Part.PAYLOAD, Part.RESULT, Part.ERROR)


@dataclass(slots=True)
class Rotated:
    """How many rows were sealed anew. ``unreadable`` names the texts that could not be opened and stay as they were:
    the job's or user's id, the part, and why."""

    jobs: int = 0
    invocations: int = 0
    logs: int = 0
    secrets: int = 0
    unreadable: list[tuple[UUID, Part, str]] = field(default_factory=list)


class Rotation:
    """:param keyring: its first key seals, all its keys open."""

    def __init__(self, pool: Pool, keyring: Keyring) -> None:
        self._pool = pool
        self._keyring = keyring
        self._rotated = Rotated()

    async def run_once(self) -> Rotated:
        """Go through all rows once. Raises ``Unavailable``; the rows that were done until then stay done."""
        self._rotated = Rotated()
        with postgres_errors():
            await self._jobs()
            await self._invocations()
            await self._logs()
            await self._secrets()
        return self._rotated

    async def _jobs(self) -> None:
        after = LOWEST_ID
        while page := await self._pool.fetch(_SQL["jobs_to_seal"], after, _PAGE, self._keyring.first_head):
            for ids in _portions((row["id"], row["bytes"]) for row in page if row["stale"]):
                async with self._pool.acquire() as connection, connection.transaction():
                    await self._seal_jobs(connection, ids)
            after = page[-1]["id"]

    async def _seal_jobs(self, connection: Connection, ids: Sequence[UUID]) -> None:
        sealed = []
        for row in await connection.fetch(_SQL["hold_jobs"], ids):
            before = [row[part.value] for part in _PARTS]
            after = [self._resealed(text, row["id"], part) for text, part in zip(before, _PARTS, strict=True)]
            if after != before:
                sealed.append((row["id"], *after))
        if sealed:
            await connection.execute(_SQL["seal_jobs"], *_columns(sealed))
            self._rotated.jobs += len(sealed)

    async def _invocations(self) -> None:
        after: tuple[Any, ...] = (_FIRST, LOWEST_ID, -1)
        while page := await self._pool.fetch(_SQL["invocations_to_seal"], *after, _RECORDS_PAGE):
            sealed = []
            for row in page:
                key = after = (row["accepted_at"], row["job_id"], row["epoch"])
                before = (row["error"], row["request"])
                texts = (self._error(row), self._request(row))
                if texts != before:
                    sealed.append((*key, *texts))
            if sealed:
                await self._pool.execute(_SQL["seal_invocations"], *_columns(sealed))
                self._rotated.invocations += len(sealed)

    def _error(self, row: Any) -> str | None:
        if row["error"] is None:
            return None
        resealed = self._resealed(from_column(row["error"]), row["job_id"], Part.ERROR)
        return None if resealed is None else to_column(resealed)

    def _request(self, row: Any) -> str:
        """As a JSON text: an object as long as it is not sealed, then a string."""
        text: str = row["request"]
        if text == "{}":
            return text
        before = from_column(orjson.loads(text)) if text.startswith('"') else text.encode()
        after = self._resealed(before, row["job_id"], Part.REQUEST)
        return text if after is None or after == before else orjson.dumps(to_column(after)).decode()

    async def _logs(self) -> None:
        after: tuple[Any, ...] = (_FIRST, LOWEST_ID, -1, -1)
        while page := await self._pool.fetch(_SQL["logs_to_seal"], *after, _RECORDS_PAGE):
            sealed = []
            for row in page:
                key = after = (row["accepted_at"], row["job_id"], row["epoch"], row["seq"])
                before = from_column(row["message"]) if row["sealed"] else row["message"].encode()
                if row["sealed"]:
                    message = self._resealed(before, row["job_id"], Part.LOG)
                else:  # whatever it begins with
                    message = self._keyring.seal(before, row["job_id"], Part.LOG)
                if message and message != before:
                    sealed.append((*key, to_column(message)))
            if sealed:
                await self._pool.execute(_SQL["seal_logs"], *_columns(sealed))
                self._rotated.logs += len(sealed)

    async def _secrets(self) -> None:
        after = LOWEST_ID
        while page := await self._pool.fetch(_SQL["webhook_secrets_to_seal"], after, _PAGE):
            for row in page:
                after = row["user_id"]
                before = (row["secret"], row["previous"])
                texts = tuple(self._secret(text, after) for text in before)
                # Its user may have made another one meanwhile, which the first key sealed.
                if texts != before and await self._pool.fetchval(_SQL["seal_webhook_secret"], after, *texts, *before):
                    self._rotated.secrets += 1

    def _secret(self, text: str | None, user: UUID) -> str | None:
        resealed = None if text is None else self._resealed(from_column(text), user, Part.SIGNING)
        return None if resealed is None else to_column(resealed)

    def _resealed(self, text: bytes | None, job: UUID, part: Part) -> bytes | None:
        """``text`` sealed by the first key; unchanged if that key sealed it before, or if it cannot be opened."""
        if not text or text.startswith(self._keyring.first_head):
            return text
        try:
            return self._keyring.reseal(text, job, part)
        except Unreadable as error:
            self._rotated.unreadable.append((job, part, error.message))
            return text


def _portions(rows: Iterable[tuple[UUID, int]]) -> Iterable[list[UUID]]:
    """The ids of rows in portions that one transaction takes, bounded by the number of rows and by their bytes."""
    portion: list[UUID] = []
    held = 0
    for identifier, size in rows:
        if portion and (len(portion) == _MOST_ROWS or held + size > _MOST_BYTES):
            yield portion
            portion, held = [], 0
        portion.append(identifier)
        held += size
    if portion:
        yield portion


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
