"""Hashes passwords in threads of its own, a few at a time; the clients' addresses take turns."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from shared.errors import TooMany

T = TypeVar("T")

THREADS = 2
MOST_OF_ADDRESS = 64
MOST = 1024


class PasswordHashing:
    """bcrypt takes a quarter of a second, so anybody can ask for more hashes than a machine makes. The hashes that one
    address waits for are bounded, and each free thread goes to the next address: a flood from one address delays the
    log-in of another one by one hash.

    :param most_of_address: how many hashes may wait for one address. :param most: how many in all.
    """

    def __init__(self, *, threads: int = THREADS, most_of_address: int = MOST_OF_ADDRESS, most: int = MOST) -> None:
        # Threads of its own, so that no file work waits behind log-ins.
        self._threads = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="bcrypt")
        self._free = threads
        self._most_of_address = most_of_address
        self._most = most
        self._turns: dict[str, deque[asyncio.Future[None]]] = {}  # the address whose turn is next comes first
        self._count = 0

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, address: str, function: Callable[..., T], *args: bytes) -> T:
        """``function(*args)``, once it is the turn of ``address``.

        :raises TooMany: if too many wait.
        """
        waiting = self._turns.setdefault(address, deque())
        if len(waiting) >= self._most_of_address or self._count >= self._most:
            if not waiting:
                del self._turns[address]
            raise TooMany(
                "Too many log-ins and registrations wait; try again in a moment.",
                code="too_many_logins",
                retry_after_s=1,
            )
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        waiting.append(turn)
        self._count += 1
        self._give_turns()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._forget(address, turn)
            else:  # the turn came in the same moment
                self._release()
            raise
        hashing: Future[T] = self._threads.submit(function, *args)
        # Not when the caller is done: it may go away while the thread still works.
        hashing.add_done_callback(lambda _: self._release_from_thread(loop))
        return await asyncio.wrap_future(hashing)

    def _give_turns(self) -> None:
        while self._free and self._turns:
            address = next(iter(self._turns))
            waiting = self._turns.pop(address)
            turn = waiting.popleft()
            if waiting:
                self._turns[address] = waiting  # behind the others
            self._count -= 1
            if not turn.cancelled():
                self._free -= 1
                turn.set_result(None)

    def _forget(self, address: str, turn: asyncio.Future[None]) -> None:
        waiting = self._turns.get(address, ())
        if turn in waiting:
            self._turns[address].remove(turn)
            self._count -= 1
            if not waiting:
                del self._turns[address]

    def _release(self) -> None:
        self._free += 1
        self._give_turns()

    def _release_from_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            loop.call_soon_threadsafe(self._release)
        except RuntimeError:
            pass  # the loop is closed: this process ends
