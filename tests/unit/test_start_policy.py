"""What the decisions on starts add up to, played in the time of a model: closed-loop clients of one version, whose
calls share two processors or sleep. The line of callers and the decision are the real ones."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from test_sandbox_waiters import sandbox, spec

from worker.sandbox.pooled import PooledSandbox
from worker.sandbox.start_decision import decide
from worker.sandbox.waiters import Line, Start, Waiter

PROCESSORS = 2
START_S = 0.15
LOOK_S = 0.01


@dataclass(kw_only=True)
class Model:
    """:param call_s: how long a call has its sandbox, told how many run or start. :param room: sandboxes that fit."""

    call_s: Callable[[int], float]
    clients: int
    room: int
    line: Line = field(default_factory=lambda: Line(spec=spec()))
    idle: list[PooledSandbox] = field(default_factory=lambda: [sandbox()])
    sandboxes: int = 1
    started_at: list[float] = field(default_factory=list)
    waits: list[tuple[float, float]] = field(default_factory=list)  # when a call began, and for how long it had waited
    _now: float = 0.0
    _due: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _number: count[int] = field(default_factory=count)

    def play(self, seconds: float) -> None:
        """Until so many seconds after the beginning; may be called again with a later end."""
        if not self._due:
            for _ in range(self.clients):
                self._at(0.0, self._call)
            self._at(LOOK_S, self._look)
        while self._due and self._due[0][0] <= seconds:
            self._now, _, event = heapq.heappop(self._due)
            event()

    def served(self, begin: float, end: float) -> int:
        return sum(begin <= at < end for at, _ in self.waits)

    def p99_s(self, begin: float, end: float) -> float:
        waits = sorted(wait for at, wait in self.waits if begin <= at < end)
        return waits[len(waits) * 99 // 100]

    def _at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._due, (when, next(self._number), event))

    def _call(self) -> None:
        if self.idle:
            pooled = self.idle.pop()
            self.line.hand_out(pooled, self._now)
            self._run(pooled, 0.0)
        else:
            self.line.join(self._now)

    def _run(self, pooled: PooledSandbox, waited_s: float) -> None:
        self.waits.append((self._now, waited_s))
        takes_s = self.call_s(len(self.line.held) + len(self.line.starts))
        self._at(self._now + takes_s, lambda: self._done(pooled))

    def _done(self, pooled: PooledSandbox) -> None:
        self.line.took_back(pooled, self._now)
        self._offer(pooled)
        self._call()

    def _offer(self, pooled: PooledSandbox) -> None:
        first: Waiter | None = self.line.waiting[0] if self.line.waiting else None
        if first is not None and self.line.give(pooled, self._now):
            self._run(pooled, self._now - first.since)
        else:
            self.idle.append(pooled)

    def _look(self) -> None:
        while self.line.waiting and self.sandboxes < self.room:
            if decide(self.line.demand(self._now, START_S)).in_s > 0:
                break
            start = Start(owner=self.line.waiting[-1], displaces=False, begun=True)
            self.line.begun_start(start)
            self.sandboxes += 1
            self.started_at.append(self._now)
            takes_s = START_S * max(1, len(self.line.starts) / PROCESSORS)
            self._at(self._now + takes_s, lambda start=start: self._started(start))  # type: ignore[misc]
        self._at(self._now + LOOK_S, self._look)

    def _started(self, start: Start) -> None:
        self.line.starts.remove(start)
        self._offer(sandbox())


def quick(running: int) -> float:
    return 0.0005 * max(1.0, running / PROCESSORS)


async def test_sleepers_have_as_many_sandboxes_as_callers_within_a_second() -> None:
    model = Model(call_s=lambda running: 0.1, clients=10, room=28)
    model.play(5)
    assert model.sandboxes == 10
    assert model.started_at[-1] < 1.0
    assert model.served(2, 5) >= 295, "ten slots of 100 ms serve a hundred a second"


async def test_calls_that_wait_for_something_short_get_theirs_too() -> None:
    model = Model(call_s=lambda running: 0.02, clients=10, room=28)
    model.play(10)
    assert model.sandboxes == 10
    assert model.started_at[-1] < 3.0


async def test_r8_a_burst_on_a_quick_function_waits_for_no_start_and_causes_few() -> None:
    model = Model(call_s=quick, clients=16, room=28)
    model.play(10)
    assert len(model.started_at) < 8
    assert model.p99_s(0, 10) < 0.03


async def test_r8_more_slots_than_a_quick_function_can_use_start_next_to_nothing_once_it_is_warm() -> None:
    model = Model(call_s=quick, clients=64, room=28)
    model.play(30)
    few = Model(call_s=quick, clients=10, room=28)
    few.play(30)
    assert sum(at >= 15 for at in model.started_at) <= 2
    assert model.served(15, 30) >= 0.95 * few.served(15, 30)
    assert model.p99_s(15, 30) < 0.1


async def test_quick_calls_that_become_long_get_their_sandboxes() -> None:
    long = False
    model = Model(call_s=lambda running: 0.1 if long else quick(running), clients=10, room=28)
    model.play(5)
    before = model.sandboxes
    long = True
    model.play(10)
    assert before < 10
    assert model.sandboxes == 10
