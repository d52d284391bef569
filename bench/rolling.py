"""Every process is restarted in good order, one after another, under load: no call fails, no attempt is used up."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass, field
from uuid import UUID

import aiohttp
from redis.asyncio import Redis

from bench import functions, recorded
from bench.balancer import Balancer
from bench.caller import Caller
from bench.crash import orphans_gone
from bench.figure import Better, Figure, WrongAnswer, percentile
from bench.measurement import Measurement
from bench.platform import Platform, free_port
from scheduler import health
from shared.queue.queue import Queue

NAP_S = 0.2
_CALL = "/api/functions/nap/invoke"
_DRAINED_S = 30.0
_BACK_S = 30.0
_ENDED_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """:param callers: each waits for its answer before it calls again. :param accept_every_s: between two accepts."""

    restarts: int
    workers: int
    callers: int
    accept_every_s: float
    env: dict[str, str] = field(default_factory=dict)


LONG = Size(restarts=100, workers=3, callers=6, accept_every_s=0.1)
SHORT = Size(restarts=8, workers=3, callers=4, accept_every_s=0.1)


@dataclass(slots=True, kw_only=True)
class Calls:
    """What callers were told: answered calls by their job, accepted jobs, and whatever else they met."""

    answered: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    longest: str = ""  # its job


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """:param restarts: by role. :param consumed: attempts beyond each job's first. :param handed_back: attempts that a
    stopping worker gave back unspent. :param passed_on: calls that found nobody listening and went to another process.
    :param longest_s: the longest that a synchronous caller waited; ``longest`` is what the records say of that call.
    :param drains_s: from SIGTERM to exit, in order.
    """

    restarts: dict[str, int]
    answered: int
    accepted: int
    failures: list[str]
    consumed: int
    handed_back: int
    passed_on: int
    longest_s: float
    longest: dict[str, object]
    drains_s: list[float]
    orphans_gone_s: float

    @property
    def drain_p99_s(self) -> float:
        return percentile(self.drains_s, 99)


async def play(platform: Platform, caller: Caller, size: Size) -> Outcome:
    """Expects a platform with ``size.workers`` workers, and starts a second API process and a second scheduler.

    Raises :class:`WrongAnswer` for a process that does not end or come back in good order, for books that do not
    balance, and for what is left over; what callers were told wrong is in the outcome.
    """
    await caller.deploy("nap", functions.SLEEP, timeout_s=30)
    ports = {"api": platform.port, "api-2": free_port()}
    platform.start("api-2", {"PORT": str(ports["api-2"])})
    platform.start("scheduler-2")
    calls = Calls()
    restarts: Counter[str] = Counter()
    drains: list[float] = []
    async with Balancer(list(ports.values()), caller.headers) as balancer:
        for name in ("api-2", "scheduler-2"):
            await _back(platform, balancer, ports, name)
        async with _load(balancer, calls, size):
            for name in itertools.islice(itertools.cycle(_order(size.workers)), size.restarts):
                drains.append(await _restart(platform, ports, name))
                restarts[name.partition("-")[0]] += 1
                await _back(platform, balancer, ports, name)
                if ended := platform.ended():
                    raise WrongAnswer(f"{ended} ended, and nobody had told them to")
        passed_on = balancer.passed_on
    await recorded.settled(platform, timeout_s=_ENDED_S)
    consumed, handed_back = await _judge(platform, calls)
    return Outcome(
        restarts=dict(restarts),
        answered=len(calls.answered),
        accepted=len(calls.accepted),
        failures=calls.failures,
        consumed=consumed,
        handed_back=handed_back,
        passed_on=passed_on,
        longest_s=calls.longest_s,
        longest=await _phases(platform, calls.longest),
        drains_s=sorted(drains),
        orphans_gone_s=await orphans_gone(platform),
    )


async def measure(measurement: Measurement) -> list[Figure]:
    size = measurement.pick(SHORT, LONG)
    async with measurement.platform(workers=size.workers, env=size.env) as platform, platform.caller() as caller:
        measurement.say(f"{size.restarts} restarts in good order under load")
        outcome = await play(platform, caller, size)
    by_role = ", ".join(f"{count} {role}" for role, count in sorted(outcome.restarts.items()))
    measurement.say(
        f"restarted: {by_role}; {outcome.answered} calls answered, {outcome.accepted} jobs accepted, "
        f"{len(outcome.failures)} failures, {outcome.consumed} attempts used up, {outcome.handed_back} handed back, "
        f"{outcome.passed_on} calls passed on to another process"
    )
    if outcome.failures or outcome.consumed:
        raise WrongAnswer(
            f"{outcome.consumed} attempts were used up, and callers met {len(outcome.failures)} failures: "
            f"{outcome.failures[:20]}"
        )
    what = f"{size.restarts} rolling restarts"
    details = asdict(outcome)
    return [
        _figure("rolling_failures", f"{what}: calls and jobs that failed", len(outcome.failures), "", 0, details),
        _figure("rolling_consumed", f"{what}: attempts used up", outcome.consumed, "", 0),
        _figure("rolling_longest", f"{what}: longest wait of a caller for {NAP_S:g} s of work", outcome.longest_s, "s"),
        _figure("rolling_drain", f"{what}: from SIGTERM to exit, p99", outcome.drain_p99_s, "s", _DRAINED_S),
    ]


def _figure(
    key: str, what: str, value: float, unit: str, target: float | None = None, details: dict[str, object] | None = None
) -> Figure:
    return Figure(key=key, what=what, value=value, unit=unit, better=Better.LESS, target=target, details=details or {})


def _order(workers: int) -> list[str]:
    """All processes, no two of a role in a row while there are others."""
    others = ["api", "scheduler", "api-2", "scheduler-2"]
    pairs = itertools.zip_longest((f"worker-{number}" for number in range(1, workers + 1)), others)
    return [name for pair in pairs for name in pair if name is not None]


async def _restart(platform: Platform, ports: dict[str, int], name: str) -> float:
    """Seconds from SIGTERM to the end; started again at once."""
    started = time.monotonic()
    code = await platform.stop(name)
    took_s = time.monotonic() - started
    if code != 0:
        raise WrongAnswer(f"{name} ended with {code} after {took_s:.1f} s")
    platform.start(name, {"PORT": str(ports[name])} if name in ports else None)
    return took_s


async def _back(platform: Platform, balancer: Balancer, ports: dict[str, int], name: str) -> None:
    """Return once it does its work again, as whoever rolls out a release waits before it goes on."""
    pid = str(platform.processes()[name].pid)
    async with Redis.from_url(platform.redis.url) as redis, aclosing(Queue(redis)) as queue:
        try:
            async with asyncio.timeout(_BACK_S):
                while True:
                    if name in ports:
                        back = ports[name] in balancer.ready
                    elif name.startswith("scheduler"):
                        back = await health.problem(platform.postgres.dsn) is None
                    else:
                        back = any(worker.split("-")[-2] == pid for worker in (await queue.figures()).workers)
                    if back:
                        return
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise WrongAnswer(f"{name} is not back {_BACK_S:g} s after its start") from None


@asynccontextmanager
async def _load(balancer: Balancer, calls: Calls, size: Size) -> AsyncIterator[None]:
    """Callers that wait for answers, and jobs that are accepted at a rate, until the end."""
    stop = asyncio.Event()

    async def call() -> None:
        while not stop.is_set():
            await _synchronous(balancer, calls)

    async def accept() -> None:
        async with asyncio.TaskGroup() as accepts:
            while not stop.is_set():
                accepts.create_task(_asynchronous(balancer, calls))
                await asyncio.sleep(size.accept_every_s)

    async with asyncio.TaskGroup() as load:
        for _ in range(size.callers):
            load.create_task(call())
        load.create_task(accept())
        try:
            yield
        finally:
            stop.set()


async def _synchronous(balancer: Balancer, calls: Calls) -> None:
    started = time.monotonic()
    answer = await _ask(balancer, calls, 200)
    took_s = time.monotonic() - started
    if answer is not None and answer.get("result") == functions.SLEEP_RESULT:
        calls.answered.append(answer["job_id"])
        if took_s > calls.longest_s:
            calls.longest_s, calls.longest = took_s, answer["job_id"]
    elif answer is not None:
        calls.failures.append(f"answered {answer}")


async def _asynchronous(balancer: Balancer, calls: Calls) -> None:
    answer = await _ask(balancer, calls, 202, Prefer="respond-async")
    if answer is not None:
        calls.accepted.append(answer["job_id"])


async def _ask(balancer: Balancer, calls: Calls, status: int, **headers: str) -> dict[str, str] | None:
    """The answer if it has ``status``; None for a failure, which is noted."""
    try:
        got, answer = await balancer.ask("POST", _CALL, headers=headers, body={"body": NAP_S})
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        calls.failures.append(f"no answer: {error!r}")
        return None
    if got != status:
        calls.failures.append(f"{got} instead of {status}: {answer}")
        return None
    return dict(answer)


async def _phases(platform: Platform, job: str) -> dict[str, object]:
    row = await platform.database.fetchrow(
        "SELECT start_kind, queue_ms, sandbox_ms, run_ms, total_ms FROM invocations"
        " WHERE job_id = $1 AND outcome = 'succeeded'",
        UUID(job),
    )
    return dict(row or {})


async def _judge(platform: Platform, calls: Calls) -> tuple[int, int]:
    """(attempts used up, attempts handed back). A job that did not succeed at all is one more failure."""
    await recorded.all_written(platform)
    await recorded.all_committed(platform, calls.accepted + calls.answered)
    bad = await platform.database.fetch(
        "SELECT id, status, reason, attempt FROM jobs WHERE kind = 'invoke' AND status <> 'succeeded'"
    )
    calls.failures += [f"job {row['id']} is {row['status']}, {row['reason']}, attempt {row['attempt']}" for row in bad]
    outcomes = {
        row["outcome"]: row["count"]
        for row in await platform.database.fetch("SELECT outcome, count(*) AS count FROM invocations GROUP BY 1")
    }
    jobs, first = await platform.database.fetchrow(
        "SELECT count(*), count(*) FILTER (WHERE attempt = 1 AND lost = 0) FROM jobs WHERE kind = 'invoke'"
    )
    handed_back = outcomes.pop("handed_back", 0)
    await recorded.balanced(platform)
    return max(sum(outcomes.values()) - jobs, jobs - first), handed_back
