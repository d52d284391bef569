"""Callers that wait: for the reply to a synchronous call, or for the end of a durable job."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

from shared.errors import Unavailable

_ID_CHARS = 36
_ON_ITS_WAY_S = 1.0


class Leaving(Exception):
    """This API process stops before the call that it waits for has ended."""


class PendingReplies:
    """All waiters of this process, served by one push connection.

    A reply to a synchronous call is published once: when the connection is lost, the calls that wait fail. Ends of
    durable jobs are in Postgres: their waiters are woken to read them there.
    """

    def __init__(self) -> None:
        self._replies: dict[str, asyncio.Future[bytes]] = {}
        self._sent: set[UUID] = set()  # the jobs in _replies that are on the queue
        self._ends: dict[str, set[asyncio.Event]] = {}
        self.listening = False
        self.leaving = False  # True: every wait ends at once

    def expect_reply(self, job: UUID) -> asyncio.Future[bytes]:
        """The record that ends ``job``, to be awaited; :meth:`drop_reply` it in any case.

        Fails with :class:`Leaving` after :meth:`leave`, with :class:`Unavailable` if the reply may have been missed.
        """
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._replies[str(job)] = future
        if self.leaving:
            _fail(future, Leaving())
        return future

    def sent(self, job: UUID) -> None:
        """Note that ``job`` is on the queue now."""
        self._sent.add(job)

    def drop_reply(self, job: UUID) -> None:
        self._replies.pop(str(job), None)
        self._sent.discard(job)

    def watch(self, job: UUID, event: asyncio.Event | None = None) -> asyncio.Event:
        """An event, or this one, that is set each time ``job`` may have ended; :meth:`unwatch` it in any case."""
        if event is None:
            event = asyncio.Event()
        self._ends.setdefault(str(job), set()).add(event)
        return event

    def unwatch(self, job: UUID, event: asyncio.Event) -> None:
        events = self._ends.get(str(job))
        if events is not None:
            events.discard(event)
            if not events:
                del self._ends[str(job)]

    def replied(self, message: bytes) -> None:
        """Take a push with the record of one of this process's calls."""
        start = message.find(b'"id":"') + 6
        future = self._replies.get(message[start : start + _ID_CHARS].decode("ascii", "replace"))
        if future is not None and not future.done():
            future.set_result(message)

    def ended(self, message: bytes) -> None:
        """Take a push with the ids, one after the other, of jobs whose end was committed."""
        if not self._ends:
            return
        text = message.decode("ascii")
        for start in range(0, len(text), _ID_CHARS):
            for event in self._ends.get(text[start : start + _ID_CHARS], ()):
                event.set()

    def leave(self) -> None:
        """End every wait, so that each caller gets the state so far: this process stops, the jobs go on."""
        self.leaving = True
        for future in self._replies.values():
            _fail(future, Leaving())
        self._wake_all()

    def connection_back(self) -> None:
        """Pushes may have been missed: wake every request that waits for a durable job, to look again."""
        self.listening = True
        self._wake_all()

    def connection_lost(self) -> None:
        """Fail the synchronous calls: their replies may have been missed."""
        self.listening = False
        for future in self._replies.values():
            _lose(future, "The queue's connection was lost while the function may have been running.")

    def _wake_all(self) -> None:
        for events in self._ends.values():
            for event in events:
                event.set()

    async def rebuilt(self, present: Callable[[Sequence[UUID]], Awaitable[Sequence[bool]]]) -> None:
        """Fail the synchronous calls that a rebuilt queue does not hold: Postgres never knew them.

        :param present: whether the queue holds each of these jobs.
        """
        sent = list(self._sent)
        there = await present(sent)
        gone = [job for job, held in zip(sent, there, strict=True) if not held]
        if gone:
            await asyncio.sleep(_ON_ITS_WAY_S)  # the queue does not hold a job that just ended: wait for its reply
            for job in gone:
                future = self._replies.get(str(job))
                if future is not None:
                    _lose(future, "The queue was lost while the function may have been running.")


def _lose(future: asyncio.Future[bytes], sentence: str) -> None:
    _fail(future, Unavailable(sentence, retry_after_s=1, extra={"may_have_run": True}))


def _fail(future: asyncio.Future[bytes], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # marks it as read: the request that waited may be gone
