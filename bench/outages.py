"""Redis is emptied and Postgres stopped hard, time after time under load: no job is lost, no process ends."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from bench import crash, functions
from bench.caller import Caller
from bench.faults import Outage, Plan
from bench.figure import Better, Figure, WrongAnswer, median
from bench.measurement import Measurement
from bench.platform import Platform

ENDED_S = 60.0
BACK_S = 10.0
_AWAY_S = 1.0
_PROBE = "/api/functions/probe/invoke"
_PROBE_EVERY_S = 0.05


def plan(count: int) -> Plan:
    """``count`` outages of each server in turn, evenly over the load, which goes on for as long after the last one."""
    at = [(number + 1) / (2 * count + 1) for number in range(2 * count)]
    return Plan(redis_at=tuple(at[::2]), postgres_at=tuple(at[1::2]), away_s=_AWAY_S)


LONG = crash.Size(jobs=6000, workers=2, rate=20, recovery_s=math.inf, plan=plan(20), env=crash.ENV)
SHORT = crash.Size(jobs=240, workers=2, rate=12, recovery_s=math.inf, plan=plan(2), env=crash.SHORT.env)


@dataclass(slots=True, kw_only=True)
class Probe:
    """A caller that waits for its answer, again and again: when it was answered well, and codes of clean refusals."""

    answered: list[tuple[float, float]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """:param ended_s: from the last return of a server until the last job had ended. :param accepted_s: by server, from
    each return until the first 202 to a call that was made after it. :param answered_s: the same of a call that waits.
    """

    jobs: crash.Outcome
    refused: dict[str, int]
    ended_s: float
    accepted_s: dict[str, list[float]]
    answered_s: dict[str, list[float]]

    def back_s(self, server: str) -> float:
        """Until both were served, at most."""
        return max(self.accepted_s[server] + self.answered_s[server])


async def play(platform: Platform, caller: Caller, size: crash.Size, *, seed: int) -> Outcome:
    """As :func:`bench.crash.play`, and raises :class:`WrongAnswer` for a process that ended, and for a call that was
    neither answered nor refused cleanly."""
    await caller.deploy("probe", functions.HELLO)
    before = _pids(platform)
    client, probe = crash.Client(), Probe()
    async with asyncio.TaskGroup() as group:
        # No longer than the load: what is judged in the end stands still.
        group.create_task(_ask_on(caller, probe, until=lambda: len(client.accepted) >= size.jobs))
        jobs = await crash.play(platform, caller, size, seed=seed, client=client)
    if jobs.done != (meant := {"redis": len(size.plan.redis_at), "postgres": len(size.plan.postgres_at)}):
        raise WrongAnswer(f"{jobs.done} was done instead of {meant}")
    if (after := _pids(platform)) != before:
        raise WrongAnswer(f"processes of the platform were restarted: {before} became {after}")
    return Outcome(
        jobs=jobs,
        refused=dict(probe.refused),
        ended_s=jobs.ended_at - max(outage.until for outage in jobs.away),
        accepted_s=_first_after(jobs.away, client.served),
        answered_s=_first_after(jobs.away, probe.answered),
    )


async def measure(measurement: Measurement) -> list[Figure]:
    size = measurement.pick(SHORT, LONG)
    seed = random.SystemRandom().randrange(2**32)
    async with measurement.platform(workers=size.workers, env=size.env) as platform, platform.caller() as caller:
        measurement.say(
            f"{size.jobs} jobs while Redis is emptied and Postgres stopped {len(size.plan.redis_at)} times each"
        )
        outcome = await play(platform, caller, size, seed=seed)
    jobs = outcome.jobs
    measurement.say(
        f"{jobs.accepted} accepted and {jobs.more} more, 0 lost, refused {jobs.refused} and {outcome.refused}"
    )
    for server in ("redis", "postgres"):
        measurement.say(
            f"from the return of {server} to the first 202 {_spread(outcome.accepted_s[server])}, "
            f"to the first answered call {_spread(outcome.answered_s[server])}"
        )
    times = f"{len(size.plan.redis_at)} outages of each"
    return [
        Figure(
            key="outages_ended",
            what=f"{times}: from the last return of Redis or Postgres to the end of all jobs",
            value=outcome.ended_s,
            unit="s",
            better=Better.LESS,
            target=ENDED_S,
            details=asdict(outcome),
        ),
        *(
            Figure(
                key=f"outages_{server}",
                what=f"{times}: from the return of {server} to accepting and answering again, at most",
                value=outcome.back_s(server),
                unit="s",
                better=Better.LESS,
                target=target,
            )
            for server, target in (("redis", None), ("postgres", BACK_S))
        ),
    ]


async def _ask_on(caller: Caller, probe: Probe, *, until: Callable[[], bool]) -> None:
    while not until():
        asked_at = time.time()
        status, answer = await caller.ask("POST", _PROBE, json={"body": functions.HELLO_BODY})
        if status == 200 and answer.get("result") == functions.HELLO_RESULT:
            probe.answered.append((asked_at, time.time()))
        elif status == 503 and "code" in answer:
            probe.refused[answer["code"]] += 1
        else:
            raise WrongAnswer(f"a waiting caller was told {status} {answer}")
        await asyncio.sleep(_PROBE_EVERY_S)


def _first_after(away: Sequence[Outage], served: Sequence[tuple[float, float]]) -> dict[str, list[float]]:
    """Seconds from each return until the first of the calls that were made after it was served; by server, in order."""
    found: dict[str, list[float]] = {}
    for outage in away:
        told = [told_at for asked_at, told_at in served if asked_at >= outage.until]
        if not told:
            raise WrongAnswer(f"nobody was served any more after {outage.name} had returned")
        found.setdefault(outage.name, []).append(min(told) - outage.until)
    return {name: sorted(values) for name, values in found.items()}


def _spread(values: Sequence[float]) -> str:
    return f"p50 {median(values):.2f} s, at most {max(values):.2f} s"


def _pids(platform: Platform) -> dict[str, int]:
    return {name: process.pid for name, process in platform.processes().items()}
