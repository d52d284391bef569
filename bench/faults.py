"""What is done to a platform while it serves: processes killed, servers killed and emptied, an engine restarted."""

from __future__ import annotations

import asyncio
import math
import random
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from bench.dockerd import PrivateDockerd
from bench.figure import WrongAnswer
from bench.platform import Platform

_TICK_S = 0.1
_YOUNG_S = 15.0
"""A process that finds no server at its start may end, and is started again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Seconds between kills, and at which shares of the load each server is taken away.

    :param engine_at: needs an engine of its own. :param away_s: how long Redis or Postgres stays away before it is
    started again.
    """

    worker_every_s: float = math.inf
    api_every_s: float = math.inf
    redis_at: tuple[float, ...] = ()
    postgres_at: tuple[float, ...] = ()
    engine_at: tuple[float, ...] = ()
    away_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """A server was away between two Unix times; ``until`` it answered again."""

    name: str
    since: float
    until: float


@dataclass(slots=True, kw_only=True)
class Log:
    """What was done: counts, when which worker was killed by its pid, and when a server was away."""

    counts: Counter[str] = field(default_factory=Counter)
    killed_at: dict[int, float] = field(default_factory=dict)
    away: list[Outage] = field(default_factory=list)


class Conductor:
    """Does one thing after another, and starts again what it killed, as a supervisor would.

    :param progress: the share of the load that is over. :param seed: of the choice of victims.
    """

    def __init__(
        self, platform: Platform, plan: Plan, progress: Callable[[], float], *, seed: int, engine: PrivateDockerd | None
    ) -> None:
        self.log = Log()
        self._platform = platform
        self._plan = plan
        self._progress = progress
        self._dice = random.Random(seed)
        self._engine = engine
        self._born: dict[str, float] = {}

    async def run(self) -> None:
        """Until cancelled, or until the load is over."""
        now = time.monotonic()
        next_worker, next_api = now + self._plan.worker_every_s, now + self._plan.api_every_s
        outages = sorted(
            [(at, "redis", self._empty_redis) for at in self._plan.redis_at]
            + [(at, "postgres", self._stop_postgres) for at in self._plan.postgres_at]
            + [(at, "engine", self._restart_engine) for at in self._plan.engine_at],
            key=lambda one: one[0],
        )
        while self._progress() < 1:
            await asyncio.sleep(_TICK_S)
            self._supervise()
            if outages and self._progress() >= outages[0][0]:
                _, name, outage = outages.pop(0)
                await self._without(name, outage)
            if time.monotonic() >= next_worker:
                next_worker = time.monotonic() + self._plan.worker_every_s
                await self._kill(self._dice.choice([one for one in self._platform.processes() if one[:6] == "worker"]))
            if time.monotonic() >= next_api:
                next_api = time.monotonic() + self._plan.api_every_s
                await self._kill("api")

    def _supervise(self) -> None:
        for name, code in self._platform.ended().items():
            if time.monotonic() - self._born.get(name, 0.0) > _YOUNG_S:
                raise WrongAnswer(f"{name} ended with {code}, and nobody had told it to")
            self._start(name)

    def _start(self, name: str) -> None:
        self._platform.start(name)
        self._born[name] = time.monotonic()

    async def _kill(self, name: str) -> None:
        at = time.time()
        pid = await self._platform.kill(name)
        if name != "api":
            self.log.killed_at[pid] = at
        self.log.counts[name.partition("-")[0]] += 1
        self._start(name)

    async def _without(self, name: str, outage: Callable[[], Awaitable[None]]) -> None:
        started = time.time()
        await outage()
        self.log.away.append(Outage(name=name, since=started, until=time.time()))
        self.log.counts[name] += 1

    async def _empty_redis(self) -> None:
        self._platform.redis.kill()
        await self._platform.redis.wait()
        await asyncio.to_thread(shutil.rmtree, self._platform.redis.data)
        await asyncio.sleep(self._plan.away_s)
        await self._platform.redis.start()

    async def _stop_postgres(self) -> None:
        self._platform.postgres.kill()
        await self._platform.postgres.wait()
        await asyncio.sleep(self._plan.away_s)
        await self._platform.postgres.start()
        await self._platform.reconnect()

    async def _restart_engine(self) -> None:
        if self._engine is None:
            raise WrongAnswer("there is no engine that may be restarted")
        await self._engine.stop()
        await self._engine.start()
