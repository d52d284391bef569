"""When a failed attempt is followed by another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shared.functions import FunctionSettings
from shared.queue.message import JobMessage
from tests.seeds import message
from worker.consume.retry import next_try_ms
from worker.sandbox.contract import CallOutcome


def settings(**changes: Any) -> FunctionSettings:
    usual = {"runtime": "python", "handler": "main:handler", "timeout_s": 5, "memory_mb": 128, "cpus": 1}
    return FunctionSettings.model_validate(usual | changes)


def wait_s(
    reason: str | None,
    policy: FunctionSettings | None,
    *,
    attempt: int = 1,
    lost: int = 0,
    retry: float | bool | None = None,
    draw: float = 1.0,
    waited_for: bool = False,
) -> float | None:
    job: JobMessage = replace(message(), attempt=attempt, lost=lost)
    now_ms = 1e12
    outcome = CallOutcome(reason=reason, retry=retry)
    due_ms = next_try_ms(job, outcome, policy, waited_for=waited_for, now_ms=now_ms, draw=draw)
    return None if due_ms is None else round((due_ms - now_ms) / 1000, 3)


def test_nothing_is_retried_unless_the_function_says_so() -> None:
    for reason in (None, "handler_error", "timeout", "out_of_memory", "crashed", "invalid_result"):
        assert wait_s(reason, settings()) is None


def test_waits_double_up_to_the_longest_or_stay() -> None:
    growing = settings(max_attempts=9, retry_delay_s=2, retry_max_delay_s=10)
    waits = [wait_s("timeout", growing, attempt=attempt) for attempt in range(1, 10)]
    assert waits == [2, 4, 8, 10, 10, 10, 10, 10, None]
    fixed = settings(max_attempts=4, retry_delay_s=2, retry_backoff="fixed")
    assert [wait_s("timeout", fixed, attempt=attempt) for attempt in range(1, 5)] == [2, 2, 2, None]


def test_a_wait_is_drawn_from_its_upper_half() -> None:
    policy = settings(max_attempts=2, retry_delay_s=8)
    assert [wait_s("crashed", policy, draw=draw) for draw in (0.0, 0.5, 1.0)] == [4, 6, 8]


def test_only_the_reasons_that_are_named_are_retried() -> None:
    policy = settings(max_attempts=3, retry_on=["timeout", "result_too_large"])
    retried = ("timeout", "result_too_large")
    for reason in ("handler_error", "timeout", "out_of_memory", "crashed", "invalid_result", "result_too_large"):
        assert (wait_s(reason, policy) is not None) == (reason in retried)
    for reason in ("sandbox_start_failed", "artifact_missing", "worker_lost"):
        assert wait_s(reason, policy) is None


def test_lost_attempts_do_not_count() -> None:
    policy = settings(max_attempts=2)
    assert wait_s("crashed", policy, attempt=3, lost=2) == 1
    assert wait_s("crashed", policy, attempt=4, lost=2) is None


def test_what_the_function_asks_for_goes_first_within_its_attempts() -> None:
    policy = settings(max_attempts=3, retry_on=[])
    assert wait_s("handler_error", policy, retry=30) == 30
    assert wait_s("handler_error", policy, retry=0) == 0
    assert wait_s("handler_error", settings(max_attempts=2), retry=1e12) == 86_400
    assert wait_s("handler_error", policy, retry=30, attempt=3) is None
    assert wait_s("handler_error", settings(max_attempts=3), retry=False) is None
    assert wait_s("handler_error", settings(), retry=30) is None


def test_a_call_that_is_waited_for_is_not_retried() -> None:
    assert wait_s("timeout", settings(max_attempts=9), waited_for=True) is None
    assert wait_s("dependency_down", None, waited_for=True) is None


def test_a_dependency_of_ours_is_retried_whatever_the_settings() -> None:
    waits = [wait_s("dependency_down", None, attempt=attempt) for attempt in range(1, 6)]
    assert waits == [1, 2, 4, 8, None]


@pytest.mark.parametrize(
    "change", [{"max_attempts": 0}, {"max_attempts": 21}, {"retry_on": ["worker_lost"]}, {"retry_delay_s": -1}]
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        settings(**change)
