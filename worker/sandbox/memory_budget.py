"""The memory that one worker's sandboxes may take together, and who waits for some of it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Budget:
    """Counts what has memory from before it is started until nothing of it is left, by caps, in MB.

    :param limit_mb: never passed.
    """

    limit_mb: int
    used_mb: int = 0
    count: int = 0  # of those that have some
    _leaving_mb: int = 0
    _waiting: deque[asyncio.Future[None]] = field(default_factory=deque)

    def fits(self, memory_mb: int) -> bool:
        """Whether there will be room for so much, with nobody else waiting, once what is leaving has left."""
        return self.used_mb - self._leaving_mb + memory_mb <= self.limit_mb

    @property
    def wanted(self) -> bool:
        """Whether somebody waits."""
        return bool(self._waiting)

    async def take(self, memory_mb: int, make_room: Callable[[], None]) -> None:
        """Wait for one's turn and for room; ``make_room`` is called whenever there is too little."""
        first = True
        while self.used_mb + memory_mb > self.limit_mb or (first and self._waiting):
            make_room()
            let_in: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if first:
                self._waiting.append(let_in)
            else:
                self._waiting.appendleft(let_in)
            first = False
            try:
                await let_in
            except BaseException:
                if let_in in self._waiting:
                    self._waiting.remove(let_in)
                else:
                    self.let_in()
                raise
        self._took(memory_mb)
        self.let_in()

    def take_spare(self, memory_mb: int) -> bool:
        """Take ``memory_mb`` if it is free and nobody waits for it."""
        if self._waiting or self.used_mb + memory_mb > self.limit_mb:
            return False
        self._took(memory_mb)
        return True

    def free(self, memory_mb: int) -> None:
        self.used_mb -= memory_mb
        self.count -= 1
        self.let_in()

    def leaves(self, memory_mb: int) -> None:
        """What has so much is about to be destroyed."""
        self._leaving_mb += memory_mb

    def left(self, memory_mb: int) -> None:
        """It is gone."""
        self._leaving_mb -= memory_mb
        self.free(memory_mb)

    def let_in(self) -> None:
        """Something changed: let the first one that waits look again."""
        while self._waiting:
            first = self._waiting.popleft()
            if not first.done():
                first.set_result(None)
                return

    def _took(self, memory_mb: int) -> None:
        self.used_mb += memory_mb
        self.count += 1
