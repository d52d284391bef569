"""New jobs in Postgres: the one INSERT that every accepted job goes through, whichever code made it.

The row of a synchronous job is inserted with the record of its end instead (``settle_jobs``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from uuid import UUID

from shared.errors import Conflict
from shared.postgres.pool import Connection, Pool, postgres_errors
from shared.postgres.queries import queries
from shared.submission.submission import Submission

_SQL = queries("submissions")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Given:
    """One value of a submission.

    :param column: the column's expression; the value itself if None.
    :param stored: whether there is a column of its name.
    """

    name: str
    type: str
    column: str | None = None
    stored: bool = True

    def values(self, submissions: Sequence[Submission]) -> list[Any]:
        name = self.name
        return [getattr(submission, name) for submission in submissions]


_ALWAYS: tuple[_Given, ...] = (
    _Given(name="id", type="uuid"),
    _Given(name="kind", type="text"),
    _Given(name="user_id", type="uuid"),
    _Given(name="function_id", type="uuid"),
    _Given(name="version_id", type="uuid"),
    _Given(name="concurrency", type="int"),
    _Given(name="payload", type="bytea", column="nullif(payload, '')"),
    _Given(name="created_at", type="timestamptz"),
)
_DUE = (
    _Given(
        name="run_at",
        type="timestamptz",
        column="CASE WHEN counted THEN now() + (run_at - created_at) ELSE run_at END",
    ),
    _Given(name="counted", type="bool", stored=False),
)
_SELDOM = (
    _DUE,
    (_Given(name="expires_at", type="timestamptz"),),
    (_Given(name="priority", type="smallint"),),
    (_Given(name="callback_url", type="text"),),
    (_Given(name="redrive_of", type="uuid"),),
    (_Given(name="chained_from", type="uuid"),),
    (_Given(name="chain_depth", type="smallint"),),
)
"""Columns that most jobs leave at their default, None or 0. A statement leaves out those that none of its jobs sets, so
that a column which few jobs need costs the others nothing."""


@cache
def _insert(given: tuple[_Given, ...]) -> str:
    stored = [one for one in given if one.stored]
    status = "CASE WHEN run_at IS NULL THEN 'queued' ELSE 'scheduled' END" if _DUE[0] in given else "'queued'"
    return (
        f"INSERT INTO jobs ({', '.join(one.name for one in stored)}, status)"  # noqa: S608 - names of ours
        f" SELECT {', '.join(one.column or one.name for one in stored)}, {status}"
        f" FROM unnest({', '.join(f'${number}::{one.type}[]' for number, one in enumerate(given, 1))})"
        f" AS new ({', '.join(one.name for one in given)})"
    )


@cache
def insert_statement(given: tuple[_Given, ...]) -> str:
    """Insert jobs, except a job whose id exists, and one that repeats or follows a job which another job repeats or
    follows already."""
    return f"{_insert(given)} ON CONFLICT DO NOTHING"


ALL_GIVEN = _ALWAYS + tuple(one for group in _SELDOM for one in group)
_USER, _JOB, _KEY, _FINGERPRINT, _KEEP_S = (f"${len(ALL_GIVEN) + number}" for number in range(1, 6))
INSERT_JOB_ONCE = f"""
WITH claimed AS (
    INSERT INTO idempotency_keys AS known (user_id, key, fingerprint, job_id, expires_at)
    VALUES ({_USER}::uuid, {_KEY}::text, {_FINGERPRINT}::bytea, {_JOB}::uuid, now() + make_interval(secs => {_KEEP_S}))
    ON CONFLICT (user_id, key) DO UPDATE
    SET fingerprint = excluded.fingerprint, job_id = excluded.job_id, expires_at = excluded.expires_at
    WHERE known.expires_at <= now()
    RETURNING job_id, fingerprint
), accepted AS (
    {_insert(ALL_GIVEN)} WHERE EXISTS (SELECT FROM claimed)
)
SELECT job_id, fingerprint FROM claimed
UNION ALL
SELECT job_id, fingerprint FROM idempotency_keys
WHERE user_id = {_USER}::uuid AND key = {_KEY}::text AND NOT EXISTS (SELECT FROM claimed)
"""  # noqa: S608 - names of ours
"""Insert a job unless its caller used the key before; the job that has the key, and the fingerprint of its call. No row
if another call took the key at the same moment."""


async def insert(connection: Connection | Pool, submissions: Sequence[Submission]) -> Sequence[Submission]:
    """Insert jobs whose payloads are stored, with one statement; those of ``submissions`` that are in Postgres then.

    To be called within :func:`postgres_errors`.
    """
    given, values = _needed(submissions)
    done: str = await connection.execute(insert_statement(given), *values)
    if int(done.rpartition(" ")[2]) == len(submissions):
        return submissions
    rows = await connection.fetch(_SQL["there"], [submission.id for submission in submissions])
    there = {row["id"] for row in rows}
    return [submission for submission in submissions if submission.id in there]


def _needed(submissions: Sequence[Submission]) -> tuple[tuple[_Given, ...], list[list[Any]]]:
    """The columns of :data:`ALL_GIVEN` that these jobs need, and their values."""
    given, values = _ALWAYS, [one.values(submissions) for one in _ALWAYS]
    for group in _SELDOM:
        columns = [one.values(submissions) for one in group]
        if any(columns[0]):
            given += group
            values += columns
    return given, values


class Submissions:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def insert(self, submissions: Sequence[Submission]) -> Sequence[Submission]:
        """Commit jobs together; those that are in Postgres when this returns.

        :raises Unavailable: if Postgres does not answer. The jobs may have been accepted all the same.
        """
        with postgres_errors():
            return await insert(self._pool, submissions)

    async def insert_once(self, submission: Submission) -> UUID:
        """Commit a job unless its user has used its idempotency key before; the job that has the key then.

        :raises Conflict: if the key stands for something else. :raises Unavailable: as :meth:`insert`.
        """
        asked = submission.idempotency
        assert asked is not None
        row = None
        with postgres_errors():
            while row is None:  # the key was taken after this statement began to look
                row = await self._pool.fetchrow(
                    INSERT_JOB_ONCE,
                    *(one.values([submission]) for one in ALL_GIVEN),
                    submission.user_id,
                    submission.id,
                    asked.key,
                    asked.fingerprint,
                    asked.keep_s,
                )
        if row["fingerprint"] != asked.fingerprint:
            raise Conflict(
                "This Idempotency-Key was used for another call; take a new one for each call.",
                code="idempotency_key_reused",
                field="Idempotency-Key",
            )
        job: UUID = row["job_id"]
        return job

    async def count_scheduled(self, user: UUID, *, most: int) -> int:
        """How many jobs of ``user`` are due later; looks no further than ``most``."""
        with postgres_errors():
            return int(await self._pool.fetchval(_SQL["count_scheduled"], user, most))
