"""Leadership of the schedulers: a row in Postgres with an end. All that a leader writes is idempotent, so two leaders
for a moment do no harm."""

from __future__ import annotations

import asyncio
import logging

from shared.loop import Loop
from shared.postgres.pool import Pool, postgres_errors
from shared.postgres.queries import queries

log = logging.getLogger(__name__)

_SQL = queries("leases")
_NAME = "scheduler"


class Leader:
    """:param life_s: seconds after which a silent leader is replaced; renewed three times within it."""

    def __init__(self, pool: Pool, holder: str, *, life_s: float) -> None:
        self._pool = pool
        self._holder = holder
        self._life_s = life_s
        self._until = 0.0
        self._led = False  # as last logged

    @property
    def leading(self) -> bool:
        """Whether this process leads: by its own clock, ``life_s`` since before it last asked Postgres is not over."""
        return asyncio.get_running_loop().time() < self._until

    @property
    def loop(self) -> Loop:
        return Loop(name="leader", run_once=self.run_once, interval_s=min(self._life_s / 3, 2.0))

    async def run_once(self) -> bool:
        """Take or renew leadership; whether this process leads now."""
        asked_at = asyncio.get_running_loop().time()
        try:
            with postgres_errors():
                holder = await self._pool.fetchval(_SQL["take_leadership"], _NAME, self._holder, self._life_s)
            self._until = asked_at + self._life_s if holder == self._holder else 0.0
        finally:
            if self.leading != self._led:
                self._led = self.leading
                log.info("leading" if self._led else "not leading", extra={"holder": self._holder})
        return self.leading

    async def resign(self) -> None:
        """Let another scheduler lead at once."""
        self._until = 0.0
        with postgres_errors():
            await self._pool.execute(_SQL["drop_leadership"], _NAME, self._holder)
