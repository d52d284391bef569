"""Functions that misbehave, by the hundred, beside a neighbour: true reasons, nothing felt, nothing left."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar
from uuid import UUID

from aiodocker import Docker

from bench import functions
from bench.caller import Caller
from bench.crowd import REST_S
from bench.figure import Better, Figure, WrongAnswer, percentile
from bench.footprint import MEBIBYTE, Footprint, back, burning, resting
from bench.hostile import HOSTILE, MEMORY_MB, WAYS
from bench.measurement import Measurement
from bench.platform import Platform

_PATIENT_S = 60.0
_NEIGHBOUR_EVERY_S = 0.05
_NEIGHBOUR_WARM_UP = 50
_GONE_WITHIN_S = 1.0
_RECORDS_TIMEOUT_S = 30.0
_SLOTS_LEFT = 4  # of the worker, for the neighbour
_IDLE_S = 3
_LOG_BYTES = 16_384  # what is beyond is read and dropped; thousands of floods would only fill the database

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """:param calls: that misbehave in a random way. :param loops: calls that only loop, without end.
    :param floods: calls that print a megabyte. :param at_once: so many of these at a time.
    :param timeout_s: of those that end in no other way. :param quiet_s: how long the neighbour is measured alone.
    :param back_within_s: how long after the last call everything must be as it was.
    """

    calls: int
    loops: int
    floods: int
    at_once: int
    timeout_s: float
    quiet_s: float
    back_within_s: float

    @property
    def env(self) -> dict[str, str]:
        slots = self.at_once + _SLOTS_LEFT
        return {
            "FUNCTION_MAX_CONCURRENT": str(slots),
            "WORKER_MEMORY_MB": str((slots + 4) * MEMORY_MB),
            "SANDBOX_IDLE_SECONDS": str(_IDLE_S),
            "MAX_LOG_BYTES": str(_LOG_BYTES),
        }


LONG = Size(calls=1000, loops=1000, floods=10_000, at_once=20, timeout_s=5, quiet_s=30, back_within_s=60)
SHORT = Size(calls=60, loops=8, floods=60, at_once=6, timeout_s=1, quiet_s=3, back_within_s=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """:param ways: how often each was taken. :param wrong: what was told another reason than its true one.
    :param quiet_ms: the neighbour's calls while nobody else is there; sorted, as all latencies, in milliseconds.
    :param beside_ms: while others misbehave. :param beside_loops_ms: while all others loop.
    :param loops_ms: how long endless loops ran. :param told_ms: from asking for one until its time-out was told, the
    start of a container for each included.
    :param flooded_mb: by how much the worker's resident memory grew while it read floods, at the most.
    :param alive: containers that still burn processor time a second after the last loop's answer.
    """

    ways: dict[str, int]
    wrong: list[str]
    quiet_ms: list[float]
    beside_ms: list[float]
    beside_loops_ms: list[float]
    loops_ms: list[float]
    told_ms: list[float]
    alive: int
    flooded_mb: float
    before: Footprint
    after: Footprint
    back_s: float
    took_s: float


async def play(platform: Platform, hostile: Caller, neighbour: Caller, docker: Docker, size: Size) -> Outcome:
    """Raises :class:`WrongAnswer` for a wrong answer to the neighbour, and for what is left at the end."""
    for name, timeout_s in (("impatient", size.timeout_s), ("patient", _PATIENT_S)):
        await hostile.deploy(name, HOSTILE, timeout_s=timeout_s, memory_mb=MEMORY_MB)
    await neighbour.deploy("neighbour", functions.HELLO)
    # Each once, so that what is loaded and remembered at a first time is there before the footprint is taken.
    wrong = await _misbehave(platform, hostile, list(WAYS), size.at_once)
    for _ in range(_NEIGHBOUR_WARM_UP):
        await _neighbour_ms(neighbour)
    before = await resting(platform, docker, _IDLE_S + REST_S)

    started = time.monotonic()
    quiet, _ = await _beside(neighbour, asyncio.sleep(size.quiet_s))
    ways = random.choices(list(WAYS), k=size.calls)
    beside, more = await _beside(neighbour, _misbehave(platform, hostile, ways, size.at_once))
    beside_loops, (told, loops) = await _beside(neighbour, _loop(platform, hostile, size))
    await asyncio.sleep(_GONE_WITHIN_S)
    alive = await burning(platform, docker)
    flooded_mb = await _flood(platform, hostile, size)
    after, back_s = await back(platform, docker, before, size.back_within_s)
    return Outcome(
        ways=dict(Counter(ways)),
        wrong=wrong + more,
        quiet_ms=quiet,
        beside_ms=beside,
        beside_loops_ms=beside_loops,
        loops_ms=loops,
        told_ms=told,
        alive=alive,
        flooded_mb=flooded_mb,
        before=before,
        after=after,
        back_s=back_s,
        took_s=time.monotonic() - started,
    )


async def measure(measurement: Measurement) -> list[Figure]:
    if measurement.engine_name != "docker":
        raise WrongAnswer("only containers hold what these functions do: this needs a container engine")
    size = measurement.pick(SHORT, LONG)
    async with (
        Docker() as docker,
        measurement.platform(env=size.env) as platform,
        platform.caller() as hostile,
        platform.caller() as neighbour,
    ):
        measurement.say(f"{size.calls} calls that misbehave and {size.loops} that loop, {size.at_once} at a time")
        outcome = await play(platform, hostile, neighbour, docker, size)
    if outcome.wrong:
        raise WrongAnswer(f"{len(outcome.wrong)} calls were told a wrong reason: {outcome.wrong[:20]}")
    quiet = percentile(outcome.quiet_ms, 99)
    figures = [
        Figure(
            key=f"neighbour_beside_{key}",
            what=f"neighbour's p99 beside {size.at_once} that {what}, to its quiet one",
            value=percentile(latencies, 99) / quiet,
            unit="x",
            better=Better.LESS,
            target=3,
            details={
                "calls": len(latencies),
                **{f"p{percent}_ms": percentile(latencies, percent) for percent in (50, 90, 99)},
                "max_ms": latencies[-1],
                "quiet_p50_ms": percentile(outcome.quiet_ms, 50),
                "quiet_p99_ms": quiet,
            },
        )
        for key, what, latencies in (
            ("misbehaviour", "misbehave", outcome.beside_ms),
            ("loops", "loop", outcome.beside_loops_ms),
        )
    ]
    return [
        *figures,
        Figure(
            key="loops_end",
            what=f"endless loops with {size.timeout_s:g} s: ended after, p99",
            value=percentile(outcome.loops_ms, 99) / 1000,
            unit="s",
            better=Better.LESS,
            target=size.timeout_s + 0.5,
            details={
                "loops": len(outcome.loops_ms),
                "max_ms": outcome.loops_ms[-1],
                "told_p50_ms": percentile(outcome.told_ms, 50),
                "told_p99_ms": percentile(outcome.told_ms, 99),
            },
        ),
        Figure(
            key="loops_alive",
            what="containers that still run a second after the last loop's answer",
            value=outcome.alive,
            unit="containers",
            better=Better.LESS,
            target=0,
        ),
        Figure(
            key="flood_memory",
            what=f"worker's memory grown by {size.floods:,} floods of 1 MB, at most",
            value=outcome.flooded_mb,
            unit="MB",
            better=Better.LESS,
            target=50,
        ),
        Figure(
            key="misbehaviour_back",
            what="everything back as it was, after the last call",
            value=outcome.back_s,
            unit="s",
            better=Better.LESS,
            target=60,
            details={
                "ways": outcome.ways,
                "took_s": outcome.took_s,
                "before": asdict(outcome.before),
                "after": asdict(outcome.after),
            },
        ),
    ]


async def _misbehave(platform: Platform, caller: Caller, ways: Sequence[str], at_once: int) -> list[str]:
    """Call in all these ways; what was wrong about what was told or recorded."""
    left = list(ways)
    told: dict[str, str] = {}
    wrong: list[str] = []

    async def one() -> None:
        while left:
            way = left.pop()
            answer = await caller.outcome("patient" if WAYS[way].patient else "impatient", way)
            told[answer["job_id"]] = way
            if answer["success"] != (WAYS[way].reason is None) or answer.get("reason") != WAYS[way].reason:
                wrong.append(f"{way}: {str(answer)[:300]}")

    await asyncio.gather(*(one() for _ in range(at_once)))
    return wrong + await _wrong_records(platform, told)


async def _wrong_records(platform: Platform, told: dict[str, str]) -> list[str]:
    wrong = []
    for row in await _records(platform, list(told)):
        name = told[str(row["job_id"])]
        way = WAYS[name]
        if row["reason"] != way.reason or row["logs_truncated"] != way.truncated or row["attempt"] != 1:
            wrong.append(f"{name}: recorded {dict(row)}")
        elif way.exit_code is not None and row["exit_code"] != way.exit_code:
            wrong.append(f"{name}: exit code {row['exit_code']} instead of {way.exit_code}")
    return wrong


async def _records(platform: Platform, jobs: Sequence[str]) -> Sequence[Any]:
    """The records of these jobs, once all are written."""
    ids = [UUID(job) for job in jobs]
    async with asyncio.timeout(_RECORDS_TIMEOUT_S):
        while True:
            rows: Sequence[Any] = await platform.database.fetch(
                "SELECT job_id, attempt, reason, exit_code, run_ms, logs_truncated FROM invocations"
                " WHERE job_id = ANY ($1)",
                ids,
            )
            if len(rows) >= len(ids):
                return rows
            await asyncio.sleep(0.05)


async def _loop(platform: Platform, caller: Caller, size: Size) -> tuple[list[float], list[float]]:
    """Call endless loops; when their ends were told, and how long they ran, both sorted."""
    left = size.loops
    jobs: list[str] = []
    took: list[float] = []

    async def one() -> None:
        nonlocal left
        while left:
            left -= 1
            started = time.perf_counter()
            answer = await caller.outcome("impatient", "loop")
            if answer.get("reason") != "timeout":
                raise WrongAnswer(f"an endless loop ended as {answer}")
            took.append(1000 * (time.perf_counter() - started))
            jobs.append(answer["job_id"])

    await asyncio.gather(*(one() for _ in range(size.at_once)))
    return sorted(took), sorted(row["run_ms"] for row in await _records(platform, jobs))


async def _flood(platform: Platform, caller: Caller, size: Size) -> float:
    """Have megabytes printed; by how many the worker's memory was larger than before, at the most."""
    worker = platform.processes()["worker-1"]
    left, before, most = size.floods, worker.memory_info().rss, 0

    async def one() -> None:
        nonlocal left, most
        while left:
            left -= 1
            answer = await caller.outcome("patient", "flood_a_little")
            if not answer["success"]:
                raise WrongAnswer(f"a flood ended as {answer}")
            most = max(most, worker.memory_info().rss)

    await asyncio.gather(*(one() for _ in range(size.at_once)))
    return (most - before) / MEBIBYTE


async def _beside(neighbour: Caller, work: Awaitable[Value]) -> tuple[list[float], Value]:
    """The latencies of a client that calls steadily while ``work`` goes on, sorted; and what comes of the work."""
    task = asyncio.ensure_future(work)
    latencies = []
    loop = asyncio.get_running_loop()
    try:
        while not task.done():
            due = loop.time() + _NEIGHBOUR_EVERY_S
            latencies.append(await _neighbour_ms(neighbour))
            await asyncio.sleep(due - loop.time())
        return sorted(latencies), await task
    finally:
        task.cancel()


async def _neighbour_ms(neighbour: Caller) -> float:
    started = time.perf_counter()
    await neighbour.invoke("neighbour", functions.HELLO_BODY, functions.HELLO_RESULT)
    return 1000 * (time.perf_counter() - started)
