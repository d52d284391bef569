"""What a handler is told about the call it serves."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging


class Context:
    """Second argument of a handler.

    :ivar job_id: the job's id; the same for every attempt, so it serves as an idempotency key.
    :ivar attempt: 1 for the first delivery of the job.
    :ivar function: the function's name.
    :ivar version: the number of the version that runs.
    :ivar deadline: Unix seconds after which the call is killed.
    """

    __slots__ = ("_new_logger", "_report", "attempt", "deadline", "function", "job_id", "version")

    def __init__(
        self,
        job_id: str,
        attempt: int,
        function: str,
        version: int,
        deadline: float,
        new_logger: Callable[[], logging.Logger],
        report: Callable[[float, str], None],
    ) -> None:
        self.job_id = job_id
        self.attempt = attempt
        self.function = function
        self.version = version
        self.deadline = deadline
        self._new_logger = new_logger
        self._report = report

    @property
    def logger(self) -> logging.Logger:
        """A standard logger, open from ``DEBUG``; its records are stored with the call, level by level."""
        return self._new_logger()

    def progress(self, fraction: float, message: str = "") -> None:
        """Tell the job's subscribers how far the call is: ``fraction`` from 0 to 1, and a few words.

        Cheap enough for a loop: of reports that follow each other within a twentieth of a second only the first is
        sent, and one that says 1. Raises ``ValueError`` for anything else than a fraction.
        """
        if not 0 <= fraction <= 1:
            raise ValueError(f"progress is a fraction from 0 to 1, not {fraction!r}")
        self._report(float(fraction), str(message))

    def remaining_s(self) -> float:
        """Seconds until the deadline, never below zero."""
        return max(0.0, self.deadline - time.time())
