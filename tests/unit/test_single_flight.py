"""Many who ask the same share one answer."""

from __future__ import annotations

import asyncio

import pytest

from api.single_flight import SingleFlight


async def test_callers_at_the_same_time_share_one_answer_and_later_ones_ask_anew() -> None:
    once: SingleFlight[int] = SingleFlight()
    asked = 0
    answer = asyncio.Event()

    async def question() -> int:
        nonlocal asked
        asked += 1
        await answer.wait()
        return asked

    callers = [asyncio.create_task(once.ask("key", question)) for _ in range(50)]
    other = asyncio.create_task(once.ask("other key", question))
    await asyncio.sleep(0)
    answer.set()
    assert len(set(await asyncio.gather(*callers))) == 1
    await other
    assert asked == 2
    assert await once.ask("key", question) == 3


async def test_an_error_reaches_all_who_asked_and_is_not_remembered() -> None:
    once: SingleFlight[int] = SingleFlight()

    async def broken() -> int:
        raise ValueError("no answer")

    async def fine() -> int:
        return 7

    found = await asyncio.gather(*(once.ask("key", broken) for _ in range(3)), return_exceptions=True)
    assert [str(error) for error in found] == ["no answer"] * 3
    assert await once.ask("key", fine) == 7


async def test_a_caller_that_goes_away_takes_the_answer_from_nobody() -> None:
    once: SingleFlight[str] = SingleFlight()
    answer = asyncio.Event()

    async def question() -> str:
        await answer.wait()
        return "here"

    first = asyncio.create_task(once.ask("key", question))
    second = asyncio.create_task(once.ask("key", question))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    answer.set()
    assert await second == "here"
