"""The queue as it should be, without Redis and Postgres: plain sets and lists, one method a step.

That the rules stand here and in ``shared/queue/lua`` is on purpose: ``tests/integration/test_queue_machine.py`` takes
random steps on both and compares them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from shared.queue.message import NO_REPLY, JobMessage
from shared.queue.records import epoch_number

HEAD_START_MS = 600_000
OPEN = ("scheduled", "queued")


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """A record on its way: what it says of the job, and of the attempt if there was one."""

    job: JobMessage
    status: str
    attempt: int
    lost: int
    epoch: str | None = None
    outcome: str | None = None
    reason: str | None = None


@dataclass(slots=True, kw_only=True)
class Row:
    """A job as Postgres should have it."""

    job: JobMessage
    status: str = "queued"
    attempt: int = 0
    lost: int = 0
    epoch: int | None = None
    reason: str | None = None


class QueueModel:
    """:param user_max: most running of one user."""

    def __init__(self, *, user_max: int) -> None:
        self.user_max = user_max
        self.stream: list[End] = []
        self.rows: dict[UUID, Row] = {}
        self.attempts: dict[tuple[UUID, int], str] = {}
        self.empty()

    def empty(self) -> None:
        """Redis forgets everything."""
        self.messages: dict[UUID, JobMessage] = {}
        self.running: dict[UUID, tuple[str, str]] = {}
        self.queued: dict[UUID, set[UUID]] = defaultdict(set)
        self.parked: dict[UUID, set[UUID]] = defaultdict(set)
        self.admitted: dict[UUID, set[UUID]] = defaultdict(set)
        self.newcomers: list[UUID] = []
        self.ring: list[UUID] = []
        self.ended: set[object] = set()
        self.stopped: set[UUID] = set()

    # Steps

    def enqueue(self, job: JobMessage) -> bool:
        if job.id in self.messages or job.id in self.ended:
            return False
        if job.reply == NO_REPLY and (job.id, job.attempt) in self.ended:
            return False
        self.messages[job.id] = job
        self._admit(job)
        return True

    def claimable(self, want: int, kept: int) -> list[UUID]:
        """Claim for a worker; the jobs it gets, in order. Those whose deadline is over end here."""
        taken: list[UUID] = []
        for _ in range(want * 2 + 100):
            if len(taken) == want:
                break
            if self.newcomers:
                user = self.newcomers.pop(0)
            elif self.ring and want - len(taken) > kept:
                user = self.ring.pop(0)
            else:
                break
            if len(self.running_of(user)) >= self.user_max:
                continue
            if self.queued[user]:
                job = self.messages[min(self.queued[user], key=self._place)]
                self.queued[user].discard(job.id)
                if 0 < job.deadline_ms <= 1 and (job.reply != NO_REPLY or job.attempt == 1):
                    self._forget(job)
                    reason = "expired" if job.reply == NO_REPLY else "queue_timeout"
                    self._end(job, "failed", attempt=job.attempt - 1, reason=reason)
                elif job.function_id in self.stopped:
                    self.admitted[job.function_id].discard(job.id)
                    self.parked[job.function_id].add(job.id)
                else:
                    taken.append(job.id)
                    self.running[job.id] = ("", "")  # its epoch is for Redis to say
            self._line_up(user)
        return taken

    def claimed(self, job: UUID, epoch: str, worker: str) -> None:
        self.running[job] = (epoch, worker)

    def settle(self, job: JobMessage, epoch: str, verb: str, end: End) -> bool:
        if self.running.get(job.id, ("", ""))[0] != epoch:
            return False
        current = self.messages[job.id]
        self._release(current)
        if verb in ("final", "retry"):
            self._forget(current)
            self.stream.append(end)
            if verb == "retry":
                self.ended |= {(job.id, attempt) for attempt in range(1, current.attempt + 1)}
            elif current.reply == NO_REPLY:
                self.ended.add(job.id)
        else:
            if verb == "lose":
                self.messages[job.id] = replace(current, attempt=current.attempt + 1, lost=current.lost + 1)
            self._wait(current)
            self.stream.append(end)
        return True

    def note(self, end: End) -> None:
        """What the worker knows of an attempt that somebody else ended."""
        self.stream.append(replace(end, status="running", outcome="lost"))

    def cancel(self, job: UUID) -> str:
        message = self.messages.get(job)
        if message is None:
            if job in self.ended:
                return "ended"
            self.ended.add(job)
            return "absent"
        entry = self.running.get(job)
        if entry is not None:
            self._release(message)
            self._forget(message)
            self._end(message, "cancelled", epoch=entry[0], outcome="cancelled")
            return "running"
        self.queued[message.user_id].discard(job)
        self.parked[message.function_id].discard(job)
        self._forget(message)
        self._end(message, "cancelled", attempt=message.attempt - 1)
        return "queued"

    def expire(self, worker: str, *, max_lost: int) -> tuple[int, int]:
        requeued = given_up = 0
        for job, (epoch, holder) in list(self.running.items()):
            if holder != worker:
                continue
            message = self.messages[job]
            lost = message.lost + 1
            self._release(message)
            if lost >= max_lost:
                self._forget(message)
                self._end(message, "failed", lost=lost, epoch=epoch, outcome="lost", reason="worker_lost")
                given_up += 1
            else:
                self.messages[job] = replace(message, attempt=message.attempt + 1, lost=lost)
                self._wait(message)
                self.stream.append(
                    End(job=message, status="queued", attempt=message.attempt, lost=lost, epoch=epoch, outcome="lost")
                )
                requeued += 1
        return requeued, given_up

    def register(self, worker: str, job: JobMessage, epoch: str) -> bool:
        """Into an emptied queue; of two that hold a job the later attempt stays."""
        before = self.running.get(job.id)
        if before is not None and epoch_number(before[0]) >= epoch_number(epoch):
            return False
        self.running[job.id] = (epoch, worker)
        self.messages[job.id] = job
        if job.concurrency:
            self.admitted[job.function_id].add(job.id)
        return True

    def stop(self, function: UUID) -> None:
        self.stopped.add(function)

    def start(self, function: UUID) -> None:
        self.stopped.discard(function)
        while self._let_parked_run(function):
            pass

    # Postgres

    def write(self, ends: Iterable[End]) -> None:
        """Records reach Postgres. Repeating one changes nothing, unless a call was kept as a job in between."""
        for end in ends:
            epoch = None if end.epoch is None else epoch_number(end.epoch)
            self._write_row(end, epoch)
            if end.outcome is not None and epoch is not None:
                row = self.rows.get(end.job.id)
                counts = row is not None and (row.status, row.epoch) == ("succeeded", epoch)
                if self.attempts.get((end.job.id, epoch), "lost") == "lost":  # until somebody knows better
                    lost = end.outcome == "succeeded" and not counts
                    self.attempts[end.job.id, epoch] = "lost" if lost else end.outcome

    def _write_row(self, end: End, epoch: int | None) -> None:
        if end.status == "running":
            return
        final = end.status not in OPEN
        row = self.rows.get(end.job.id)
        if row is None:
            if not final:
                return
            row = self.rows[end.job.id] = Row(job=end.job)
        if row.status not in OPEN:
            return
        if row.epoch is not None and epoch is not None and (row.epoch > epoch or (row.epoch == epoch and not final)):
            return
        row.status, row.lost = end.status, end.lost
        row.attempt = end.attempt - 1 if end.outcome == "handed_back" else end.attempt
        row.reason = end.reason if final else None
        row.epoch = row.epoch if epoch is None else epoch

    def fill(self) -> list[UUID]:
        """What Postgres has as open and the queue does not hold, in order of arrival."""
        return sorted(job for job, row in self.rows.items() if row.status == "queued" and job not in self.messages)

    # What is asked of it

    def running_of(self, user: UUID) -> set[UUID]:
        return {job for job in self.running if self.messages[job].user_id == user}

    def out_of_place(self) -> tuple[set[UUID], set[UUID]]:
        """Open jobs that the queue misses, and durable ones on it that are not open in Postgres."""
        due_now = {job for job, row in self.rows.items() if row.status == "queued"}
        durable = {job for job, message in self.messages.items() if message.reply == NO_REPLY}
        return due_now - set(self.messages), durable - due_now

    def lines(self) -> tuple[Sequence[UUID], Sequence[UUID]]:
        return self.newcomers, self.ring

    # Parts of steps

    def _place(self, job: UUID) -> tuple[int, str]:
        return (job.int >> 80) - self.messages[job].priority * HEAD_START_MS, str(job)

    def _admit(self, job: JobMessage) -> None:
        if job.function_id in self.stopped or not self._let_run(job):
            self.parked[job.function_id].add(job.id)

    def _let_run(self, job: JobMessage) -> bool:
        if job.concurrency:
            if len(self.admitted[job.function_id]) >= job.concurrency:
                return False
            self.admitted[job.function_id].add(job.id)
        self._wait(job)
        return True

    def _wait(self, job: JobMessage) -> None:
        self.queued[job.user_id].add(job.id)
        self._line_up(job.user_id)

    def _line_up(self, user: UUID) -> None:
        if not self.queued[user]:
            return
        mine, other = (self.ring, self.newcomers) if self.running_of(user) else (self.newcomers, self.ring)
        if user not in mine:
            if user in other:
                other.remove(user)
            mine.append(user)

    def _release(self, job: JobMessage) -> None:
        del self.running[job.id]
        self._line_up(job.user_id)

    def _forget(self, job: JobMessage) -> None:
        del self.messages[job.id]
        function = job.function_id
        self.admitted[function].discard(job.id)
        if function in self.stopped or not job.concurrency:
            return
        while len(self.admitted[function]) < job.concurrency and self._let_parked_run(function):
            pass

    def _let_parked_run(self, function: UUID) -> bool:
        """The one that stands first, if its own limit lets it."""
        if not self.parked[function]:
            return False
        job = min(self.parked[function], key=self._place)
        if not self._let_run(self.messages[job]):
            return False
        self.parked[function].discard(job)
        return True

    def _end(
        self,
        job: JobMessage,
        status: str,
        *,
        attempt: int | None = None,
        lost: int | None = None,
        epoch: str | None = None,
        outcome: str | None = None,
        reason: str | None = None,
    ) -> None:
        self.stream.append(
            End(
                job=job,
                status=status,
                attempt=job.attempt if attempt is None else attempt,
                lost=job.lost if lost is None else lost,
                epoch=epoch,
                outcome=outcome,
                reason=reason,
            )
        )
        if job.reply == NO_REPLY:
            self.ended.add(job.id)
