"""Work in a thread that its caller is cancelled over leaves nothing behind."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from shared.in_thread import finished_in_thread, temporary_folder


class Work:
    """Ends when it is let go."""

    def __init__(self) -> None:
        self.begun, self.let_go = threading.Event(), threading.Event()
        self.done = False
        self.discarded: list[str] = []

    def __call__(self) -> str:
        self.begun.set()
        assert self.let_go.wait(10)
        self.done = True
        return "made"


async def test_what_a_thread_made_is_the_callers() -> None:
    discarded: list[str] = []
    assert await finished_in_thread(lambda: "made", discarded.append) == "made"
    assert discarded == []


async def test_an_error_of_the_work_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        await finished_in_thread(lambda: 1 / 0)


@pytest.mark.parametrize("cancels", [1, 3])
async def test_a_cancelled_caller_waits_for_the_thread_and_has_its_work_discarded(cancels: int) -> None:
    work = Work()
    task = asyncio.create_task(finished_in_thread(work, work.discarded.append))
    await asyncio.to_thread(work.begun.wait, 10)
    for _ in range(cancels):
        task.cancel()
        await asyncio.sleep(0.02)
        assert not task.done()
    work.let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.done
    assert work.discarded == ["made"]


async def test_a_cancel_in_the_turn_in_which_the_work_ends_discards_it_too() -> None:
    for turns in range(6):
        made: list[str] = []
        task = asyncio.create_task(finished_in_thread(lambda: "made", made.append))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        assert (outcome, made) == ("made", []) or (
            isinstance(outcome, asyncio.CancelledError) and made in ([], ["made"])
        )
        assert isinstance(outcome, str) != bool(made) or turns == 0  # turn 0: it never began


async def test_a_cancelled_caller_is_not_told_of_an_error_of_the_work() -> None:
    begun, let_go = threading.Event(), threading.Event()

    def fail() -> None:
        begun.set()
        assert let_go.wait(10)
        raise OSError("no space left")

    task = asyncio.create_task(finished_in_thread(fail))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_temporary_folder_is_gone_after_its_block_and_after_a_cancel_while_it_is_made(tmp_path: Path) -> None:
    begun, let_go, folder = threading.Event(), threading.Event(), tmp_path / "made"

    def make() -> Path:
        begun.set()
        assert let_go.wait(10)
        folder.mkdir()
        return folder

    async def use() -> None:
        async with temporary_folder(make) as made:
            (made / "file").touch()
            await asyncio.sleep(0)

    task = asyncio.create_task(use())
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(tmp_path.iterdir()) == []
    await use()
    assert list(tmp_path.iterdir()) == []
