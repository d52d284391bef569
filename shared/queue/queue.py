"""The client of the queue in Redis: its steps, its workers and its views, over one connection."""

from __future__ import annotations

from redis.asyncio import Redis

from shared.queue.attempts import CancelledWhere, Claim, Enqueued, Settle, Verb
from shared.queue.names import (
    CHANGED_CHANNEL,
    EVENTS_CHANNEL,
    FINAL_CHANNEL,
    GENERATION,
    OPENED_CHANNEL,
    QUEUES,
    REBUILT_CHANNEL,
    RECORDS,
    RECORDS_GROUP,
    WATCHED,
    WORKERS,
    progress_key,
)
from shared.queue.steps import Steps
from shared.queue.views import Change, Views
from shared.queue.workers import QueueFigures, Workers
from shared.sealing import Keyring

__all__ = [
    "CHANGED_CHANNEL",
    "EVENTS_CHANNEL",
    "FINAL_CHANNEL",
    "GENERATION",
    "OPENED_CHANNEL",
    "QUEUES",
    "REBUILT_CHANNEL",
    "RECORDS",
    "RECORDS_GROUP",
    "WATCHED",
    "WORKERS",
    "CancelledWhere",
    "Change",
    "Claim",
    "Enqueued",
    "Queue",
    "QueueFigures",
    "Settle",
    "Verb",
    "progress_key",
]


class Queue(Steps, Workers, Views):
    """Client of the queue in Redis; safe to share within a process. Holds a connection of its own for the steps.

    All methods raise :class:`~shared.queue.scripts.QueueClosed` while the queue is rebuilt and
    :class:`~shared.errors.Unavailable` when Redis does not answer in time.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        max_stream_backlog: int = 100_000,
        max_running_per_user: int = 100,
        keyring: Keyring | None = None,
    ) -> None:
        super().__init__(redis)
        self._max_backlog = max_stream_backlog
        self._user_max = max_running_per_user
        self._keyring = keyring or Keyring()
