"""Versions in Postgres: read, built, run, and gone with their functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

import orjson

from shared.functions import FunctionSettings, RunnableVersion, Version
from shared.layers import LayerKind, LayerRef, VersionLayers
from shared.postgres.pool import Pool, postgres_errors
from shared.postgres.queries import queries

_SQL = queries("versions")


class Versions:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def get(self, function: UUID, number: int) -> Version | None:
        with postgres_errors():
            row = await self._pool.fetchrow(_SQL["version_by_number"], function, number)
        return None if row is None else _version(row)

    async def list(self, function: UUID, *, before: int, limit: int) -> Sequence[Version]:
        with postgres_errors():
            rows = await self._pool.fetch(_SQL["list_versions"], function, before, limit)
        return [_version(row) for row in rows]

    async def runnable(self, version: UUID) -> RunnableVersion | None:
        with postgres_errors():
            row = await self._pool.fetchrow(_SQL["version_to_run"], version)
        if row is None:
            return None
        return _runnable(row)

    async def kept_warm(self) -> Sequence[RunnableVersion]:
        """Live versions with ``min_warm``."""
        with postgres_errors():
            rows = await self._pool.fetch(_SQL["versions_kept_warm"])
        return [_runnable(row) for row in rows]

    async def append_build_log(self, version: UUID, text: str) -> None:
        with postgres_errors():
            await self._pool.execute(_SQL["append_build_log"], version, text)

    async def activate(self, version: UUID, *, layers: VersionLayers, analysis: Mapping[str, object]) -> bool:
        """Make a version active, and ``live`` unless a newer one is; False if it had failed or is gone.

        A version that another attempt has made active stays as it is.
        """
        text = orjson.dumps(analysis).decode()
        with postgres_errors():
            async with self._pool.acquire() as connection, connection.transaction():
                row = await connection.fetchrow(_SQL["activate_version"], version, layers.base, layers.own_bytes, text)
                if row["by_this_build"]:
                    await connection.execute(_SQL["insert_version_layers"], version, _digests(layers))
                await connection.execute(_SQL["move_live"], version)
        return bool(row["status"] == "active")

    async def live(self, function: UUID) -> UUID | None:
        """The version that ``live`` points at now; None without one, and of a function that was deleted."""
        with postgres_errors():
            found: UUID | None = await self._pool.fetchval(_SQL["live_version"], function)
        return found

    async def fail(self, version: UUID, *, reason: str, error: str) -> None:
        with postgres_errors():
            await self._pool.execute(_SQL["fail_version"], version, reason, error)

    async def record_layers(self, version: UUID, *, layers: VersionLayers, instead_of: str | None) -> bool:
        """Replace the layers of an active version that was built again; False if another worker did before.

        :param instead_of: the base that the version had before.
        """
        with postgres_errors():
            async with self._pool.acquire() as connection, connection.transaction():
                if await connection.execute(_SQL["set_version_base"], version, layers.base, instead_of) == "UPDATE 0":
                    return False
                await connection.execute(_SQL["delete_version_layers"], version)
                await connection.execute(_SQL["insert_version_layers"], version, _digests(layers))
        return True

    async def forget_built(self, function: UUID) -> int:
        """Mark the versions of a deleted function as not built; how many there were."""
        with postgres_errors():
            done: str = await self._pool.execute(_SQL["forget_built_versions"], function)
        return int(done.rpartition(" ")[2])

    async def standing(self, versions: Iterable[UUID]) -> Mapping[UUID, str | None]:
        """Those of ``versions`` that exist, did not fail, and whose function was not deleted, each with its base: None
        before it is built."""
        with postgres_errors():
            rows = await self._pool.fetch(_SQL["standing_versions"], list(versions))
        return {row["id"]: row["base"] for row in rows}


def _runnable(row: Any) -> RunnableVersion:
    return RunnableVersion(
        id=row["id"],
        function_id=row["function_id"],
        user_id=row["user_id"],
        function_name=row["name"],
        number=row["number"],
        status=row["status"],
        artifact_sha256=row["artifact_sha256"],
        settings=FunctionSettings.model_validate_json(row["settings"]),
        built=row["built"],
        layers=_layers(row),
    )


def _version(row: Any) -> Version:
    return Version(
        id=row["id"],
        number=row["number"],
        status=row["status"],
        artifact_sha256=row["artifact_sha256"],
        artifact_bytes=row["artifact_bytes"],
        settings=FunctionSettings.model_validate_json(row["settings"]),
        layers=_layers(row),
        reason=row["reason"],
        error=row["error"],
        build_log=row["build_log"],
        created_at=row["created_at"],
        activated_at=row["activated_at"],
    )


def _layers(row: Any) -> VersionLayers | None:
    if row["base"] is None:
        return None
    parts = (text.split(" ") for text in row["layers"])
    return VersionLayers(
        base=row["base"],
        layers=tuple(
            LayerRef(kind=LayerKind(kind), digest=digest, size_bytes=int(size)) for kind, digest, size in parts
        ),
    )


def _digests(layers: VersionLayers) -> Sequence[str]:
    return [layer.digest for layer in layers.layers]
