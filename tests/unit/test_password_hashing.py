"""Hashes of passwords: bounded, and the addresses that ask for them take turns."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from api.password_hashing import PasswordHashing
from shared.errors import TooMany


class Worker:
    """A function that notes who it ran for, and ends when it is let go."""

    def __init__(self) -> None:
        self.ran: list[bytes] = []
        self.go = threading.Event()

    def __call__(self, who: bytes) -> bytes:
        self.go.wait(10)
        self.ran.append(who)
        return who


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.go.set()


@pytest.fixture
def hashing() -> Iterator[PasswordHashing]:
    hashing = PasswordHashing(threads=1, most_of_address=4, most=6)
    yield hashing
    hashing.close()


async def begun(*calls: asyncio.Task[bytes]) -> None:
    """The calls wait for their turns, in this order."""
    for _ in calls:
        await asyncio.sleep(0)


async def test_a_flood_of_one_address_delays_another_by_one_hash(hashing: PasswordHashing, worker: Worker) -> None:
    flood = [asyncio.create_task(hashing.run("flood", worker, b"flood %d" % n)) for n in range(5)]
    await begun(*flood)
    victim = asyncio.create_task(hashing.run("victim", worker, b"victim"))
    await begun(victim)
    worker.go.set()
    await asyncio.gather(*flood, victim)
    assert worker.ran.index(b"victim") <= 2, worker.ran
    assert worker.ran[0] == b"flood 0"


async def test_what_waits_is_bounded_for_an_address_and_in_all(hashing: PasswordHashing, worker: Worker) -> None:
    flood = [asyncio.create_task(hashing.run("flood", worker, b"")) for _ in range(5)]  # one runs, four wait
    await begun(*flood)
    with pytest.raises(TooMany) as refused:
        await hashing.run("flood", worker, b"")
    assert (refused.value.code, refused.value.retry_after_s) == ("too_many_logins", 1)
    others = [asyncio.create_task(hashing.run(f"other {n}", worker, b"")) for n in range(2)]
    await begun(*others)
    with pytest.raises(TooMany):
        await hashing.run("third", worker, b"")
    worker.go.set()
    await asyncio.gather(*flood, *others)
    assert await hashing.run("third", worker, b"later") == b"later"


async def test_a_client_that_goes_away_frees_its_place_and_not_the_thread_that_works(
    hashing: PasswordHashing, worker: Worker
) -> None:
    runs = asyncio.create_task(hashing.run("a", worker, b"runs"))
    waits = [asyncio.create_task(hashing.run("a", worker, b"gone")) for _ in range(4)]
    await begun(runs, *waits)
    for task in (runs, *waits):
        task.cancel()
    await asyncio.gather(runs, *waits, return_exceptions=True)
    again = [asyncio.create_task(hashing.run("a", worker, b"%d" % n)) for n in range(4)]
    await begun(*again)
    assert worker.ran == [], "the thread is not done, so no second one runs"
    worker.go.set()
    assert await asyncio.gather(*again) == [b"0", b"1", b"2", b"3"]
    assert worker.ran == [b"runs", b"0", b"1", b"2", b"3"]


async def test_an_error_of_the_hash_is_the_callers_and_the_thread_goes_on(hashing: PasswordHashing) -> None:
    def fails(_: bytes) -> bytes:
        raise ValueError("no salt")

    for _ in range(3):
        with pytest.raises(ValueError, match="no salt"):
            await hashing.run("a", fails, b"")
