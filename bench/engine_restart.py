"""The container engine is stopped, killed and started again under load; every accepted job ends well all the same."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import UUID

from aiodocker import Docker
from redis.asyncio import Redis

from bench import functions, recorded
from bench.caller import Caller
from bench.crowd import REST_S
from bench.dockerd import PrivateDockerd, missing
from bench.engine import BASE_IMAGE
from bench.figure import Better, Figure, WrongAnswer
from bench.footprint import Footprint, back, resting
from bench.measurement import Measurement
from bench.platform import Platform
from shared.jobs import PLATFORM_REASONS
from tests.conservation import assert_conserved

NAP_S = 0.2
LONG_NAP_S = 3.0
_SERVED = 10
_SERVED_WITHIN_S = 60.0
_ALL_ENDED_WITHIN_S = 60.0
_BACK_WITHIN_S = 60.0
_IDLE_S = 3
ENV = {"SANDBOX_IDLE_SECONDS": str(_IDLE_S), "SWEEP_SECONDS": "5", "HEARTBEAT_SECONDS": "2"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """:param live: whether containers are to outlive the daemon. :param kill: SIGKILL, not SIGTERM."""

    live: bool
    kill: bool

    def __str__(self) -> str:
        return f"{'killed' if self.kill else 'stopped'}, {'live' if self.live else 'no'} restore"


EVERY = tuple(Restart(live=live, kill=kill) for live in (False, True) for kill in (False, True))


@dataclass(slots=True, kw_only=True)
class Calls:
    """What callers were told. ``refused`` are codes of clean refusals (503)."""

    accepted: list[str] = field(default_factory=list)
    answered: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def served(self) -> tuple[int, int]:
        return len(self.accepted), self.answered


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """:param lost: attempts that were made again. :param serving_s: from the engine's answer to the first calls served.
    :param back_s: from the last call until nothing was left of the load.
    """

    accepted: int
    answered: int
    refused: dict[str, int]
    lost: int
    serving_s: dict[str, list[float]]
    before: Footprint
    after: Footprint
    back_s: float


async def play(platform: Platform, caller: Caller, dockerd: PrivateDockerd, restarts: Sequence[Restart]) -> Outcome:
    """Raises :class:`WrongAnswer` for a job that was lost or blamed on its function, and for what is left over."""
    await caller.deploy("nap", functions.SLEEP, timeout_s=30)
    await _all(caller, NAP_S, 10)
    async with Docker(dockerd.url) as docker:
        before = await resting(platform, docker, _IDLE_S + REST_S)
        calls = Calls()
        serving: dict[str, list[float]] = {}
        for restart in restarts:
            if dockerd.live_restore != restart.live:
                await dockerd.stop()
                dockerd.live_restore = restart.live
                await dockerd.start()
            async with _load(caller, calls):
                await _served(platform, calls)
                calls.accepted += [await _accept(caller, LONG_NAP_S) for _ in range(2)]
                await asyncio.sleep(NAP_S)  # somewhere in the middle of a nap
                deploying = asyncio.create_task(_deploy(caller))
                await (dockerd.kill() if restart.kill else dockerd.stop())
                await asyncio.sleep(1)  # long enough for three deliveries to fail, if they were made
                await dockerd.start()
                started = time.monotonic()
                await _served(platform, calls)
                serving.setdefault(str(restart), []).append(time.monotonic() - started)
                await deploying
            # A job that met three restarts would be given up, and rightly.
            await recorded.settled(platform, timeout_s=_ALL_ENDED_WITHIN_S)
        lost = await _all_ended_well(platform, calls)
        after, back_s = await back(platform, docker, before, _BACK_WITHIN_S)
    for name, process in platform.processes().items():
        if not process.is_running():
            raise WrongAnswer(f"{name} has ended")
    return Outcome(
        accepted=len(calls.accepted),
        answered=calls.answered,
        refused=dict(calls.refused),
        lost=lost,
        serving_s=serving,
        before=before,
        after=after,
        back_s=back_s,
    )


async def measure(measurement: Measurement) -> list[Figure]:
    if (why := missing()) is not None:
        raise WrongAnswer(f"this needs a dockerd that may be killed, and {why}")
    rounds = measurement.pick(1, 5)
    async with PrivateDockerd() as dockerd:
        await dockerd.load(BASE_IMAGE)
        env = {**ENV, "DOCKER_HOST": dockerd.url}
        async with measurement.platform(env=env) as platform, platform.caller() as caller:
            measurement.say(f"{rounds * len(EVERY)} restarts of a container engine")
            outcome = await play(platform, caller, dockerd, EVERY * rounds)
    return [
        Figure(
            key="engine_restart_serving",
            what=f"{rounds * len(EVERY)} engine restarts: {_SERVED} calls of each kind served, at most",
            value=max(value for values in outcome.serving_s.values() for value in values),
            unit="s",
            better=Better.LESS,
            target=10,
            details=asdict(outcome),
        ),
        Figure(
            key="engine_restart_back",
            what="everything back as it was, after the last call",
            value=outcome.back_s,
            unit="s",
            better=Better.LESS,
            target=60,
        ),
    ]


async def _deploy(caller: Caller) -> None:
    """Deploy something that was never built, and call it."""
    number = time.time_ns()
    await caller.deploy(f"new-{number}", functions.unlike_any(functions.HELLO, number))
    await caller.invoke(f"new-{number}", functions.HELLO_BODY, functions.HELLO_RESULT)


@asynccontextmanager
async def _load(caller: Caller, calls: Calls) -> AsyncIterator[None]:
    """Three callers that have jobs accepted and three that wait for answers, until the end."""
    stop = asyncio.Event()

    async def repeat(call: Callable[[Caller, Calls], Awaitable[None]]) -> None:
        while not stop.is_set():
            await call(caller, calls)
            await asyncio.sleep(0.1)  # the load must stay below what a worker can do

    tasks = [asyncio.create_task(repeat(call)) for call in (_asynchronous, _synchronous) * 3]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def _asynchronous(caller: Caller, calls: Calls) -> None:
    calls.accepted.append(await _accept(caller, NAP_S))


async def _synchronous(caller: Caller, calls: Calls) -> None:
    status, answer = await _ask(caller, NAP_S)
    if status == 200 and answer.get("result") == functions.SLEEP_RESULT:
        calls.answered += 1
    elif status == 503 and answer.get("code") in PLATFORM_REASONS:
        calls.refused[answer["code"]] += 1
    else:
        raise WrongAnswer(f"a waiting caller was told {status} {answer}")


async def _accept(caller: Caller, seconds: float) -> str:
    status, answer = await _ask(caller, seconds, Prefer="respond-async")
    if status != 202:
        raise WrongAnswer(f"a job was refused: {status} {answer}")
    return str(answer["job_id"])


async def _ask(caller: Caller, seconds: float, **headers: str) -> tuple[int, Any]:
    return await caller.ask("POST", "/api/functions/nap/invoke", json={"body": seconds}, headers=headers)


async def _all(caller: Caller, seconds: float, count: int) -> None:
    await asyncio.gather(*(caller.invoke("nap", seconds, functions.SLEEP_RESULT) for _ in range(count)))


async def _served(platform: Platform, calls: Calls) -> None:
    """Return once :data:`_SERVED` more accepted jobs have ended, and as many waiting callers have their answer."""
    answered, ended = calls.answered, await _ended(platform)
    async with asyncio.timeout(_SERVED_WITHIN_S):
        while calls.answered < answered + _SERVED or await _ended(platform) < ended + _SERVED:
            await asyncio.sleep(0.05)


async def _ended(platform: Platform) -> int:
    """Jobs that nobody waited for and that have ended."""
    return int(await platform.database.fetchval("SELECT count(*) FROM jobs WHERE status = 'succeeded'"))


async def _all_ended_well(platform: Platform, calls: Calls) -> int:
    """Wait until all accepted jobs have ended, and check what became of them; attempts that were lost."""
    await recorded.settled(platform, timeout_s=_ALL_ENDED_WITHIN_S)
    await recorded.all_committed(platform, calls.accepted)
    bad = await platform.database.fetch(
        "SELECT id, status FROM jobs WHERE id = ANY ($1) AND status <> 'succeeded'",
        [UUID(job) for job in calls.accepted],
    )
    if bad:
        attempts = await platform.database.fetch(
            "SELECT outcome, reason, error, started_at, finished_at FROM invocations WHERE job_id = $1 ORDER BY epoch",
            bad[0]["id"],
        )
        raise WrongAnswer(f"{len(bad)} accepted jobs did not end well, such as {[dict(one) for one in attempts]}")
    async with Redis.from_url(platform.redis.url) as redis:
        await assert_conserved(redis, platform.postgres.dsn)
    blamed = await platform.database.fetch(
        "SELECT outcome, reason, error, count(*) FROM invocations"
        " WHERE outcome = 'failed' AND reason <> ALL ($1) GROUP BY 1, 2, 3",
        [reason.value for reason in PLATFORM_REASONS],
    )
    if blamed:
        raise WrongAnswer(f"the function was blamed for what the engine did: {[dict(row) for row in blamed]}")
    twice = await platform.database.fetchval(
        "SELECT count(*) FROM"
        " (SELECT FROM invocations WHERE outcome = 'succeeded' GROUP BY job_id HAVING count(*) > 1) AS twice"
    )
    if twice:
        raise WrongAnswer(f"{twice} jobs have two results")
    return int(await platform.database.fetchval("SELECT count(*) FROM invocations WHERE outcome = 'lost'"))
