"""The memory that one worker's sandboxes may take together, and the starts that wait for some of it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from worker.sandbox.contract import SandboxSpec


@dataclass(slots=True, kw_only=True, eq=False)
class Turn:
    """A start that waits for room. :param since: when its caller began to wait."""

    spec: SandboxSpec
    since: float
    look: asyncio.Future[None] | None = None


@dataclass(slots=True, kw_only=True)
class Budget:
    """Counts sandboxes by their memory caps, in MB, from before they are started until nothing of them is left.

    :param limit_mb: never passed.
    """

    limit_mb: int
    used_mb: int = 0
    count: int = 0  # of those that have some
    _leaving_mb: int = 0
    _turns: deque[Turn] = field(default_factory=deque)

    def fits(self, memory_mb: int) -> bool:
        """Whether there will be room for so much, with no other caller waiting, once what is leaving has left."""
        return self.used_mb - self._leaving_mb + memory_mb <= self.limit_mb

    @property
    def first(self) -> Turn | None:
        """The start whose turn it is, if any waits."""
        return self._turns[0] if self._turns else None

    async def take(self, turn: Turn, make_room: Callable[[int], None]) -> None:
        """Wait for this start's turn and for room. While there is too little, calls ``make_room`` with the memory that
        all waiting starts need."""
        memory_mb = turn.spec.memory_mb
        self._turns.append(turn)
        try:
            while self._turns[0] is not turn or self.used_mb + memory_mb > self.limit_mb:
                make_room(sum(one.spec.memory_mb for one in self._turns))
                turn.look = asyncio.get_running_loop().create_future()
                await turn.look
            self._took(memory_mb)
        finally:
            self._turns.remove(turn)
            self.let_in()

    def take_spare(self, memory_mb: int) -> bool:
        """Take ``memory_mb`` if it is free and no caller waits for it."""
        if self._turns or self.used_mb + memory_mb > self.limit_mb:
            return False
        self._took(memory_mb)
        return True

    def free(self, memory_mb: int) -> None:
        self.used_mb -= memory_mb
        self.count -= 1
        self.let_in()

    def leaves(self, memory_mb: int) -> None:
        """Note that a sandbox of ``memory_mb`` is about to be destroyed."""
        self._leaving_mb += memory_mb

    def left(self, memory_mb: int) -> None:
        """Note that a sandbox of ``memory_mb`` is gone."""
        self._leaving_mb -= memory_mb
        self.free(memory_mb)

    def let_in(self) -> None:
        """Something changed: let the first one that waits look again."""
        if self._turns:
            look = self._turns[0].look
            if look is not None and not look.done():
                look.set_result(None)

    def _took(self, memory_mb: int) -> None:
        self.used_mb += memory_mb
        self.count += 1
