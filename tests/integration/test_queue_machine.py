"""Random steps on the real queue and on a plain model of it: they must agree after every one.

Workers forget what they had, sleep beyond their leases and settle all the same; messages and records arrive again;
clocks of those who accept jobs are an hour off; Redis is emptied. A failure prints the steps that lead to it, and the
seed. ``PROPERTY_SEED`` plays one again; ``PROPERTY_PROFILE=long`` takes minutes instead of seconds.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis

from scheduler.due import Due
from scheduler.rebuild import Rebuild
from scheduler.reconcile import Reconciler
from shared.ids import from_short
from shared.jobs import JobStatus
from shared.postgres.jobs import Jobs
from shared.postgres.pool import Pool, close_pool, open_pool
from shared.queue.connection import connect
from shared.queue.conservation import Conservation
from shared.queue.drain import Drain
from shared.queue.message import NO_REPLY, JobMessage, now_ms
from shared.queue.queue import RECORDS, CancelledWhere, Claim, Enqueued, Queue, Settle, Verb
from shared.queue.records import Record, epoch_number
from tests.queue_model import OPEN, End, QueueModel, Row
from tests.seeds import accept, message, new_user, settle

PROFILES = {
    "short": settings(max_examples=100, stateful_step_count=40),
    "long": settings(max_examples=5000, stateful_step_count=100),
}
USER_MAX = 3
MAX_LOST = 3
REBUILD_AFTER = 8
REST_AFTER = 12
HOUR_MS = 3_600_000
JOBS_MOST = 20_000
"""Of one example, which each take a millisecond of the past."""
WORKERS = ("worker-a", "worker-b")
CONCURRENCY = (0, 1, 2, 2)
CHANGING = 3
"""The function whose versions have limits of their own, up to the one above."""

T = TypeVar("T")
workers = st.sampled_from(WORKERS)
verbs = st.sampled_from([verb for verb in Verb if verb is not Verb.NOTE])


class RebuildWithWorkers(Rebuild):
    """A rebuild in which some workers tell what they run in its grace time."""

    def __init__(self, *args: Any, machine: QueueMachine, living: set[str]) -> None:
        super().__init__(*args, grace_s=0)
        self._machine = machine
        self._living = living

    async def _write_records(self) -> None:
        for worker in sorted(self._living):
            await self._machine.register(worker)
        await super()._write_records()


class World:
    """Servers and clients that all examples share, on a loop that hypothesis, which knows none, can step."""

    def __init__(self, database: str, redis_url: str) -> None:
        self._runner = asyncio.Runner()
        self.run(self._open(database, redis_url))

    async def _open(self, database: str, redis_url: str) -> None:
        self.pool: Pool = await open_pool(database, size=3, timeout_s=10, name="machine")
        self.redis: Redis = connect(redis_url, timeout_s=5)
        self.queue = Queue(self.redis, max_running_per_user=USER_MAX)
        self.jobs = Jobs(self.pool)
        self.drain = Drain(self.redis, self.jobs, consumer="machine")
        self.conservation = Conservation(self.redis, self.queue, self.pool)
        self.users = [await new_user(self.pool) for _ in range(2)]
        self.functions = {user: [uuid4() for _ in CONCURRENCY] for user in self.users}

    def run(self, step: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(step)

    def close(self) -> None:
        async def close() -> None:
            await self.queue.aclose()
            await self.redis.aclose()
            await close_pool(self.pool)

        self.run(close())
        self._runner.close()


class QueueMachine(RuleBasedStateMachine):
    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.queue, self.redis, self.jobs = world.queue, world.redis, world.jobs
        self.model = QueueModel(user_max=USER_MAX)
        self.generation = ""
        self.held: dict[str, dict[UUID, Claim]] = {worker: {} for worker in WORKERS}  # what each believes to run
        self.called: dict[UUID, JobMessage] = {}  # somebody waits, or did
        self.unsent: dict[UUID, JobMessage] = {}  # accepted, and whoever did has not put it on the queue yet
        self.written: list[bytes] = []
        self.ends: dict[tuple[UUID, str | None], End] = {}  # what they say
        self.beats = dict.fromkeys(WORKERS, 0)
        self.highest = 0
        self.began_ms = now_ms() - JOBS_MOST
        self.jobs_made = 0
        self.registered: set[UUID] = set()  # jobs that came into an emptied queue, whatever limits say
        self.outcomes: dict[UUID, str] = {}
        self.steps = 0

    def run(self, step: Coroutine[Any, Any, T]) -> T:
        return self.world.run(step)

    @initialize()
    def begin(self) -> None:
        async def begin() -> None:
            await self.redis.flushall()
            await self.world.pool.execute("DELETE FROM jobs")
            await self.world.pool.execute("DELETE FROM invocations")
            await Rebuild(self.redis, self.queue, self.jobs, self.world.pool, grace_s=0).run_once()
            await self._know_generation()

        self.run(begin())

    # Accepting

    @rule(
        user=st.integers(0, 1),
        function=st.integers(0, len(CONCURRENCY) - 1),
        limit=st.integers(0, 2),
        priority=st.integers(-1, 1),
        skew_ms=st.sampled_from((0, 0, -HOUR_MS, HOUR_MS)),
        deadline=st.sampled_from((*[0] * 7, 1)),
        durable=st.sampled_from((True, True, True, False)),
        count=st.integers(1, 3),
        at_once=st.sampled_from((True, True, False)),
    )
    def accept(
        self,
        user: int,
        function: int,
        limit: int,
        priority: int,
        skew_ms: int,
        deadline: int,
        durable: bool,
        count: int,
        at_once: bool,
    ) -> None:
        batch = [self._job(user, function, limit, priority, skew_ms, deadline, durable) for _ in range(count)]
        if durable:
            self.run(accept(self.world.pool, batch))
            self.unsent |= {job.id: job for job in batch}
            for job in batch:
                self.model.rows[job.id] = Row(job=job)
            if at_once:
                self.send(duplicate=True)
        else:
            self._enqueue(batch)
            self.called |= {job.id: job for job in batch}

    @precondition(lambda self: self.called)
    @rule(pick=st.integers(0, 1000))
    def keep(self, pick: int) -> None:
        """A caller's wait is over, and the call goes on as a durable job; it may have ended just before."""
        job = self.called.pop(sorted(self.called)[pick % len(self.called)])
        self.run(accept(self.world.pool, [job]))
        self.model.rows.setdefault(job.id, Row(job=job))

    @precondition(lambda self: self.unsent)
    @rule(duplicate=st.booleans())
    def send(self, duplicate: bool) -> None:
        """Acceptors get round to it: perhaps after the reconciler, perhaps after the end."""
        batch = list(self.unsent.values())
        self._enqueue(batch)
        if not duplicate:
            self.unsent.clear()

    def _enqueue(self, batch: list[JobMessage]) -> None:
        expected = [self.model.enqueue(job) for job in batch]
        answers = self.run(self.queue.enqueue("invoke", batch)) if batch else []
        assert [answer is Enqueued.QUEUED for answer in answers] == expected

    @rule(user=st.integers(0, 1), worker=workers, verb=verbs, due=st.booleans())
    def pass_through(self, user: int, worker: str, verb: Verb, due: bool) -> None:
        """The common way, so that there is always something that has gone some of it."""
        self.accept(user, 0, 0, 0, 0, 0, durable=True, count=1, at_once=True)
        self.work(worker, verb, want=2)
        self.write(due)

    @rule(user=st.integers(0, 1), worker=workers)
    def accept_and_claim(self, user: int, worker: str) -> None:
        self.accept(user, 0, 0, 0, 0, 0, durable=True, count=1, at_once=True)
        self.claim(worker, want=2, kept=0)

    # Working

    @rule(worker=workers, want=st.integers(1, 4), kept=st.integers(0, 1))
    def claim(self, worker: str, want: int, kept: int) -> None:
        expected = self.model.claimable(want, kept)
        _, claims = self.run(self.queue.exchange("invoke", worker, generation=self.generation, want=want, kept=kept))
        assert [UUID(one.id) for one in claims] == expected
        for one in claims:
            number = epoch_number(one.epoch)
            assert number > self.highest, "an epoch came twice"
            self.highest = number
            job = one.decode()
            self.model.claimed(job.id, one.epoch, worker)
            assert (job.attempt, job.lost) == (self.model.messages[job.id].attempt, self.model.messages[job.id].lost)
            self.held[worker][job.id] = one

    @precondition(lambda self: any(self.held.values()))
    @rule(worker=workers, verb=verbs, most=st.integers(1, 3), again=st.booleans())
    def end(self, worker: str, verb: Verb, most: int, again: bool) -> None:
        """A worker settles what it believes to run, whether it still does or not."""
        claims = list(self.held[worker].values())[:most]
        ends = [self._ending(one, verb, worker) for one in claims]
        settles = [one for one, _ in ends]
        expected = [
            self.model.settle(one.decode(), one.epoch, sent.verb.value, end)
            for one, (sent, end) in zip(claims, ends, strict=True)
        ]
        if again:
            settles, expected = settles * 2, expected + [False] * len(expected)
        flags, _ = self.run(self.queue.exchange("invoke", worker, generation=self.generation, want=0, settles=settles))
        assert flags == expected
        for (_, end), flag in zip(ends, flags, strict=False):
            if not flag:
                self.model.note(end)
        fields: dict[str, Any] = {"status": JobStatus.RUNNING, "outcome": "lost", "worker": worker}
        notes = [settle(one, Verb.NOTE, **fields) for one, flag in zip(claims, flags, strict=False) if not flag]
        flags, _ = self.run(self.queue.exchange("invoke", worker, generation=self.generation, want=0, settles=notes))
        assert flags == [True] * len(notes)
        for one in claims:
            del self.held[worker][UUID(one.id)]

    def _ending(self, one: Claim, verb: Verb, worker: str) -> tuple[Settle, End]:
        job = one.decode()
        if job.id not in self.model.rows and verb is Verb.RETRY:
            verb = Verb.FINAL  # nobody waits for it that long
        fields: dict[str, Any] = {"status": JobStatus.SUCCEEDED, "outcome": "succeeded", "attempt": job.attempt}
        lost = job.lost
        if verb is Verb.RETRY:
            at_ms = now_ms()
            fields |= {"status": JobStatus.SCHEDULED, "outcome": "failed", "at_ms": at_ms, "run_at_ms": at_ms - 1000}
        elif verb is Verb.HAND_BACK:
            fields |= {"status": JobStatus.QUEUED, "outcome": "handed_back"}
        elif verb is Verb.LOSE:
            lost += 1
            fields |= {"status": JobStatus.QUEUED, "outcome": "lost", "lost": lost}
        end = End(
            job=job, status=str(fields["status"]), attempt=fields["attempt"], lost=lost, epoch=one.epoch,
            outcome=fields["outcome"],
        )  # fmt: skip
        return settle(one, verb, worker=worker, **fields), end

    @rule(worker=workers, verb=verbs, want=st.integers(1, 4))
    def work(self, worker: str, verb: Verb, want: int) -> None:
        self.claim(worker, want, 0)
        self.end(worker, verb, want, again=False)

    @precondition(lambda self: any(self.held.values()))
    @rule(worker=workers)
    def crash(self, worker: str) -> None:
        """It forgets everything; what it had stays its own until it is expired."""
        self.held[worker].clear()

    @precondition(lambda self: self.model.running)
    @rule(worker=workers, beats=st.sampled_from((False, False, False, True)))
    def expire(self, worker: str, beats: bool) -> None:
        """Its lease is over, unless it beats just then; it may have crashed, or sleep and settle later."""
        if beats:
            self.run(self.queue.beat(worker))
            self.beats[worker] += 1
            seen = self.beats[worker] - 1
            assert self.run(self.queue.expire_worker(worker, seen=seen, max_lost=MAX_LOST)) is None
            return
        answer = self.run(self.queue.expire_worker(worker, seen=self.beats[worker], max_lost=MAX_LOST))
        assert answer == self.model.expire(worker, max_lost=MAX_LOST)
        self.beats[worker] = 0
        self.run(self._adopt_lines())

    @precondition(lambda self: self.model.running)
    @rule(worker=workers)
    def overtake(self, worker: str) -> None:
        """One sleeps beyond its lease, and another gets what it runs."""
        self.expire(worker, beats=False)
        self.claim(next(other for other in WORKERS if other != worker), want=4, kept=0)

    # Deciding

    @rule(pick=st.integers(0, 1000))
    def cancel(self, pick: int) -> None:
        known = sorted(self.model.rows.keys() | self.model.messages.keys())
        if not known:
            return
        job = known[pick % len(known)]
        where = self.run(self.queue.cancel("invoke", job))
        assert where.value == self.model.cancel(job)
        if where is CancelledWhere.ABSENT:
            row = self.model.rows[job]
            assert self.run(self.jobs.cancel(job)) == (row.status in ("scheduled", "queued"))
            if row.status in ("scheduled", "queued"):
                row.status = "cancelled"

    @precondition(lambda self: not self.model.stopped)
    @rule(user=st.integers(0, 1), function=st.integers(0, len(CONCURRENCY) - 1))
    def stop(self, user: int, function: int) -> None:
        which = self.world.functions[self.world.users[user]][function]
        self.run(self.queue.stop_function(which))
        self.model.stop(which)

    @precondition(lambda self: self.model.stopped)
    @rule()
    def start(self) -> None:
        for which in sorted(self.model.stopped):
            assert self.run(self.queue.start_function(which))
            self.model.start(which)

    # Keeping whole

    @precondition(lambda self: self.model.stream)
    @rule(due=st.booleans())
    def write(self, due: bool) -> None:
        self.run(self._write())
        self._compare_rows()
        if due and any(row.status == "scheduled" for row in self.model.rows.values()):
            self.fall_due()

    @precondition(lambda self: self.written)
    @rule(count=st.integers(1, 6))
    def write_again(self, count: int) -> None:
        """Records whose acknowledgement was lost."""

        async def again() -> None:
            for data in self.written[-count:]:
                await self.redis.xadd(RECORDS, {"r": data})
                record = Record.decode(data)
                self.model.write([self.ends[record.id, record.epoch]])
            await self.world.drain.run_once()

        self.run(self._write())
        self.run(again())
        self._compare_rows()

    @precondition(lambda self: any(row.status == "scheduled" for row in self.model.rows.values()))
    @rule()
    def fall_due(self) -> None:
        order = self.run(self.world.pool.fetch("SELECT id FROM jobs WHERE status = 'scheduled' ORDER BY run_at, id"))
        due = [row["id"] for row in order]
        assert set(due) == {job for job, row in self.model.rows.items() if row.status == "scheduled"}
        assert self.run(Due(self.queue, self.jobs).run_once()) == len(due)
        for job in due:
            self.model.rows[job].status = "queued"
            self.model.enqueue(self._again(job))

    @precondition(lambda self: any(self.model.out_of_place()))
    @rule()
    def reconcile(self) -> None:
        """While records are written: whatever ended is not to come back."""

        async def reconcile() -> int:
            reconciler = Reconciler(self.queue, self.jobs, self.world.drain, age_s=0)
            await asyncio.sleep(0.001)  # older than the millisecond it was accepted in
            running = asyncio.create_task(reconciler.run_once())
            await self._write()
            return await running

        added = self.run(reconcile())
        missing = self.model.fill()
        assert added == len(missing)
        for job in missing:
            self.model.enqueue(self._again(job))

    @precondition(lambda self: self.steps > REBUILD_AFTER)
    @rule(living=st.sampled_from((set(WORKERS), set(WORKERS), {WORKERS[0]}, set())), emptied=st.booleans())
    def rebuild(self, living: set[str], emptied: bool) -> None:
        self.steps = 0

        async def rebuild() -> None:
            if emptied:
                await self.redis.flushall()
                self.model.stream.clear()
            self.model.empty()
            self.beats = dict.fromkeys(WORKERS, 0)
            await RebuildWithWorkers(
                self.redis, self.queue, self.jobs, self.world.pool, machine=self, living=living
            ).run_once()
            self.model.write(self.model.stream)
            self.model.stream.clear()
            for job in self.model.fill():
                self.model.enqueue(self._again(job))
            await self._know_generation()

        for worker in set(WORKERS) - living:
            self.held[worker].clear()
        self.unsent.clear()  # who could not put a job on the queue leaves it to the reconciler
        self.run(rebuild())

    async def register(self, worker: str) -> None:
        claims = list(self.held[worker].values())
        self.registered.update(UUID(one.id) for one in claims)
        expected = sum(self.model.register(worker, one.decode(), one.epoch) for one in claims)
        assert await self.queue.register("invoke", worker, claims) == expected

    # What holds after every step

    @invariant()
    def the_two_agree(self) -> None:
        self.steps += 1
        if self.generation:
            self.run(self._agree())

    async def _agree(self) -> None:
        for worker in WORKERS:
            held = await self.queue.held("invoke", worker, generation=self.generation)
            assert {UUID(one.id): one.epoch for one in held} == {
                job: epoch for job, (epoch, holder) in self.model.running.items() if holder == worker
            }
        assert tuple(map(list, await self._lines())) == tuple(map(list, self.model.lines()))
        balance = await self.world.conservation.look()
        missing, unknown = self.model.out_of_place()
        assert {str(one) for one in balance.findings} == {
            *(f"{job} is open and not on the queue" for job in missing),
            *(f"{job} is on the queue and not open in Postgres" for job in unknown),
        }
        assert balance.running == len(self.model.running)
        assert balance.parked == sum(len(jobs) for jobs in self.model.parked.values())
        registered = len(self.registered & self.model.running.keys())
        for user in self.world.users:
            assert len(self.model.running_of(user)) <= USER_MAX + registered
            for function, limit in zip(self.world.functions[user][:CHANGING], CONCURRENCY, strict=False):
                runs = sum(self.model.messages[job].function_id == function for job in self.model.running)
                assert not limit or runs <= limit + registered

    @precondition(lambda self: self.steps > REST_AFTER)
    @rule()
    def come_to_rest(self) -> None:
        """Once everybody did what is theirs, all jobs have ended, once each, and the books balance."""
        self.steps = 0
        self.send(duplicate=False)
        self.start()
        for worker in WORKERS:
            self.crash(worker)
            self.expire(worker, beats=False)
        self._work_off()
        # An attempt may have ended that Postgres knew to be overtaken: then its job is refused for a minute.
        self.run(self.redis.delete("cp:invoke:ended"))
        self.model.ended.clear()
        self._work_off()
        self.run(self._write())
        self._compare_rows()
        assert {row.status for row in self.model.rows.values()} <= {"succeeded", "failed", "cancelled"}
        balance = self.run(self.world.conservation.run_once(patience_s=0))
        assert (balance.findings, balance.open, balance.later) == (set(), 0, 0)

    # Parts of steps

    def _work_off(self) -> None:
        for _ in range(50):
            self.reconcile()
            self.fall_due()
            self.claim(WORKERS[0], want=4, kept=0)
            self.end(WORKERS[0], Verb.FINAL, most=4, again=False)
            if not self.model.messages and not any(row.status in OPEN for row in self.model.rows.values()):
                break

    def _job(
        self, user: int, function: int, limit: int, priority: int, skew_ms: int, deadline: int, durable: bool
    ) -> JobMessage:
        owner = self.world.users[user]
        return message(
            owner,
            function=self.world.functions[owner][function],
            id=self._id(skew_ms),
            concurrency=limit if function == CHANGING else CONCURRENCY[function],
            priority=priority,
            deadline_ms=deadline,
            reply=NO_REPLY if durable else "api-1",
        )

    def _id(self, skew_ms: int) -> UUID:
        """As of a clock that is wrong by ``skew_ms``. The same in every run of the same steps, which chance would not
        be: three jobs a millisecond, in an order of their own."""
        self.jobs_made += 1
        at_ms = int(self.began_ms) + self.jobs_made // 3 + skew_ms
        return UUID(int=(at_ms << 80) | (0x7 << 76) | (0b10 << 62) | (self.jobs_made * 0x9E3779B1 & 0xFFFFFFFF))

    def _again(self, job: UUID) -> JobMessage:
        """The message that is made from what Postgres has."""
        row = self.model.rows[job]
        return replace(row.job, attempt=row.attempt + 1, lost=row.lost, reply=NO_REPLY)

    async def _know_generation(self) -> None:
        state = await self.queue.generation()
        assert state is not None
        assert state[1]
        self.generation = state[0]

    async def _write(self) -> None:
        self.written += [fields[b"r"] for _, fields in await self.redis.xrange(RECORDS)]
        self.ends |= {(end.job.id, end.epoch): end for end in self.model.stream}
        while await self.world.drain.backlog():
            await self.world.drain.run_once()
        self.model.write(self.model.stream)
        self.model.stream.clear()

    def _compare_rows(self) -> None:
        rows = {row["id"]: row for row in self.run(self.world.pool.fetch("SELECT * FROM jobs"))}
        assert set(rows) == set(self.model.rows)
        for job, expected in self.model.rows.items():
            row = rows[job]
            assert (row["status"], row["attempt"], row["lost"], row["reason"]) == (
                expected.status,
                expected.attempt,
                expected.lost,
                expected.reason,
            )
            if expected.status not in OPEN:
                assert self.outcomes.setdefault(job, expected.status) == expected.status, "an outcome changed"
        found = self.run(self.world.pool.fetch("SELECT job_id, epoch, outcome FROM invocations"))
        assert {(row["job_id"], row["epoch"]): row["outcome"] for row in found} == self.model.attempts
        good = Counter(job for (job, _), outcome in self.model.attempts.items() if outcome == "succeeded")
        assert all(count == 1 for count in good.values()), "two results"

    async def _lines(self) -> tuple[list[UUID], list[UUID]]:
        found = [await self.redis.zrange(f"cp:invoke:{line}", 0, -1) for line in ("newcomers", "ring")]
        newcomers, ring = ([from_short(user.decode()) for user in line] for line in found)
        return newcomers, ring

    async def _adopt_lines(self) -> None:
        """In which order Redis went through what a worker had is its own affair; who stands in which line is not."""
        newcomers, ring = await self._lines()
        assert (set(newcomers), set(ring)) == tuple(map(set, self.model.lines()))
        self.model.newcomers, self.model.ring = newcomers, ring


@pytest.mark.timeout(7200)  # of the long form; and a failure takes a while to be told in few steps
def test_queue_and_model_agree_after_whatever_happens(database: str, redis_url: str) -> None:
    number = int(os.environ.get("PROPERTY_SEED") or random.SystemRandom().randrange(2**32))
    chosen = settings(
        PROFILES[os.environ.get("PROPERTY_PROFILE", "short")],
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    world = World(database, redis_url)

    def machine() -> QueueMachine:
        return QueueMachine(world)

    print(f"PROPERTY_SEED={number}")  # shown when it fails
    try:
        run_state_machine_as_test(seed(number)(machine), settings=chosen)
    finally:
        world.close()
