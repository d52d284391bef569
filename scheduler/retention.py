"""Deletes results and payloads, and in the end jobs with the records of their attempts, when their time is over."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

from shared.ids import lowest_id
from shared.postgres.pool import Pool, postgres_errors
from shared.postgres.queries import queries

log = logging.getLogger(__name__)

_SQL = queries("retention")
_DAY_S = 86_400.0
_PORTIONS_A_RUN = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """For how many days data are kept: results and errors, after the job's end; payloads of failed jobs, after the
    job's end, for redrives; jobs, after their end, and records and logs of their attempts, after the job was
    accepted."""

    result_days: float
    redrive_days: float
    record_days: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """Numbers of dropped rows; ``months`` is a number of partitions of records."""

    results: int
    payloads: int
    jobs: int
    months: int
    invocations: int
    logs: int


class Retention:
    """:param portion: rows that one commit drops, so that none takes long."""

    def __init__(self, pool: Pool, kept: Kept, *, portion: int = 1000) -> None:
        self._pool = pool
        self._kept = kept
        self._portion = portion

    async def run_once(self) -> Dropped:
        """Drop data whose time is over, within bounds: a long backlog takes several runs."""
        kept = self._kept
        record_s = kept.record_days * _DAY_S
        oldest_kept = lowest_id(datetime.now(UTC) - timedelta(days=kept.record_days))
        with postgres_errors():
            dropped = Dropped(
                results=await self._in_portions("drop_results", kept.result_days * _DAY_S),
                payloads=await self._in_portions("drop_payloads", kept.redrive_days * _DAY_S),
                jobs=await self._in_portions("delete_jobs", record_s, oldest_kept),
                months=await self._pool.fetchval(_SQL["drop_months"], record_s),
                invocations=await self._in_portions("delete_invocations", record_s),
                logs=await self._in_portions("delete_logs", record_s),
            )
        if any(asdict(dropped).values()):
            log.info("dropped what is not kept", extra=asdict(dropped))
        return dropped

    async def _in_portions(self, name: str, older_than_s: float, *rest: object) -> int:
        total = 0
        for _ in range(_PORTIONS_A_RUN):
            count = int((await self._pool.execute(_SQL[name], older_than_s, self._portion, *rest)).rpartition(" ")[2])
            total += count
            if count < self._portion:
                break
        return total
