"""Publishes the output and the progress of running calls to subscribers.

An API process asks for a job's output when it hears that the job runs (``watch`` on the worker's channel). From then on
the worker publishes the output in small batches, each with the position at which it begins: a subscriber that missed
one sees that and asks again. The attempt's record has all of the output, so these pushes may be lost.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter

import orjson
from redis.asyncio import Redis

from shared.loop import Loop
from shared.queue.connection import redis_errors
from shared.queue.message import JobMessage
from shared.queue.queue import EVENTS_CHANNEL, Claim, progress_key
from shared.queue.records import epoch_number
from shared.sealing import Keyring, Part
from worker.sandbox.log import LogStream
from worker.sandbox.tail import Tail

log = logging.getLogger(__name__)

_GATHER_S = 0.05
_PROGRESS_EVERY_S = 0.5
_PROGRESS_KEPT_S = 900
_EARLY_S = 5.0
_MOST_EARLY = 10_000


class _Call:
    __slots__ = ("attempt", "claim", "epoch", "id", "job", "stored_at", "tail", "told", "told_progress")

    def __init__(self, message: JobMessage, claim: Claim, tail: Tail) -> None:
        self.id = message.id
        self.job = str(message.id)
        self.attempt = message.attempt
        self.claim = claim.epoch
        self.epoch = epoch_number(claim.epoch)
        self.tail = tail
        self.told: Counter[str] = Counter()  # characters by stream; of the logger, entries
        self.told_progress: object = None
        self.stored_at = 0.0


class Subscribers:
    def __init__(self, redis: Redis, keyring: Keyring) -> None:
        self._redis = redis
        self._keyring = keyring
        self._calls: dict[str, _Call] = {}
        self._by_tail: dict[Tail, _Call] = {}
        self._changed: set[_Call] = set()
        self._early: set[str] = set()
        self._wake = asyncio.Event()

    def begin(self, message: JobMessage, claim: Claim) -> Tail:
        """The tail of an attempt that starts now; :meth:`end` it in any case."""
        tail = Tail(self._on_change)
        call = _Call(message, claim, tail)
        self._calls[call.job] = self._by_tail[tail] = call
        if call.job in self._early:
            self._early.remove(call.job)
            tail.subscribe()
        return tail

    def end(self, tail: Tail) -> None:
        call = self._by_tail.pop(tail)
        self._changed.discard(call)
        if self._calls.get(call.job) is call:
            del self._calls[call.job]

    def watch(self, job: str) -> None:
        """Publish a job's output from its beginning: a client subscribed to it, or missed a part."""
        call = self._calls.get(job)
        if call is None:
            # The API process heard of the claim before this worker did.
            if len(self._early) < _MOST_EARLY:
                self._early.add(job)
                asyncio.get_running_loop().call_later(_EARLY_S, self._early.discard, job)
        else:
            call.told.clear()
            call.told_progress = None
            call.tail.subscribe()

    def _on_change(self, tail: Tail) -> None:
        call = self._by_tail.get(tail)
        if call is not None:
            self._changed.add(call)
            self._wake.set()

    @property
    def loop(self) -> Loop:
        return Loop(name="subscribers", run_once=self.run_once, interval_s=None, wake=self._wake)

    async def run_once(self) -> int:
        """Publish the changes of calls, after a moment in which more may gather; of how many calls. After a failure,
        subscribers ask again once Redis is back."""
        await asyncio.sleep(_GATHER_S)
        changed, self._changed = self._changed, set()
        await self._tell(changed)
        return len(changed)

    async def _tell(self, calls: set[_Call]) -> None:
        now = time.monotonic()
        pipe = self._redis.pipeline(transaction=False)
        for call in calls:
            progress = call.tail.progress
            said = None
            if progress is not None:
                said = {"attempt": call.attempt, "fraction": progress.fraction, "message": progress.message}
                if now - call.stored_at >= _PROGRESS_EVERY_S or progress.fraction == 1:
                    call.stored_at = now
                    kept = self._keyring.seal(orjson.dumps(said | {"epoch": call.claim}), call.id, Part.PROGRESS)
                    pipe.set(progress_key(call.job), kept, ex=_PROGRESS_KEPT_S)
            if not call.tail.watched:
                continue
            if entries := self._entries(call):
                pipe.publish(EVENTS_CHANNEL, self._push(call, entries))
            if said is not None and progress is not call.told_progress:
                call.told_progress = progress
                pipe.publish(EVENTS_CHANNEL, self._push(call, {"kind": "progress", **said}))
        if len(pipe):
            with redis_errors():
                await pipe.execute()

    def _push(self, call: _Call, event: dict[str, object]) -> bytes:
        return f"{call.job} ".encode() + self._keyring.seal(orjson.dumps(event), call.id, Part.EVENT)

    @staticmethod
    def _entries(call: _Call) -> dict[str, object] | None:
        before = dict(call.told)
        entries = []
        for entry in call.tail.news():
            text = entry.message.replace("\x00", "\\x00")  # as the stored log has it
            call.told[entry.stream.value] += 1 if entry.stream is LogStream.LOGGER else len(text)
            entries.append((entry.stream, entry.level, text))
        if not entries:
            return None
        return {"kind": "log", "epoch": call.epoch, "attempt": call.attempt, "before": before, "entries": entries}
