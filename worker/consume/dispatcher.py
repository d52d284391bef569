"""One queue's slots in a worker: settle what ended, claim what fits, in one round trip at a time.

A dispatcher is woken by a push, by an attempt that ends, or by its slow poll, which is only a safety net. While one
exchange with Redis is in flight, what ends meanwhile goes out with the next. Every few seconds, and whenever pushes may
have been missed, it compares what it runs with what Redis holds it to be running: a claim whose answer was lost is
handed back, an attempt that was cancelled or given to another worker is killed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from uuid import UUID

import orjson

from shared.errors import Unavailable
from shared.ids import from_short
from shared.jobs import FINAL, JobStatus, Reason
from shared.queue.message import JobMessage, UnreadableMessage, now_ms
from shared.queue.queue import Claim, Queue, Settle, Verb
from shared.queue.records import Record
from shared.queue.scripts import QueueClosed

log = logging.getLogger(__name__)

POLL_S = 5.0
RETRY_S = 0.2
LAST_SETTLE_S = 4.0
UNREADABLE_S = 1.0
ASIDE_S = 0.2
_HANDED_BACK = "handed_back"

Cleanup = Awaitable[None] | None
RunAttempt = Callable[[JobMessage, Claim], Awaitable[tuple[Record, Cleanup]]]
"""Runs one attempt; returns its record, and what must end before the slot is free. Cancelled when the job is.

A record whose status is not final says that the job goes on: at once (``queued``: the attempt was lost), or when it is
due (``scheduled``)."""


class Killed(asyncio.CancelledError):
    """An attempt was cancelled; ``record`` has what is known of it. How it ended is for the dispatcher to say."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    claim: Claim
    verb: Verb
    record: Record

    @property
    def settle(self) -> Settle:
        return Settle(id=self.record.id, epoch=self.claim.epoch, verb=self.verb, record=self.record.encode())


