"""Whatever is killed, and whenever: every accepted job ends once, soon, and nothing is left over."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from uuid import UUID

import aiohttp
from aiodocker import Docker

from bench import functions, recorded
from bench.caller import Caller
from bench.dockerd import PrivateDockerd, missing
from bench.engine import BASE_IMAGE
from bench.faults import Conductor, Log, Outage, Plan
from bench.figure import Better, Figure, WrongAnswer
from bench.measurement import Measurement
from bench.platform import Platform
from shared.jobs import PLATFORM_REASONS
from worker.engine.docker.hardening import LABEL_INSTALLATION, LABEL_WORKER

NAP_S = 0.2
_AGAIN_S = 0.2
_ANSWER_S = 15.0
_ORPHANS_GONE_S = 60.0
_ENDED_S = 120.0
_MAX_LOST = 20
ENV = {"MAX_LOST_DELIVERIES": str(_MAX_LOST), "SWEEP_SECONDS": "10"}
"""A job that meets the killer three times would be given up, and rightly; here none may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """:param rate: accepts a second. :param recovery_s: from a kill to the next attempt, p99 at most."""

    jobs: int
    workers: int
    rate: float
    recovery_s: float
    plan: Plan
    env: dict[str, str] = field(default_factory=dict)


LONG = Size(
    jobs=10_000,
    workers=4,
    rate=40,
    recovery_s=35,
    plan=Plan(worker_every_s=3, api_every_s=20, redis_at=(0.3, 0.75), postgres_at=(0.45, 0.85), engine_at=(0.6,)),
    env=ENV,
)
SHORT = Size(
    jobs=400,
    workers=2,
    rate=25,
    recovery_s=8,
    plan=Plan(worker_every_s=3, api_every_s=7, redis_at=(0.35,), postgres_at=(0.65,)),
    env={
        **ENV,
        "LEASE_SECONDS": "3",
        "HEARTBEAT_SECONDS": "1",
        "LEADER_SECONDS": "3",
        "RECONCILE_SECONDS": "2",
        "SWEEP_SECONDS": "2",
    },
)


