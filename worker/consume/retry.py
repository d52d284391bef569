"""Whether a failed attempt is followed by another, and when."""

from __future__ import annotations

from shared.functions import FunctionSettings
from shared.jobs import Reason
from shared.queue.message import JobMessage
from worker.sandbox.contract import CallOutcome

_MOST_WISHED_S = 86_400.0
_OURS_ATTEMPTS = 5
_OURS_DELAY_S = 1.0
_OURS_MAX_DELAY_S = 30.0


def next_try_ms(
    message: JobMessage,
    outcome: CallOutcome,
    settings: FunctionSettings | None,
    *,
    waited_for: bool,
    now_ms: float,
    draw: float,
) -> float | None:
    """When the job is due again, in Unix milliseconds, whatever its age; None if this attempt was its last.

    A function's own failures are retried by its settings, and within these as the function asked. An accepted job is
    retried whenever a dependency of the platform was down. A call that is waited for is not retried: its caller
    decides.

    :param settings: of the version; None if they could not be read.
    :param draw: of a uniform distribution from 0 to 1: a wait is drawn from its upper half, so that jobs which failed
        together do not come back together.
    """
    if outcome.reason is None or waited_for:
        return None
    failures = message.attempt - message.lost  # this one included
    if outcome.reason == Reason.DEPENDENCY_DOWN:
        if failures >= _OURS_ATTEMPTS:
            return None
        return now_ms + 1000 * _wait_s(_OURS_DELAY_S, _OURS_MAX_DELAY_S, failures, draw)
    if settings is None or failures >= settings.max_attempts or outcome.retry is False:
        return None
    if outcome.retry is not None:
        wait_s = min(float(outcome.retry), _MOST_WISHED_S)
    elif outcome.reason in settings.retry_on:
        steps = failures if settings.retry_backoff == "exponential" else 1
        wait_s = _wait_s(settings.retry_delay_s, settings.retry_max_delay_s, steps, draw)
    else:
        return None
    return now_ms + 1000 * wait_s


def _wait_s(first_s: float, most_s: float, steps: int, draw: float) -> float:
    whole = min(first_s * 2.0 ** (steps - 1), most_s)
    return whole * (0.5 + draw / 2)