class Dispatcher:
    """
    :param slots: attempts at a time.
    :param kept: how many of them only users with nothing running may take; none unless there are more slots than that.
    :param run: what to do with one.
    """

    def __init__(self, queue: Queue, name: str, worker: str, *, slots: int, kept: int = 0, run: RunAttempt) -> None:
        self.name = name
        self._queue = queue
        self._worker = worker
        self._slots = slots
        self._kept = kept if kept < slots else 0
        self._run = run
        self._generation = ""
        self._busy = 0
        self._running: dict[str, tuple[Claim, asyncio.Task[None]]] = {}  # by epoch
        self._ends: dict[str, str] = {}  # by epoch: the outcome of an attempt that is being killed
        self._ended: list[_Ended] = []
        self._wake = asyncio.Event()
        self._draining = False
        self._listed = False  # Redis may wake this worker when there is work
        self._holding = False
        self._aside: asyncio.TimerHandle | None = None  # until it ends, others claim first
        self._compare_at = 0.0
        self._give_up_at: float | None = None
        self.joined_at: float | None = None  # loop time at which this generation was joined
        self.settled = 0

    @property
    def generation(self) -> str:
        """Of the queue, as it was joined last."""
        return self._generation

    @property
    def busy(self) -> int:
        """Slots in use."""
        return self._busy

    def wake(self) -> None:
        self._wake.set()

    def look_again(self) -> None:
        """Pushes may have been missed, or the queue was rebuilt: compare notes with Redis at once."""
        self._compare_at = 0.0
        self._wake.set()

    def hold(self, holding: bool) -> None:
        """Claim nothing until told otherwise; what runs goes on and is settled."""
        self._holding = holding
        self._wake.set()

    def drain(self) -> None:
        """Claim nothing more; :meth:`work` returns once everything that runs has ended and is settled.

        Redis is told as well: a wake that this worker does not answer would be lost to the others.
        """
        self._draining = True
        self._wake.set()

    def cancel(self, job: str, epoch: str) -> None:
        """Another process ended the job: kill its attempt."""
        self._kill(epoch, "cancelled")

    def hand_back_all(self) -> None:
        """Give every running attempt back unspent, for a shutdown that cannot wait for them.

        :meth:`work` returns a few seconds later even if Redis cannot be told.
        """
        self._give_up_at = asyncio.get_running_loop().time() + LAST_SETTLE_S
        for epoch in list(self._running):
            self._kill(epoch, _HANDED_BACK)
        self._wake.set()

    def _kill(self, epoch: str, outcome: str) -> None:
        running = self._running.get(epoch)
        if running is not None and epoch not in self._ends:
            self._ends[epoch] = outcome
            # A task that is cancelled before its first step never gets to its clean-up.
            asyncio.get_running_loop().call_soon(running[1].cancel, outcome)

    async def work(self) -> None:
        """Serve until drained."""
        await self._join()
        while not self._drained():
            if self._out_of_time():
                log.error("stopping without having settled", extra={"queue": self.name, "attempts": len(self._ended)})
                return
            self._wake.clear()
            ended, self._ended = self._ended, []
            waits = self._draining or self._holding or self._aside is not None
            want = 0 if waits else self._slots - self._busy
            try:
                if asyncio.get_running_loop().time() >= self._compare_at:
                    await self._compare(ended)
                if want > 0 or ended or self._listed:
                    await self._exchange(ended, want)
            except QueueClosed:
                self._ended[:0] = ended
                self._listed = False  # as all of the generation before
                await asyncio.sleep(RETRY_S)
                await self._join()
                continue
            except Unavailable as error:
                self._ended[:0] = ended
                self._compare_at = 0.0
                if self._draining:
                    self._listed = False  # soon it listens no more, which Redis sees too
                log.warning("queue away", extra={"queue": self.name, "error": error.message})
                await asyncio.sleep(RETRY_S)
                continue
            if self._drained():
                return
            try:
                async with asyncio.timeout(POLL_S if self._give_up_at is None else RETRY_S):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _drained(self) -> bool:
        return self._draining and not self._busy and not self._ended and not self._listed

    async def _exchange(self, ended: list[_Ended], want: int) -> None:
        flags, claims = await self._queue.exchange(
            self.name,
            self._worker,
            generation=self._generation,
            want=want,
            kept=min(want, self._kept),
            settles=[item.settle for item in ended],
        )
        self._listed = want > 0
        self.settled += len(ended)
        for item, flag in zip(ended, flags, strict=True):
            if not flag:
                # Cancelled meanwhile, or lost to another worker: that one's outcome counts.
                log.info("settle refused", extra={"job": item.claim.id, "epoch": item.claim.epoch})
                self._note(item.claim, item.record, "lost")
        for claim in claims:
            self._start(claim)

    def _start(self, claim: Claim) -> None:
        self._busy += 1
        task = asyncio.create_task(self._attempt(claim), name=f"job-{claim.id}")
        self._running[claim.epoch] = (claim, task)

    async def _attempt(self, claim: Claim) -> None:
        cleanup: Cleanup = None
        try:
            message = await self._message(claim)
            if message is None:
                self._stand_aside()
                self._hand_back(claim, _closing(claim, self.name, self._worker))
            else:
                record, cleanup = await self._run(message, claim)
                self._end(claim, _verb(record), record)
        except asyncio.CancelledError as error:
            if claim.epoch not in self._ends:
                raise
            known = error.record if isinstance(error, Killed) else _closing(claim, self.name, self._worker)
            if self._ends[claim.epoch] == _HANDED_BACK:
                self._hand_back(claim, known)
            else:
                self._note(claim, known, self._ends[claim.epoch])
        except Exception:
            # A fault of ours. Given back, the job would come again and again.
            log.exception("an attempt broke", extra={"job": claim.id})
            self._end(claim, Verb.FINAL, _broken(claim, self.name, self._worker))
        finally:
            self._running.pop(claim.epoch, None)
            self._ends.pop(claim.epoch, None)
            if cleanup is None:
                self._free()
        if cleanup is not None:
            try:
                await cleanup
            finally:
                self._free()

    async def _message(self, claim: Claim) -> JobMessage | None:
        """The job of ``claim``; None for one that another release has to run."""
        try:
            return claim.decode()
        except UnreadableMessage as error:
            log.error("unknown job goes back to the queue", extra={"job": claim.id, "error": str(error)})
            # Not at once, or this worker would take it again and again while one that knows it starts up.
            await asyncio.sleep(UNREADABLE_S)
            return None

    def _stand_aside(self) -> None:
        """Claim nothing for a moment: a job that goes back is the first of its user's again, and whoever gave it back
        would take it before anybody else heard of it."""
        if self._aside is not None:
            self._aside.cancel()
        self._aside = asyncio.get_running_loop().call_later(ASIDE_S, self._claim_again)

    def _claim_again(self) -> None:
        self._aside = None
        self._wake.set()

    def _free(self) -> None:
        self._busy -= 1
        self._wake.set()

    def _end(self, claim: Claim, verb: Verb, record: Record) -> None:
        self._ended.append(_Ended(claim=claim, verb=verb, record=record))
        self._wake.set()

    def _hand_back(self, claim: Claim, record: Record) -> None:
        """Give an attempt back, unspent."""
        self._end(claim, Verb.HAND_BACK, _without_result(record, JobStatus.QUEUED, _HANDED_BACK))

    def _note(self, claim: Claim, record: Record, outcome: str) -> None:
        """Tell what is known here of an attempt that somebody else ended, as what it printed. Where nobody did, because
        Redis forgot of it, it was lost."""
        self._end(claim, Verb.NOTE, _without_result(record, JobStatus.RUNNING, outcome))

    async def _join(self) -> None:
        """Join the queue's generation, telling one that is being rebuilt what runs here."""
        while True:
            try:
                state = await self._queue.generation()
                if state is not None:
                    claims = [claim for claim, _ in self._running.values()]
                    claims += [item.claim for item in self._ended if item.verb is not Verb.NOTE]
                    # Also with nothing to tell: that the script is known says that the generation is being opened.
                    taken = await self._queue.register(self.name, self._worker, claims)
                    await self._queue.beat(self._worker)
                    self._generation = state[0]
                    self._compare_at = 0.0
                    self.joined_at = asyncio.get_running_loop().time()
                    log.info(
                        "joined the queue",
                        extra={"queue": self.name, "generation": state[0], "kept": taken, "of": len(claims)},
                    )
                    return
            except (QueueClosed, Unavailable):
                pass
            if self._drained() or self._out_of_time():
                return
            await asyncio.sleep(RETRY_S)

    def _out_of_time(self) -> bool:
        return self._give_up_at is not None and asyncio.get_running_loop().time() >= self._give_up_at

    async def _compare(self, ended: list[_Ended]) -> None:
        """Give back what was claimed and never heard of; kill what is no longer ours to run."""
        held = await self._queue.held(self.name, self._worker, generation=self._generation)
        # Looked up after the answer: what ended meanwhile is known too.
        known = set(self._running) | {item.claim.epoch for item in (*ended, *self._ended)}
        for claim in held:
            if claim.epoch not in known:
                log.warning("handing back an unheard claim", extra={"job": claim.id})
                record = _without_result(_closing(claim, self.name, self._worker), JobStatus.QUEUED, _HANDED_BACK)
                ended.append(_Ended(claim=claim, verb=Verb.HAND_BACK, record=record))
        for epoch in set(self._running) - {claim.epoch for claim in held}:
            log.info("killing an attempt that is not ours any more", extra={"epoch": epoch})
            self._kill(epoch, "lost")
        self._compare_at = asyncio.get_running_loop().time() + POLL_S