@dataclass(slots=True, kw_only=True)
class Client:
    """What callers were told: the id of every 202 and when it was asked for and told (Unix times), codes of clean
    refusals, and calls without an answer."""

    accepted: list[str] = field(default_factory=list)
    served: list[tuple[float, float]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    unanswered: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """:param more: jobs that were committed and whose 202 did not arrive. :param lost: attempts that were lost.
    :param recovery_s: seconds from the kill of a worker to the next attempt of what it had, where no server was away
    meanwhile, in order; ``disturbed`` are the others. :param ended_s: from the last accept to the last end.
    """

    seed: int
    accepted: int
    more: int
    refused: dict[str, int]
    unanswered: int
    done: dict[str, int]
    attempts: int
    lost: int
    recovery_s: list[float]
    disturbed: int
    away: list[Outage]
    ended_s: float
    ended_at: float
    orphans_gone_s: float

    @property
    def recovery_p99_s(self) -> float:
        return self.recovery_s[int(0.99 * (len(self.recovery_s) - 1))] if self.recovery_s else 0.0


async def play(
    platform: Platform,
    caller: Caller,
    size: Size,
    *,
    seed: int,
    engine: PrivateDockerd | None = None,
    client: Client | None = None,
) -> Outcome:
    """Raises :class:`WrongAnswer` for a job that was lost, that ended twice or was run again for nothing, for books
    that do not balance, and for what is left over.

    :param client: one that the caller looks at as well.
    """
    await caller.deploy("nap", functions.SLEEP, timeout_s=30)
    await asyncio.gather(*(caller.invoke("nap", NAP_S, functions.SLEEP_RESULT) for _ in range(4)))
    client = client or Client()
    conductor = Conductor(platform, size.plan, lambda: len(client.accepted) / size.jobs, seed=seed, engine=engine)
    async with asyncio.TaskGroup() as group:
        group.create_task(conductor.run())
        group.create_task(_accept_all(caller, client, size))
    started = time.monotonic()
    await recorded.settled(platform, timeout_s=_ENDED_S)
    await recorded.all_written(platform)
    ended_s, ended_at = time.monotonic() - started, time.time()
    lost, recovery, disturbed, attempts, more = await _judge(platform, client.accepted, conductor.log)
    orphans_gone_s = await orphans_gone(platform, engine)
    return Outcome(
        seed=seed,
        accepted=len(client.accepted),
        more=more,
        refused=dict(client.refused),
        unanswered=client.unanswered,
        done=dict(conductor.log.counts),
        attempts=attempts,
        lost=lost,
        recovery_s=recovery,
        disturbed=disturbed,
        away=conductor.log.away,
        ended_s=ended_s,
        ended_at=ended_at,
        orphans_gone_s=orphans_gone_s,
    )


async def measure(measurement: Measurement) -> list[Figure]:
    size = measurement.pick(SHORT, LONG)
    seed = random.SystemRandom().randrange(2**32)
    async with AsyncExitStack() as stack:
        engine = None
        env = dict(size.env)
        if size.plan.engine_at:
            if (why := missing()) is not None:
                raise WrongAnswer(f"this needs a dockerd that may be stopped, and {why}")
            engine = await stack.enter_async_context(PrivateDockerd())
            await engine.load(BASE_IMAGE)
            env["DOCKER_HOST"] = engine.url
        platform = await stack.enter_async_context(measurement.platform(workers=size.workers, env=env))
        caller = await stack.enter_async_context(platform.caller())
        measurement.say(f"{size.jobs} jobs while everything is killed in turn (seed {seed})")
        outcome = await play(platform, caller, size, seed=seed, engine=engine)
    done = ", ".join(f"{count} {name}" for name, count in sorted(outcome.done.items()))
    measurement.say(
        f"{outcome.accepted} accepted and {outcome.more} more, 0 lost, 0 with two outcomes; killed or stopped: {done}; "
        f"{outcome.lost} of {outcome.attempts} attempts lost; {outcome.disturbed} recoveries disturbed"
    )
    return [
        Figure(
            key="crash_recovery",
            what=f"{outcome.accepted} jobs, {done}: from a worker's death to the next attempt, p99",
            value=outcome.recovery_p99_s,
            unit="s",
            better=Better.LESS,
            target=size.recovery_s,
            details=asdict(outcome),
        ),
        Figure(
            key="crash_orphans",
            what="no container of a dead worker is left, after the last job",
            value=outcome.orphans_gone_s,
            unit="s",
            better=Better.LESS,
            target=60,
        ),
    ]


async def _accept_all(caller: Caller, client: Client, size: Size) -> None:
    """Have jobs accepted at a rate, whatever happens to those who are to accept them."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with asyncio.TaskGroup() as calls:
        for number in range(size.jobs):
            calls.create_task(_accept(caller, client))
            await asyncio.sleep(max(0.0, started + number / size.rate - loop.time()))


async def _accept(caller: Caller, client: Client) -> None:
    """Ask until one is accepted. A call without an answer may have been: those are jobs like all others."""
    while True:
        asked_at = time.time()
        try:
            async with asyncio.timeout(_ANSWER_S):
                status, answer = await caller.ask(
                    "POST", "/api/functions/nap/invoke", json={"body": NAP_S}, headers={"Prefer": "respond-async"}
                )
        except (aiohttp.ClientError, TimeoutError):
            client.unanswered += 1
        else:
            if status == 202:
                client.accepted.append(answer["job_id"])
                client.served.append((asked_at, time.time()))
                return
            if status != 503 or "code" not in answer:
                raise WrongAnswer(f"a job was refused: {status} {answer}")
            client.refused[answer["code"]] += 1
        await asyncio.sleep(_AGAIN_S)


async def _judge(platform: Platform, accepted: Sequence[str], log: Log) -> tuple[int, list[float], int, int, int]:
    """(lost attempts, recoveries, those that were disturbed, attempts, jobs that nobody was told of).

    Beside lost attempts only those are made again that failed because a server was away.
    """
    await recorded.all_committed(platform, accepted)
    jobs = await platform.database.fetch(
        "SELECT jobs.* FROM jobs JOIN functions ON functions.id = function_id WHERE name = 'nap' AND kind = 'invoke'"
        " ORDER BY jobs.id"
    )
    attempts: dict[UUID, list[dict[str, object]]] = {row["id"]: [] for row in jobs}
    for row in await platform.database.fetch(
        "SELECT job_id, outcome, reason, worker_id, extract(epoch FROM started_at)::float8 AS started"
        " FROM invocations WHERE job_id = ANY ($1) ORDER BY epoch",
        list(attempts),
    ):
        attempts[row["job_id"]].append(dict(row))
    recovery: list[float] = []
    disturbed = 0
    for row in jobs:
        *before, last = attempts[row["id"]] or [{}]
        if row["status"] != "succeeded" or last.get("outcome") != "succeeded":
            raise WrongAnswer(f"job {row['id']} is {row['status']}, {row['reason']}, after {attempts[row['id']]}")
        if any(attempt["outcome"] != "lost" and attempt["reason"] not in PLATFORM_REASONS for attempt in before):
            raise WrongAnswer(f"job {row['id']} was run again although nothing was lost: {attempts[row['id']]}")
        for attempt, after in zip(before, attempts[row["id"]][1:], strict=True):
            killed_at = log.killed_at.get(int(str(attempt["worker_id"]).split("-")[-2]))
            started = after["started"]
            if killed_at is None or not isinstance(started, float):
                continue
            if any(outage.since < started and outage.until > killed_at for outage in log.away):
                disturbed += 1
            else:
                recovery.append(started - killed_at)
    await recorded.balanced(platform)
    lost = sum(attempt["outcome"] == "lost" for records in attempts.values() for attempt in records)
    return lost, sorted(recovery), disturbed, sum(map(len, attempts.values())), len(jobs) - len(accepted)


async def orphans_gone(platform: Platform, engine: PrivateDockerd | None = None) -> float:
    """Seconds until no container belongs to a worker that is dead; raises :class:`WrongAnswer` after a minute."""
    if platform.engine_name != "docker":
        return 0.0
    started = time.monotonic()
    async with Docker(None if engine is None else engine.url) as docker:
        while orphans := await _orphans(platform, docker):
            if time.monotonic() - started > _ORPHANS_GONE_S:
                raise WrongAnswer(f"{orphans} containers of dead workers stand a minute later")
            await asyncio.sleep(0.5)
    return time.monotonic() - started


async def _orphans(platform: Platform, docker: Docker) -> int:
    living = {str(process.pid) for process in platform.processes().values()}
    filters = json.dumps({"label": [f"{LABEL_INSTALLATION}={platform.installation}", LABEL_WORKER]})
    found = await docker.containers.list(all=1, filters=filters)
    return sum(container["Labels"][LABEL_WORKER].split("-")[-2] not in living for container in found)
