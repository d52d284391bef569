"""Whether another sandbox is worth its start: a row for every situation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from worker.sandbox.start_decision import Demand, decide

QUIET = Demand(
    waiting=0,
    starting=0,
    serving=0,
    hold_s=None,
    quiet_hold_s=None,
    newest_held_s=0.0,
    waited_s=0.0,
    cost_s=0.15,
)
QUICK = replace(QUIET, hold_s=0.001, quiet_hold_s=0.0008)
CROWDED = replace(QUIET, hold_s=0.010, quiet_hold_s=0.0008)
SLEEPERS = replace(QUIET, hold_s=0.1, quiet_hold_s=0.1)
LONG = replace(QUIET, hold_s=5.0, quiet_hold_s=5.0)


@pytest.mark.parametrize(
    ("demand", "in_s", "displaces"),
    [
        pytest.param(QUIET, math.inf, False, id="nobody waits"),
        pytest.param(replace(QUIET, waiting=1), 0, True, id="nothing serves the first caller"),
        pytest.param(replace(QUIET, waiting=1, starting=1), math.inf, False, id="its start is under way"),
        pytest.param(replace(QUIET, waiting=2, starting=3), math.inf, False, id="more starts than callers"),
        pytest.param(replace(QUIET, waiting=16, starting=1), 0.3 / 16, False, id="a burst on a version never called"),
        pytest.param(
            replace(QUIET, waiting=16, starting=1, waited_s=0.3), 0, False, id="it has waited for long enough"
        ),
        pytest.param(replace(QUICK, waiting=15, serving=1), 0.01, False, id="a burst on one quick sandbox waits first"),
        pytest.param(replace(QUICK, waiting=15, serving=1, waited_s=0.2), 0, False, id="and gets one"),
        pytest.param(
            replace(QUICK, waiting=15, serving=1, starting=1, waited_s=9), 0.15, True, id="but no two at a time"
        ),
        pytest.param(
            replace(CROWDED, waiting=36, serving=28, waited_s=999),
            0.15,
            True,
            id="quick calls crowd each other",
        ),
        pytest.param(
            replace(QUICK, hold_s=0.0024, waiting=36, serving=20, waited_s=999),
            0.15,
            True,
            id="quick calls that wait for a processor most of the time crowd each other",
        ),
        pytest.param(
            replace(QUICK, hold_s=0.0012, waiting=36, serving=2, waited_s=999), 0, False, id="they get another before"
        ),
        pytest.param(
            replace(CROWDED, waiting=54, serving=10, waited_s=999, newest_held_s=0.05),
            0.10,
            True,
            id="a pause of crowded calls, as a start makes one, begins no other",
        ),
        pytest.param(
            replace(CROWDED, waiting=54, serving=10, waited_s=999, newest_held_s=0.15),
            0,
            True,
            id="a pause as long as a start is no pause",
        ),
        pytest.param(replace(CROWDED, waiting=500, serving=28), 0, True, id="the line takes longer than a start"),
        pytest.param(replace(SLEEPERS, waiting=9, serving=1), 0, True, id="sleepers wait longer than a start takes"),
        pytest.param(replace(SLEEPERS, waiting=1, serving=9), 0.15, False, id="the last sleeper waits a little"),
        pytest.param(replace(SLEEPERS, waiting=1, serving=9, waited_s=0.15), 0, False, id="and gets its own"),
        pytest.param(
            replace(QUICK, hold_s=0.04, waiting=1, serving=9, waited_s=0.15), 0, False, id="quick calls became longer"
        ),
        pytest.param(replace(LONG, waiting=1, serving=9), 0, True, id="a long call gets its own at once"),
        pytest.param(replace(LONG, waiting=9, serving=1, starting=8), 0, True, id="so do all of them"),
        pytest.param(
            replace(QUICK, waiting=1, serving=1, newest_held_s=0.2), 0, True, id="a call takes longer than those before"
        ),
    ],
)
def test_a_start_is_due_when_waiting_costs_more_than_it(demand: Demand, in_s: float, displaces: bool) -> None:
    verdict = decide(demand)
    assert verdict.in_s == pytest.approx(in_s)
    if in_s == 0:
        assert verdict.displaces is displaces


def test_long_calls_get_as_many_sandboxes_as_they_have_callers_at_once() -> None:
    begun = 0
    while decide(replace(LONG, waiting=9, starting=begun, serving=1)).in_s == 0:
        begun += 1
    assert begun == 9


def test_a_burst_on_a_quick_function_begins_one_start_at_a_time() -> None:
    begun = 0
    while decide(replace(QUICK, waiting=15, starting=begun, serving=1, waited_s=1.0)).in_s == 0:
        begun += 1
    assert begun == 1


def test_the_dearer_a_start_the_longer_callers_wait_for_one() -> None:
    waits = [decide(replace(SLEEPERS, waiting=1, serving=9, cost_s=cost_s)).in_s for cost_s in (0.05, 0.1, 0.2)]
    assert waits == sorted(waits)
    assert waits[0] < waits[2]
