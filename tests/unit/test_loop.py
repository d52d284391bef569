"""The one shape of loops: what is tried again, what ends a process, and how they are woken and stopped."""

from __future__ import annotations

import asyncio

import pytest

from shared.errors import Unavailable
from shared.loop import Loop, LoopEnded, Loops
from shared.queue.scripts import QueueClosed

LONG_S = 3600.0


@pytest.mark.parametrize("away", [Unavailable("Redis did not answer"), QueueClosed("rebuilt")])
async def test_a_step_that_fails_because_something_is_away_is_tried_again(
    away: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    steps, again = 0, asyncio.Event()

    async def step() -> None:
        nonlocal steps
        steps += 1
        if steps == 1:
            raise away
        again.set()

    loops = Loops()
    loops.start(Loop(name="one", run_once=step, interval_s=LONG_S, retry_s=0.001))
    async with asyncio.timeout(5):
        await again.wait()
    await loops.stop()
    assert [record.loop for record in caplog.records if record.msg == "put off"] == ["one"]  # type: ignore[attr-defined]


async def test_a_loop_that_dies_is_named_and_ends_the_wait_for_the_stop_and_the_others_end_with_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fails() -> None:
        raise ValueError("mine")

    async def fine() -> None: ...

    loops = Loops()
    loops.start(
        Loop(name="fine", run_once=fine, interval_s=LONG_S), Loop(name="faulty", run_once=fails, interval_s=0.001)
    )
    with pytest.raises(ValueError, match="mine"):
        async with asyncio.timeout(5):
            await loops.until(asyncio.Event())
    assert [record.loop for record in caplog.records if record.msg == "a loop ended"] == ["faulty"]  # type: ignore[attr-defined]
    running = {task.get_name() for task in asyncio.all_tasks()}
    assert "fine" in running
    await loops.stop()
    assert "fine" not in {task.get_name() for task in asyncio.all_tasks()}


async def test_a_loop_that_is_cancelled_by_somebody_else_is_one_that_died() -> None:
    async def stray() -> None:
        raise asyncio.CancelledError

    loops = Loops()
    loops.start(Loop(name="stray", run_once=stray, interval_s=LONG_S))
    with pytest.raises(LoopEnded, match="stray"):
        async with asyncio.timeout(5):
            await loops.failed()


async def test_a_stop_is_orderly() -> None:
    ended, stop = asyncio.Event(), asyncio.Event()

    async def step() -> None:
        stop.set()
        try:
            await asyncio.sleep(LONG_S)
        finally:
            ended.set()

    loops = Loops()
    loops.start(Loop(name="one", run_once=step, interval_s=LONG_S))
    async with asyncio.timeout(5):
        await loops.until(stop)
        await loops.stop()
        await loops.stop()
    assert ended.is_set()


async def test_what_wakes_a_loop_during_its_step_makes_it_step_once_more() -> None:
    steps, twice = 0, asyncio.Event()
    loop: Loop

    async def step() -> None:
        nonlocal steps
        steps += 1
        if steps == 1:
            loop.wake.set()
        else:
            twice.set()

    loop = Loop(name="one", run_once=step, interval_s=None)
    loops = Loops()
    loops.start(loop)
    async with asyncio.timeout(5):
        await twice.wait()
    await loops.stop()
    assert steps == 2


async def test_a_loop_that_is_not_active_takes_no_step_until_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.loop.IDLE_S", 0.001)
    looks, steps = 0, []
    stepped = asyncio.Event()

    def leading() -> bool:
        nonlocal looks
        looks += 1
        return looks > 3

    async def step() -> None:
        steps.append(looks)
        stepped.set()

    loops = Loops()
    loops.start(Loop(name="one", run_once=step, interval_s=LONG_S, active=leading))
    async with asyncio.timeout(5):
        await stepped.wait()
    await loops.stop()
    assert steps == [4]
