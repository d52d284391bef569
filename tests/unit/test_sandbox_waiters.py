"""The line of callers of one version: its order, its measurements, and the room that starts wait for."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from shared.layers import VersionLayers
from worker.sandbox.contract import Call, CallOutcome, SandboxSpec
from worker.sandbox.memory_budget import Budget, Turn
from worker.sandbox.pooled import PooledSandbox
from worker.sandbox.start_costs import StartCosts
from worker.sandbox.waiters import Line, Start


class Idle:
    """A sandbox that nobody calls here."""

    id = "idle"
    reusable = True

    async def call(self, call: Call) -> CallOutcome:
        raise AssertionError

    async def pause(self) -> None: ...

    async def unpause(self) -> None: ...

    async def destroy(self) -> None: ...


def spec(number: int = 1, memory_mb: int = 128) -> SandboxSpec:
    return SandboxSpec(
        version_id=UUID(int=number),
        function_id=UUID(int=number),
        user_id=UUID(int=1),
        function_name="f",
        version=1,
        runtime="python",
        handler="main.handler",
        layers=VersionLayers(base="base", layers=()),
        memory_mb=memory_mb,
        tmp_mb=32,
        cpus=1,
        timeout_ms=1000,
    )


def sandbox() -> PooledSandbox:
    return PooledSandbox(sandbox=Idle(), spec=spec(), born=0, idle_since=0)


async def test_a_freed_sandbox_goes_to_the_caller_that_has_waited_longest() -> None:
    line = Line(spec=spec())
    waiters = [line.join(float(at)) for at in range(3)]
    pooled_sandboxes = [sandbox() for _ in waiters]
    for pooled in pooled_sandboxes:
        assert line.give(pooled, 5.0)
    assert [waiter.given.result() for waiter in waiters] == pooled_sandboxes
    assert not line.give(sandbox(), 5.0)


async def test_a_caller_that_was_cancelled_is_passed_over() -> None:
    line = Line(spec=spec())
    first, second = line.join(0.0), line.join(1.0)
    first.given.cancel()
    pooled = sandbox()
    assert line.give(pooled, 2.0)
    assert second.given.result() is pooled
    line.leave(first, 2.0)
    assert not line.waiting


async def test_waiting_adds_up_over_callers_and_starts_anew_with_each_start() -> None:
    line = Line(spec=spec())
    line.join(10.0)
    waiter = line.join(11.0)
    assert line.demand(13.0, 0.1).waited_s == pytest.approx(1 + 2 * 2)
    line.begun_start(Start(owner=waiter, displaces=True))
    assert line.demand(14.0, 0.1).waited_s == pytest.approx(2)


async def test_a_version_whose_calls_became_longer_for_good_is_not_judged_by_the_old_ones() -> None:
    line = Line(spec=spec())
    pooled = sandbox()

    def calls(count: int, each_s: float, now: float) -> float:
        for _ in range(count):
            line.hand_out(pooled, now)
            now += each_s
            line.took_back(pooled, now)
        return now

    now = calls(100, 0.001, 0.0)
    calls(600, 1.0, now)
    after = line.demand(now + 600, 0.1)
    assert after.hold_s == pytest.approx(1.0, rel=0.01)
    assert after.quiet_hold_s is not None
    assert after.quiet_hold_s > 0.5


async def test_only_a_start_that_waits_for_room_and_has_no_caller_is_surplus() -> None:
    line = Line(spec=spec())
    waiters = [line.join(0.0), line.join(0.0)]
    begun, waits = (Start(owner=waiter, displaces=True) for waiter in waiters)
    begun.begun = True
    line.begun_start(begun)
    line.begun_start(waits)
    assert line.surplus() is None
    line.leave(waiters[0], 1.0)
    assert line.surplus() is waits
    line.starts.remove(waits)
    line.leave(waiters[1], 1.0)
    assert line.surplus() is None, "one under way is not broken off"


async def test_room_is_given_in_turn_and_one_that_gives_up_leaves_its_turn_to_the_next() -> None:
    budget = Budget(limit_mb=128)
    assert budget.take_spare(128)
    asked: list[int] = []
    first = asyncio.create_task(budget.take(Turn(spec=spec(1), since=0), asked.append))
    second = asyncio.create_task(budget.take(Turn(spec=spec(2), since=1), asked.append))
    await asyncio.sleep(0)
    assert asked == [128, 256], "room is made for all that wait at a time"
    assert not budget.take_spare(0), "nobody takes what others wait for"
    first.cancel()
    budget.free(128)
    await second
    assert (budget.used_mb, budget.count, budget.first) == (128, 1, None)


def test_what_a_start_takes_is_measured_by_kind_and_a_generic_one_costs_its_replacement_too() -> None:
    costs = StartCosts()
    for _ in range(30):
        costs.from_image(0.2)
        costs.generic(0.1)
        costs.specialized(0.005)
    assert costs.of_start(from_generic=False) == pytest.approx(0.2, rel=0.01)
    assert costs.of_start(from_generic=True) == pytest.approx(0.105, rel=0.01)
    for _ in range(30):
        costs.from_image(30.0)
    assert costs.of_start(from_generic=False) <= 0.25, "the engine's queue is no cost of a start"
