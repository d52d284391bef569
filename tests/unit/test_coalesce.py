"""Coalescing: one flush at a time, everybody gets their own answer, an error reaches its batch alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from shared.queue.coalesce import Coalescer


class Gate:
    """A flush that waits to be let through, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.through = asyncio.Semaphore(0)
        self.inside = 0
        self.error: BaseException | None = None

    async def flush(self, items: list[int]) -> Sequence[int]:
        self.inside += 1
        assert self.inside == 1, "two flushes at a time"
        self.batches.append(items)
        try:
            await self.through.acquire()
            if self.error is not None:
                error, self.error = self.error, None
                raise error
            return [item * 10 for item in items]
        finally:
            self.inside -= 1


async def settle_down() -> None:
    """Let every task that can run do so."""
    for _ in range(10):
        await asyncio.sleep(0)


def submit(coalescer: Coalescer[int, int], *items: int) -> list[asyncio.Task[int]]:
    return [asyncio.create_task(coalescer.submit(item)) for item in items]


async def test_what_arrives_during_a_flush_goes_out_as_the_next_one() -> None:
    gate = Gate()
    coalescer = Coalescer(gate.flush, most=100, name="test")
    first = submit(coalescer, 1)
    await settle_down()
    rest = submit(coalescer, 2, 3, 4)
    await settle_down()
    assert gate.batches == [[1]]
    gate.through.release()
    await settle_down()
    assert gate.batches == [[1], [2, 3, 4]]
    gate.through.release()
    assert await asyncio.gather(*first, *rest) == [10, 20, 30, 40]


async def test_batch_has_at_most_so_many() -> None:
    gate = Gate()
    coalescer = Coalescer(gate.flush, most=2, name="test")
    tasks = submit(coalescer, 1, 2, 3, 4, 5)
    for _ in range(3):
        gate.through.release()
    assert await asyncio.gather(*tasks) == [10, 20, 30, 40, 50]
    assert [len(batch) for batch in gate.batches] == [2, 2, 1]


async def test_error_reaches_its_batch_and_not_the_next() -> None:
    gate = Gate()
    gate.error = OSError("away")
    coalescer = Coalescer(gate.flush, most=2, name="test")
    tasks = submit(coalescer, 1, 2, 3)
    gate.through.release()
    gate.through.release()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [OSError, OSError, int]


async def test_caller_that_goes_away_costs_the_others_nothing() -> None:
    gate = Gate()
    coalescer = Coalescer(gate.flush, most=100, name="test")
    tasks = submit(coalescer, 1, 2)
    await settle_down()
    tasks[0].cancel()
    await settle_down()
    gate.through.release()
    assert await tasks[1] == 20
    assert tasks[0].cancelled()


async def test_flush_that_answers_too_little_is_an_error_to_everybody() -> None:
    async def short(items: list[int]) -> Sequence[int]:
        return items[1:]

    coalescer = Coalescer(short, most=100, name="test")
    answers = await asyncio.gather(*submit(coalescer, 1, 2), return_exceptions=True)
    assert [type(answer) for answer in answers] == [RuntimeError, RuntimeError]


async def test_cancelled_flush_leaves_nobody_waiting_and_serves_the_next() -> None:
    gate = Gate()
    gate.error = asyncio.CancelledError()
    coalescer = Coalescer(gate.flush, most=1, name="test")
    tasks = submit(coalescer, 1, 2)
    gate.through.release()
    await asyncio.wait(tasks, timeout=5)
    assert all(task.cancelled() for task in tasks)
    (later,) = submit(coalescer, 3)
    gate.through.release()
    assert await later == 30


async def test_close_waits_for_what_is_in_flight() -> None:
    gate = Gate()
    coalescer = Coalescer(gate.flush, most=100, name="test")
    await coalescer.close()
    (task,) = submit(coalescer, 1)
    await settle_down()
    closing = asyncio.create_task(coalescer.close())
    await settle_down()
    assert not closing.done()
    gate.through.release()
    await closing
    assert await task == 10
