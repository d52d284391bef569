"""The frame of the processes: how their tasks end."""

from __future__ import annotations

import asyncio

import pytest

from shared import process


async def test_a_task_that_loses_a_cancellation_is_cancelled_again_and_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(process, "CANCEL_AGAIN_S", 0.05)
    lost = 0

    async def loses_two() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                lost += 1
                if lost > 2:
                    raise

    stubborn = asyncio.create_task(loses_two(), name="stubborn")
    fine = asyncio.create_task(asyncio.sleep(3600))
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await process.ended([stubborn, fine])
    assert lost == 3
    assert fine.cancelled()
    assert stubborn.cancelled()
    assert "stubborn" in caplog.records[0].task  # type: ignore[attr-defined]


async def test_what_a_task_raised_is_kept_for_whoever_asks() -> None:
    async def fails() -> None:
        raise ValueError("mine")

    task = asyncio.create_task(fails())
    await asyncio.sleep(0)
    await process.ended([task])
    with pytest.raises(ValueError, match="mine"):
        task.result()
