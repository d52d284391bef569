"""One queue's slots in a worker: settle what ended, claim what fits, in one round trip at a time.

A station is woken by a push, by an attempt that ends, or by its slow poll, which is only a safety net. While one
exchange with Redis is in flight, what ends meanwhile goes out with the next.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID

from shared.errors import Unavailable
from shared.queue.message import JobMessage, UnreadableMessage, now_ms
from shared.queue.queue import Claim, Queue, Settle, Verb
from shared.queue.records import Record
from shared.queue.scripts import QueueClosed

log = logging.getLogger(__name__)

POLL_S = 5.0
RETRY_S = 0.2

Cleanup = Awaitable[None] | None
Run = Callable[[JobMessage, Claim], Awaitable[tuple[Record, Cleanup]]]
"""Runs one attempt; returns its record, and what must end before the slot is free. Cancelled when the job is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    claim: Claim
    settle: Settle


class Station:
    """:param slots: attempts at a time. :param run: what to do with one."""

    def __init__(self, queue: Queue, name: str, worker: str, *, slots: int, run: Run) -> None:
        self.name = name
        self._queue = queue
        self._worker = worker
        self._slots = slots
        self._run = run
        self._generation = ""
        self._busy = 0
        self._running: dict[str, tuple[Claim, asyncio.Task[None]]] = {}
        self._ended: list[_Ended] = []
        self._wake = asyncio.Event()
        self._draining = False
        self._unsure = False
        self.joined_at: float | None = None  # loop time at which this generation was joined
        self.settled = 0

    @property
    def busy(self) -> int:
        """Slots in use."""
        return self._busy

    def wake(self) -> None:
        self._wake.set()

    def drain(self) -> None:
        """Claim nothing more; :meth:`work` returns once everything that runs has ended and is settled."""
        self._draining = True
        self._wake.set()

    def cancel(self, job: str, epoch: str) -> None:
        """The job was ended by somebody else: kill its attempt."""
        running = self._running.get(job)
        if running is not None and running[0].epoch == epoch:
            running[1].cancel("cancelled")

    def hand_back_all(self) -> None:
        """Give every running attempt back unspent, for a shutdown that cannot wait for them."""
        for _, task in list(self._running.values()):
            task.cancel("handed back")

    async def work(self) -> None:
        """Serve until drained."""
        await self._join()
        while not (self._draining and not self._busy and not self._ended):
            self._wake.clear()
            ended, self._ended = self._ended, []
            want = 0 if self._draining else self._slots - self._busy
            try:
                if self._unsure:
                    await self._hand_back_unknown(ended)
                if want > 0 or ended:
                    await self._exchange(ended, want)
            except QueueClosed:
                self._ended[:0] = ended
                await self._join()
                continue
            except Unavailable as error:
                self._ended[:0] = ended
                self._unsure = True
                log.warning("queue away", extra={"queue": self.name, "error": error.message})
                await asyncio.sleep(RETRY_S)
                continue
            try:
                async with asyncio.timeout(POLL_S):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _exchange(self, ended: list[_Ended], want: int) -> None:
        flags, claims = await self._queue.exchange(
            self.name,
            self._worker,
            generation=self._generation,
            want=want,
            settles=[item.settle for item in ended],
        )
        self.settled += len(ended)
        for item, flag in zip(ended, flags, strict=True):
            if not flag:
                # Cancelled meanwhile, or lost to another worker: that one's outcome counts.
                log.info("settle refused", extra={"job": item.claim.id, "epoch": item.claim.epoch})
        for claim in claims:
            self._start(claim)

    def _start(self, claim: Claim) -> None:
        self._busy += 1
        task = asyncio.create_task(self._attempt(claim), name=f"job-{claim.id}")
        self._running[claim.id] = (claim, task)

    async def _attempt(self, claim: Claim) -> None:
        cleanup: Cleanup = None
        try:
            message = claim.decode()
            record, cleanup = await self._run(message, claim)
            self._end(claim, Verb.FINAL, record)
        except UnreadableMessage as error:
            log.error("unknown job goes back to the queue", extra={"job": claim.id, "error": str(error)})
            # Not at once, or this worker would take it again and again while one that knows it starts up.
            await asyncio.sleep(1)
            self._end(claim, Verb.HAND_BACK, _handed_back(claim, self.name, self._worker))
        except asyncio.CancelledError as error:
            if error.args == ("handed back",):
                self._end(claim, Verb.HAND_BACK, _handed_back(claim, self.name, self._worker))
            elif error.args != ("cancelled",):
                raise
        finally:
            self._running.pop(claim.id, None)
            if cleanup is None:
                self._free()
        if cleanup is not None:
            try:
                await cleanup
            finally:
                self._free()

    def _free(self) -> None:
        self._busy -= 1
        self._wake.set()

    def _end(self, claim: Claim, verb: Verb, record: Record) -> None:
        settle = Settle(id=record.id, epoch=claim.epoch, verb=verb, record=record.encode())
        self._ended.append(_Ended(claim=claim, settle=settle))
        self._wake.set()

    async def _join(self) -> None:
        """Join the queue's generation, telling one that is being rebuilt what runs here."""
        while True:
            try:
                state = await self._queue.generation()
                if state is not None and state[0] == self._generation:
                    return
                if state is not None:
                    claims = [claim for claim, _ in self._running.values()] + [item.claim for item in self._ended]
                    taken = await self._queue.register(self.name, self._worker, claims) if claims else 0
                    await self._queue.beat(self._worker)
                    self._generation = state[0]
                    self.joined_at = asyncio.get_running_loop().time()
                    log.info(
                        "joined the queue",
                        extra={"queue": self.name, "generation": state[0], "kept": taken, "of": len(claims)},
                    )
                    return
            except (QueueClosed, Unavailable):
                pass
            if self._draining and not self._busy:
                return
            await asyncio.sleep(RETRY_S)

    async def _hand_back_unknown(self, ended: list[_Ended]) -> None:
        """After an exchange whose answer was lost: give back claims that were made but never heard of."""
        known = set(self._running) | {item.claim.id for item in ended}
        for claim in await self._queue.claims_of(self.name, self._worker):
            if claim.id not in known:
                log.warning("handing back an unheard claim", extra={"job": claim.id})
                record = _handed_back(claim, self.name, self._worker)
                settle = Settle(id=record.id, epoch=claim.epoch, verb=Verb.HAND_BACK, record=record.encode())
                ended.append(_Ended(claim=claim, settle=settle))
        self._unsure = False


def _handed_back(claim: Claim, queue: str, worker: str) -> Record:
    """The record of an attempt that was given back: read from the fields that every release writes alike."""
    user, function, version, _, attempt, lost, *_ = claim.raw.split(b"\n", 1)[0].decode().split(" ")
    return Record(
        id=UUID(claim.id),
        kind="invoke" if queue == "invoke" else "deploy",
        user_id=UUID(user),
        function_id=UUID(function),
        version_id=UUID(version),
        queue=queue,
        status="queued",
        outcome="handed_back",
        attempt=int(attempt) - 1,
        lost=int(lost),
        epoch=claim.epoch,
        worker=worker,
        at_ms=now_ms(),
    )
