"""Functions in Postgres, with what they were deployed as."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from shared.errors import NotFound
from shared.functions import NAME_PATTERN, Function, FunctionSettings, Target
from shared.ids import new_id
from shared.jobs import JobKind
from shared.postgres.completion_hooks import run_completion_hooks
from shared.postgres.pool import Pool, postgres_errors
from shared.postgres.queries import queries
from shared.postgres.submissions import insert
from shared.queue.message import now_ms
from shared.submission.submission import Submission

_SQL = queries("functions")
_JOBS = queries("jobs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deploy:
    """An accepted deploy. ``job`` is None, and ``status`` not ``building``, if nothing changed."""

    function_id: UUID
    version_id: UUID
    version: int
    job: Submission | None
    status: str


class Functions:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def deploy(
        self,
        *,
        user: UUID,
        name: str,
        artifact_sha256: str,
        artifact_bytes: int,
        settings: FunctionSettings,
        notes: str = "",
    ) -> Deploy:
        """Make the next version of a function and the job that builds it, in one commit.

        A new function is made. If the newest version is live and has the same artifact and settings, it is returned,
        and nothing is made.

        :param notes: what the version's build log begins with.
        """
        text = settings.model_dump_json()
        with postgres_errors():
            async with self._pool.acquire() as connection, connection.transaction():
                function = await connection.fetchrow(_SQL["upsert_function"], new_id(), user, name)
                newest = await connection.fetchrow(_SQL["newest_version"], function["id"])
                if (
                    newest is not None
                    and newest["live"]
                    and newest["artifact_sha256"] == artifact_sha256
                    # By meaning: an older version does not have the keys that came later.
                    and _settings(newest["settings"]) == settings
                ):
                    return Deploy(
                        function_id=function["id"],
                        version_id=newest["id"],
                        version=newest["number"],
                        job=None,
                        status=newest["status"],
                    )
                number, version = function["last_number"] + 1, new_id()
                await connection.execute(
                    _SQL["insert_version"],
                    version,
                    function["id"],
                    number,
                    artifact_sha256,
                    artifact_bytes,
                    text,
                    notes,
                )
                await connection.execute(_SQL["set_last_number"], function["id"], number)
                job = _job(JobKind.DEPLOY, user, function["id"], version)
                await insert(connection, [job])
        return Deploy(function_id=function["id"], version_id=version, version=number, job=job, status="building")

    async def delete(self, user: UUID, function: UUID) -> Submission | None:
        """Delete a function for its user and make the job that clears up; the job, or None if it was gone."""
        job = _job(JobKind.DELETE, user, function, None)
        with postgres_errors():
            async with self._pool.acquire() as connection, connection.transaction():
                if await connection.execute(_SQL["delete_function"], function) == "UPDATE 0":
                    return None
                cancelled = await connection.fetch(_JOBS["cancel_scheduled"], function)
                if cancelled:
                    await run_completion_hooks(connection, [row["id"] for row in cancelled])
                await insert(connection, [job])
        return job

    async def set_status(self, function: UUID, status: Literal["active", "inactive"]) -> UUID | None:
        """Start or stop a function; the live version.

        :raises NotFound: if it was deleted.
        """
        with postgres_errors():
            row = await self._pool.fetchrow(_SQL["set_function_status"], function, status)
        if row is None:
            raise NotFound("The function was deleted.", code="function_not_found")
        live: UUID | None = row["live"]
        return live

    async def stopped(self) -> set[UUID]:
        """Functions whose jobs wait until they are started again."""
        with postgres_errors():
            return {row["id"] for row in await self._pool.fetch(_SQL["stopped_functions"])}

    async def list(self, user: UUID, *, after: str, limit: int) -> Sequence[Function]:
        with postgres_errors():
            rows = await self._pool.fetch(_SQL["list_functions"], user, after, limit)
        return [_function(row) for row in rows]

    async def get(self, user: UUID, reference: str) -> Function | None:
        """A user's function by id or name."""
        if not _is_reference(reference):
            return None
        with postgres_errors():
            row = await self._pool.fetchrow(_SQL["function_by_reference"], user, _as_uuid(reference), reference)
        return None if row is None else _function(row)

    async def resolve(self, user: UUID, reference: str) -> Target | None:
        """The function and version that an invoke of ``reference`` runs now."""
        if not _is_reference(reference):
            return None
        with postgres_errors():
            row = await self._pool.fetchrow(_SQL["resolve_live"], user, _as_uuid(reference), reference)
        if row is None:
            return None
        return Target(
            function_id=row["id"],
            name=row["name"],
            status=row["status"],
            version_id=row["version_id"],
            version=row["number"],
            settings=_settings(row["settings"]),
        )


def _job(kind: JobKind, user: UUID, function: UUID, version: UUID | None) -> Submission:
    return Submission(
        id=new_id(), kind=kind, user_id=user, function_id=function, version_id=version, accepted_ms=now_ms()
    )


def _is_reference(text: str) -> bool:
    """Whether Postgres takes ``text``: a text with a NUL or with bytes that are not UTF-8 names no function."""
    return re.fullmatch(NAME_PATTERN, text) is not None or _as_uuid(text) is not None


def _as_uuid(reference: str) -> UUID | None:
    try:
        return UUID(reference)
    except ValueError:
        return None


def _settings(text: str | None) -> FunctionSettings | None:
    return None if text is None else FunctionSettings.model_validate_json(text)


def _function(row: Any) -> Function:
    return Function(
        id=row["id"],
        name=row["name"],
        status=row["status"],
        live_version=row["live_version"],
        settings=_settings(row["settings"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
