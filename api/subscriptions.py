"""Subscriptions to jobs that run: Redis pushes their events, for all subscribers of a process over one connection.

Pushes are hints that may be lost. Postgres has the states of a job and, in the end, all of its output.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any
from uuid import UUID

import orjson

from api.pending_replies import PendingReplies
from shared.errors import TooMany, Unavailable, Unreadable
from shared.jobs import Job
from shared.loop import Loop
from shared.queue.message import queue_of
from shared.queue.queue import QUEUES, Queue
from shared.sealing import Keyring, Part

log = logging.getLogger(__name__)

_ID_CHARS = 36
_AGAIN_S = 15.0
_MOST_UNREAD_BYTES = 1024 * 1024


class Subscription(asyncio.Event):
    """Events that one subscriber has not read yet. Set when there is something to do.

    :ivar look: the job may have ended, or a push was missed: read the job again.
    :ivar missed: pushes were dropped; ask the worker to publish the output anew.
    """

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job.id
        self.user = job.user_id
        self.queue = queue_of(job.kind)
        self.look = True
        self.missed = False
        self._unread: list[dict[str, Any]] = []
        self._unread_bytes = 0

    def set(self) -> None:
        self.look = True
        super().set()

    def push(self, event: dict[str, Any], size_bytes: int) -> None:
        # A slow subscriber misses pushes, sees that, and asks for them again. Then all of the output comes as one push,
        # which may be as large as the job's log: a subscriber that has read everything takes it whatever its size.
        if not self._unread or self._unread_bytes + size_bytes <= _MOST_UNREAD_BYTES:
            self._unread.append(event)
            self._unread_bytes += size_bytes
        else:
            self.look = self.missed = True
        super().set()

    def take(self) -> list[dict[str, Any]]:
        """The events that came since the last call."""
        self.clear()
        taken, self._unread, self._unread_bytes = self._unread, [], 0
        return taken


class Subscriptions:
    """All subscriptions of this process.

    :param most_of_user: subscriptions that one user may have open here.
    """

    def __init__(self, queue: Queue, pending: PendingReplies, keyring: Keyring, *, most_of_user: int) -> None:
        self._queue = queue
        self._keyring = keyring
        self._pending = pending
        self._most_of_user = most_of_user
        self._subscriptions: dict[str, set[Subscription]] = {}
        self._of_user: dict[UUID, int] = {}
        self._lost = asyncio.Event()
        self.closing = False

    def open(self, job: Job) -> Subscription:
        """A subscription of ``job``; :meth:`close` it in any case. :raises TooMany: when its user has the most
        allowed."""
        if self._of_user.get(job.user_id, 0) >= self._most_of_user:
            raise TooMany(
                f"You are subscribed to {self._most_of_user} jobs already, the most allowed; close some first.",
                code="too_many_streams",
                retry_after_s=5,
            )
        subscription = Subscription(job)
        self._of_user[job.user_id] = self._of_user.get(job.user_id, 0) + 1
        self._subscriptions.setdefault(str(job.id), set()).add(subscription)
        self._pending.watch(job.id, subscription)
        return subscription

    def close(self, subscription: Subscription) -> None:
        self._pending.unwatch(subscription.job, subscription)
        subscriptions = self._subscriptions[str(subscription.job)]
        subscriptions.discard(subscription)
        if not subscriptions:
            del self._subscriptions[str(subscription.job)]
        self._of_user[subscription.user] -= 1
        if not self._of_user[subscription.user]:
            del self._of_user[subscription.user]

    def heard(self, message: bytes) -> None:
        """Take a push with an event of a job."""
        subscriptions = self._subscriptions.get(message[:_ID_CHARS].decode("ascii", "replace"))
        if subscriptions:
            try:
                job = next(iter(subscriptions)).job
                event = orjson.loads(self._keyring.open(message[_ID_CHARS + 1 :], job, Part.EVENT))
            except Unreadable as error:
                log.warning("a push cannot be read", extra={"job": str(job), "error": error.message})
                return  # the record has everything
            for subscription in subscriptions:
                subscription.push(event, len(message))

    def connection_back(self) -> None:
        """Pushes may have been missed: subscribe to all jobs again."""
        self._lost.set()

    async def subscribe(self, subscriptions: Iterable[Subscription]) -> None:
        """Have Redis push the events of these jobs; if Redis is away, that is done once it is back."""
        jobs: dict[str, set[UUID]] = {queue: set() for queue in QUEUES}
        for subscription in subscriptions:
            jobs[subscription.queue].add(subscription.job)
        try:
            for queue, wanted in jobs.items():
                await self._queue.subscribe(queue, sorted(wanted))
        except Unavailable as error:
            log.info("jobs could not be subscribed to", extra={"error": error.message})

    async def missed(self, subscription: Subscription, worker: str) -> None:
        """Have ``worker`` publish the job's output from its beginning."""
        try:
            await self._queue.watch(worker, subscription.job)
        except Unavailable as error:
            log.info("a job's output could not be asked for", extra={"error": error.message})

    @property
    def loop(self) -> Loop:
        return Loop(name="subscriptions", run_once=self.run_once, interval_s=_AGAIN_S, wake=self._lost)

    async def run_once(self) -> int:
        """Renew the subscriptions in Redis, which last a minute; how many there are."""
        subscriptions = [
            subscription for subscriptions in self._subscriptions.values() for subscription in subscriptions
        ]
        await self.subscribe(subscriptions)
        return len(subscriptions)

    def stop(self) -> None:
        """End all subscriptions, because this process stops."""
        self.closing = True
        for subscriptions in self._subscriptions.values():
            for subscription in subscriptions:
                subscription.set()
