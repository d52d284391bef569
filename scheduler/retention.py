"""Deletes what is over: results and payloads, in the end jobs with the records of their attempts, and idempotency keys,
sessions and functions that cannot be used again."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta

from shared.ids import lowest_id
from shared.postgres.pool import Pool, postgres_errors
from shared.postgres.queries import queries

log = logging.getLogger(__name__)

_SQL = queries("retention")
_DAY_S = 86_400.0
_PORTIONS_A_TURN = 100
"""So that a long backlog of one kind keeps no other from its turn."""
_SESSION_DAYS = 1.0
"""So long a session that is over can still be looked at."""


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
    keys: int
    sessions: int
    functions: int

    def __add__(self, other: Dropped) -> Dropped:
        return Dropped(**{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)})


class Retention:
    """:param portion: rows that one commit drops, so that none takes long."""

    def __init__(self, pool: Pool, kept: Kept, *, portion: int = 1000) -> None:
        self._pool = pool
        self._kept = kept
        self._portion = portion

    async def run_once(self) -> Dropped:
        """Drop all data whose time is over, in small commits, however many there are."""
        with postgres_errors():
            dropped, more = await self._turn()
            while more:
                last, more = await self._turn()
                dropped += last
        if any(asdict(dropped).values()):
            log.info("dropped what is not kept", extra=asdict(dropped))
        return dropped

    async def _turn(self) -> tuple[Dropped, bool]:
        """What was dropped, and whether there may be more."""
        kept = self._kept
        record_s = kept.record_days * _DAY_S
        oldest_kept = lowest_id(datetime.now(UTC) - timedelta(days=kept.record_days))
        dropped = Dropped(
            results=await self._in_portions("drop_results", kept.result_days * _DAY_S),
            payloads=await self._in_portions("drop_payloads", kept.redrive_days * _DAY_S),
            jobs=await self._in_portions("delete_jobs", record_s, oldest_kept),
            months=await self._pool.fetchval(_SQL["drop_months"], record_s),
            invocations=await self._in_portions("delete_invocations", record_s),
            logs=await self._in_portions("delete_logs", record_s),
            keys=await self._in_portions("delete_idempotency_keys", 0.0),
            sessions=await self._in_portions("delete_sessions", _SESSION_DAYS * _DAY_S),
            functions=await self._in_portions("delete_functions", record_s),
        )
        return dropped, max(asdict(dropped).values()) >= self._portion * _PORTIONS_A_TURN

    async def _in_portions(self, name: str, older_than_s: float, *rest: object) -> int:
        total = 0
        for _ in range(_PORTIONS_A_TURN):
            count = int((await self._pool.execute(_SQL[name], older_than_s, self._portion, *rest)).rpartition(" ")[2])
            total += count
            if count < self._portion:
                break
        return total
