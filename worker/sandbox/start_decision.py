"""Whether another sandbox of a version is worth its start: a pure function of what was measured.

A start takes a processor for a tenth of a second or two, from calls that run. It is worth that

- at once, when nothing else will ever serve the callers that wait, or when they would wait for longer than it takes;
- once callers have waited, all together, for as long as a start takes, if the sandboxes that serve are not in each
  other's way. Calls that sleep or wait for something take as long in ten sandboxes as in one: another one helps.
  Quick calls that share the processors take longer the more of them run: another one would only share them too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CROWDED = 2.0
"""Calls that take so many times as long as they do on a quiet worker share the processors already: half of each is
spent on waiting for one."""
LONG = 0.25
"""Calls that take so much of a start's time are not quick: a few of them pay for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is known of the callers of one version.

    :param waiting: callers without a sandbox. :param starting: sandboxes that are being started for them.
    :param serving: sandboxes in use by calls that will be handed on; 0 for a version that has a new one for every call.
    :param hold_s: how long a call has its sandbox, on the average; ``None`` before the first has ended.
    :param quiet_hold_s: the same when it was shortest.
    :param newest_held_s: for how long the sandbox that was handed out last has been in use; 0 if none is.
    :param waited_s: how long callers have waited since the last start was begun, added up.
    :param cost_s: what a start takes.
    """

    waiting: int
    starting: int
    serving: int
    hold_s: float | None
    quiet_hold_s: float | None
    newest_held_s: float
    waited_s: float
    cost_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """:param in_s: when a start is due if nothing changes until then: 0 for now, infinity for never.
    :param displaces: whether it may take the room of any idle sandbox, and wait for room."""

    in_s: float
    displaces: bool = False


_NOW = Verdict(in_s=0.0, displaces=True)
_NOW_IF_ROOM = Verdict(in_s=0.0)
_NEVER = Verdict(in_s=math.inf)


def decide(demand: Demand) -> Verdict:
    """When to begin another start."""
    uncovered = demand.waiting - demand.starting
    if uncovered <= 0:
        return _NEVER
    coming = demand.serving + demand.starting
    if coming == 0:
        return _NOW
    # The calls that run may turn out to be longer than the ones before. Where those were quick, a pause shorter than a
    # start says nothing of that: a start makes such pauses itself, and would bring about the next one.
    pause_s = demand.cost_s if _is_quick(demand) else 0.0
    hold_s = max(demand.hold_s or 0.0, demand.newest_held_s if demand.newest_held_s >= pause_s else 0.0)
    if uncovered * hold_s >= demand.cost_s * coming:
        return _NOW
    long_in_s = math.inf
    if demand.serving:
        long_in_s = max(demand.cost_s * coming / uncovered, pause_s) - demand.newest_held_s
    if not _helps(demand):
        return Verdict(in_s=long_in_s)
    # Each start under way makes the next one less urgent.
    worth_in_s = (demand.cost_s * (1 + demand.starting) - demand.waited_s) / demand.waiting
    if worth_in_s <= 0:
        return _NOW_IF_ROOM
    return Verdict(in_s=min(long_in_s, worth_in_s))


def _helps(demand: Demand) -> bool:
    """Whether one more sandbox will let more calls through than those that serve or come."""
    if demand.hold_s is None or not _is_quick(demand) or not demand.serving:
        return True
    if demand.starting:
        return False  # calls are quick: what comes of this start will be seen before the next
    return demand.quiet_hold_s is None or demand.hold_s <= CROWDED * demand.quiet_hold_s


def _is_quick(demand: Demand) -> bool:
    """Whether calls were short beside a start so far."""
    return demand.hold_s is not None and demand.hold_s < LONG * demand.cost_s