def _verb(record: Record) -> Verb:
    if record.status in FINAL:
        return Verb.FINAL
    return Verb.RETRY if record.status == JobStatus.SCHEDULED else Verb.LOSE


def _without_result(record: Record, status: JobStatus, outcome: str) -> Record:
    """A record that leaves its job without an end."""
    return replace(
        record, status=status, outcome=outcome, reason=None, run_at_ms=None, result=None, error=None, payload=None
    )


def _broken(claim: Claim, queue: str, worker: str) -> Record:
    """The record of an attempt in which the worker's own code failed."""
    error = {"type": "PlatformError", "message": "Function execution failed: the worker could not carry it out"}
    return replace(_closing(claim, queue, worker), reason=Reason.DEPENDENCY_DOWN, error=orjson.dumps(error))


def _closing(claim: Claim, queue: str, worker: str) -> Record:
    """A failed attempt's record, read from the fields that every release writes alike."""
    user, function, version, _, attempt, lost, *_ = claim.raw.split(b"\n", 1)[0].decode().split(" ")
    return Record(
        id=UUID(claim.id),
        kind="invoke" if queue == "invoke" else "deploy",
        user_id=from_short(user),
        function_id=from_short(function),
        version_id=from_short(version),
        queue=queue,
        status=JobStatus.FAILED,
        outcome="failed",
        attempt=int(attempt),
        lost=int(lost),
        epoch=claim.epoch,
        worker=worker,
        at_ms=now_ms(),
        started_ms=claim.claimed_ms or None,
    )
