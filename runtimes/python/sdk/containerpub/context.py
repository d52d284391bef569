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

    __slots__ = ("_new_logger", "attempt", "deadline", "function", "job_id", "version")

    def __init__(
        self,
        job_id: str,
        attempt: int,
        function: str,
        version: int,
        deadline: float,
        new_logger: Callable[[], logging.Logger],
    ) -> None:
        self.job_id = job_id
        self.attempt = attempt
        self.function = function
        self.version = version
        self.deadline = deadline
        self._new_logger = new_logger

    @property
    def logger(self) -> logging.Logger:
        """A standard logger, open from ``DEBUG``; its records are stored with the call, level by level."""
        return self._new_logger()

    def remaining_s(self) -> float:
        """Seconds until the deadline, never below zero."""
        return max(0.0, self.deadline - time.time())
