"""The callers of one version: those that wait, first come, first served, and how long those before had a sandbox."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from worker.sandbox.contract import SandboxSpec
from worker.sandbox.pooled import PooledSandbox
from worker.sandbox.start_decision import Demand

_WEIGHT = 0.05
_QUIET_FORGOTTEN_S = 600.0
"""In about that time the shortest mean gives way to the present one: calls may have become longer for good."""


@dataclass(slots=True, kw_only=True, eq=False)
class Waiter:
    given: asyncio.Future[PooledSandbox]
    since: float


@dataclass(slots=True, kw_only=True, eq=False)
class Start:
    """A sandbox that is being started because callers wait.

    :param owner: who is told if it fails. :param begun: False while it waits for room: until then it can be withdrawn.
    """

    owner: Waiter
    displaces: bool
    begun: bool = False
    task: asyncio.Task[None] | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Line:
    """:param shared: whether sandboxes are handed on from call to call. :param held: those in use, in the order in
    which they were handed out. :param ahead: sandboxes that are being started without a caller who waits."""

    spec: SandboxSpec
    shared: bool = True
    waiting: deque[Waiter] = field(default_factory=deque)
    held: dict[PooledSandbox, None] = field(default_factory=dict)
    starts: list[Start] = field(default_factory=list)
    ahead: int = 0
    look_at: asyncio.TimerHandle | None = None
    looks_soon: bool = False
    joined: bool = False  # a caller, since the last look
    used_at: float = 0.0
    not_before: float = 0.0  # for lack of room no start that does without displacing anything
    _hold_s: float | None = None
    _quiet_hold_s: float | None = None
    _waited_s: float = 0.0
    _counted_at: float = 0.0

    @property
    def sandboxes(self) -> int:
        """Those in use, or coming into use."""
        return len(self.held) + sum(start.begun for start in self.starts)

    @property
    def in_use(self) -> bool:
        return bool(self.waiting or self.held or self.starts or self.ahead)

    def join(self, now: float) -> Waiter:
        self._count(now)
        waiter = Waiter(given=asyncio.get_running_loop().create_future(), since=now)
        self.waiting.append(waiter)
        self.joined = True
        return waiter

    def leave(self, waiter: Waiter, now: float) -> None:
        """Stop waiting; fine also for one that does not wait any more."""
        if waiter in self.waiting:
            self._count(now)
            self.waiting.remove(waiter)

    def hand_out(self, pooled: PooledSandbox, now: float) -> None:
        pooled.held_since = now
        self.held[pooled] = None

    def give(self, pooled: PooledSandbox, now: float) -> bool:
        """Hand ``pooled`` to the caller that has waited longest; False if there is none."""
        self._count(now)
        while self.waiting:
            waiter = self.waiting.popleft()
            if not waiter.given.done():  # else its caller was cancelled, and has not run since
                self.hand_out(pooled, now)
                waiter.given.set_result(pooled)
                return True
        return False

    def took_back(self, pooled: PooledSandbox, now: float) -> None:
        """A call is over. One that its sandbox did not survive says nothing of how long calls take."""
        self.drop(pooled)
        self.used_at = now
        if not pooled.sandbox.reusable:
            return
        held_s = now - pooled.held_since
        if self._hold_s is None or self._quiet_hold_s is None:
            self._hold_s = self._quiet_hold_s = held_s
            return
        mean_s = self._hold_s = self._hold_s + _WEIGHT * (held_s - self._hold_s)
        # Over a stretch of calls this forgets as time does, however many sandboxes share in them.
        forgotten = min(1.0, held_s / (_QUIET_FORGOTTEN_S * (1 + len(self.held))))
        self._quiet_hold_s = min(mean_s, self._quiet_hold_s + forgotten * (mean_s - self._quiet_hold_s))

    def drop(self, pooled: PooledSandbox) -> None:
        """It was handed out and not used."""
        del self.held[pooled]

    def begun_start(self, start: Start) -> None:
        self.starts.append(start)
        self._waited_s = 0.0

    def surplus(self) -> Start | None:
        """The start begun last, if no caller needs it any more and it still waits for room."""
        if len(self.starts) + self.ahead <= len(self.waiting):
            return None
        return next((start for start in reversed(self.starts) if not start.begun), None)

    def demand(self, now: float, cost_s: float) -> Demand:
        self._count(now)
        newest = next(reversed(self.held), None)
        return Demand(
            waiting=len(self.waiting),
            starting=len(self.starts) + self.ahead,
            serving=len(self.held) if self.shared else 0,
            hold_s=self._hold_s,
            quiet_hold_s=self._quiet_hold_s,
            newest_held_s=0.0 if newest is None or not self.shared else now - newest.held_since,
            waited_s=self._waited_s,
            cost_s=cost_s,
        )

    def _count(self, now: float) -> None:
        self._waited_s += len(self.waiting) * (now - self._counted_at)
        self._counted_at = now
