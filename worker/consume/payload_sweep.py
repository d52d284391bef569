"""Deletes payloads and results from the artifact store whose jobs do not have them any more.

One worker an hour lists them and asks Postgres which jobs still have a payload or result. Texts written within the last
day stay, since Postgres may not have their job yet.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from shared.artifacts import ArtifactStore, payload_owner
from shared.loop import Loop
from shared.postgres.pool import Pool, postgres_errors
from shared.postgres.queries import queries

log = logging.getLogger(__name__)

EVERY_S = 3600.0
YOUNG = timedelta(days=1)
_SWEEP = "payloads"


class PayloadSweep:
    """:param holder: this worker."""

    def __init__(self, pool: Pool, store: ArtifactStore, holder: str) -> None:
        self._pool = pool
        self._store = store
        self._holder = holder

    @property
    def loop(self) -> Loop:
        return Loop(name="payloads", run_once=self.run_in_turn, interval_s=EVERY_S)

    async def run_in_turn(self) -> int:
        """Sweep if this worker leads the sweep of this hour; how many were deleted."""
        swept = await self.run_once() if await self._is_ours() else 0
        if swept:
            log.info("removed payloads of jobs", extra={"payloads": swept})
        return swept

    async def _is_ours(self) -> bool:
        """Whether this worker leads the sweep of this hour."""
        with postgres_errors():
            took = await self._pool.fetchrow(queries("leases")["take_leadership"], _SWEEP, self._holder, EVERY_S * 0.9)
        return took is not None

    async def run_once(self) -> int:
        """Delete payloads that no job needs; how many."""
        before = datetime.now(UTC) - YOUNG
        swept = 0
        async for portion in self._store.payloads():
            old = {name: payload_owner(name) for name, written in portion if written < before}
            if old:
                standing = await self._standing([job for job, _ in old.values()])
                gone = [name for name, owner in old.items() if owner not in standing]
                await self._store.delete_payloads(gone)
                swept += len(gone)
        return swept

    async def _standing(self, jobs: Sequence[UUID]) -> set[tuple[UUID, str]]:
        """Which of these jobs' rows still have a payload, and which a result."""
        with postgres_errors():
            rows = await self._pool.fetch(queries("jobs")["parts_that_stand"], jobs)
        return {(row["id"], part) for row in rows for part in ("payload", "result") if row[part]}
