"""The blobs of the artifact store, in Postgres: which are needed, and which layer a key was resolved to, once for all
machines.

Before a process uses a digest it claims it, and only then looks into the store. A collection removes only what
was not claimed for a while, and holds off claims of a digest while it removes it. So a claim either comes first and
keeps the blob, or comes after the removal and finds that the blob has to be put again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

from shared.layers import LayerKind, LayerRef
from shared.postgres.pool import Pool, postgres_errors
from shared.postgres.queries import queries

_SQL = queries("blobs")
ARTIFACT = "artifact"


class Blobs:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def claim(self, layer: LayerRef) -> None:
        """Claim a layer that the caller is about to put or use."""
        with postgres_errors():
            await self._pool.execute(_SQL["claim_blob"], layer.digest, layer.kind.value, layer.size_bytes)

    async def claim_artifact(self, sha256: str, size_bytes: int) -> None:
        """Claim an artifact that the caller is about to put into the store."""
        with postgres_errors():
            await self._pool.execute(_SQL["claim_blob"], sha256, ARTIFACT, size_bytes)

    async def resolved(self, key: str) -> LayerRef | None:
        """The layer that ``key`` was resolved to, claimed by this call; None if there is none."""
        with postgres_errors():
            row = await self._pool.fetchrow(_SQL["resolved"], key)
        return None if row is None else _layer(row)

    async def resolve(self, key: str, layer: LayerRef, *, lost: LayerRef | None = None) -> LayerRef:
        """Write down that ``key`` is resolved to ``layer``; the layer that counts, which is the first writer's.

        :param lost: the layer that the key was resolved to before, which the store has lost.
        """
        with postgres_errors():
            if lost is not None:
                await self._pool.execute(_SQL["resolve_again"], key, layer.digest, lost.digest)
            await self._pool.execute(_SQL["resolve"], key, layer.digest)
        return await self.resolved(key) or layer

    async def unneeded(self, *, claimed_before: datetime, used_before: datetime, limit: int) -> Sequence[str]:
        """Digests that no version needs any more.

        :param used_before: resolutions that were used later keep their layers.
        """
        with postgres_errors():
            rows = await self._pool.fetch(_SQL["unneeded_blobs"], claimed_before, used_before, limit)
        return [row["digest"] for row in rows]

    async def collect(
        self, digest: str, claimed_before: datetime, remove: Callable[[str, str], Awaitable[None]]
    ) -> bool:
        """``await remove(kind, digest)`` while no process can claim it; False if one claimed it since."""
        with postgres_errors():
            async with self._pool.acquire() as connection, connection.transaction():
                kind = await connection.fetchval(_SQL["lock_unclaimed_blob"], digest, claimed_before)
                if kind is None:
                    return False
                await remove(kind, digest)
                await connection.execute(_SQL["delete_blob"], digest)
        return True


def _layer(row: Any) -> LayerRef:
    return LayerRef(kind=LayerKind(row["kind"]), digest=row["digest"], size_bytes=row["bytes"])
