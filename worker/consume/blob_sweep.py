"""Deletes artifacts and layers from the artifact store that no version needs any more.

One worker an hour goes through the blobs that Postgres knows. A blob that was claimed within the last day stays, since
the deploy that claimed it may be under way. A layer of resolved dependencies stays for a month after its last use,
since the next deploy may need it. :mod:`shared.postgres.blobs` explains why a sweep cannot take a blob from a deploy
that is about to use it.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

from shared.artifacts import ArtifactStore, artifact_key, layer_key
from shared.loop import Loop
from shared.postgres.blobs import ARTIFACT, Blobs
from shared.postgres.pool import Pool, postgres_errors
from shared.postgres.queries import queries
from worker.build.layer_store import SecondCopy

log = logging.getLogger(__name__)

EVERY_S = 3600.0
YOUNG = timedelta(days=1)
RESOLVED = timedelta(days=30)
_SWEEP = "blobs"
_PORTION = 500


class BlobSweep:
    """:param second: where layers have a second copy, if anywhere.
    :param holder: this worker.
    """

    def __init__(
        self,
        pool: Pool,
        blobs: Blobs,
        store: ArtifactStore,
        second: SecondCopy | None,
        holder: str,
        *,
        young: timedelta = YOUNG,
        resolved: timedelta = RESOLVED,
    ) -> None:
        self._pool = pool
        self._blobs = blobs
        self._store = store
        self._second = second
        self._holder = holder
        self._young = young
        self._resolved = resolved

    @property
    def loop(self) -> Loop:
        return Loop(name="blobs", run_once=self._for_all, interval_s=EVERY_S)

    async def _for_all(self) -> int:
        """Sweep if this worker leads the sweep of this hour; how many blobs were removed."""
        swept = await self.run_once() if await self._is_ours() else 0
        if swept:
            log.info("removed artifacts and layers", extra={"blobs": swept})
        return swept

    async def run_once(self) -> int:
        """Delete what no version needs; how many blobs."""
        now = datetime.now(UTC)
        claimed_before, swept = now - self._young, 0
        while portion := await self._blobs.unneeded(
            claimed_before=claimed_before, used_before=now - self._resolved, limit=_PORTION
        ):
            gone = [await self._blobs.collect(digest, claimed_before, self._remove) for digest in portion]
            swept += sum(gone)
            if not any(gone):
                break  # all of them were claimed a moment ago
        return swept

    async def _remove(self, kind: str, digest: str) -> None:
        if kind == ARTIFACT:
            await self._store.delete(artifact_key(digest))
            return
        await self._store.delete(layer_key(digest))
        if self._second is not None:
            await self._second.delete(digest)

    async def _is_ours(self) -> bool:
        """Whether this worker leads the sweep of this hour."""
        with postgres_errors():
            took = await self._pool.fetchrow(queries("leases")["take_leadership"], _SWEEP, self._holder, EVERY_S * 0.9)
        return took is not None
