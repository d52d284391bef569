"""Invoke jobs: a sandbox, a call, a record."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field, replace

from shared.chains import envelope, referred
from shared.errors import ContainerPubError, Unavailable, Unreadable
from shared.functions import FunctionSettings, RunnableVersion
from shared.ids import time_of
from shared.jobs import JobStatus, Reason
from shared.payload_store import PayloadStore
from shared.postgres.jobs import Jobs
from shared.queue.message import NO_REPLY, JobMessage, now_ms
from shared.queue.queue import Claim
from shared.queue.records import Record
from shared.sealing import Part
from worker.build.plan import BuildRejected
from worker.consume.deploy import Deployer
from worker.consume.dispatcher import Cleanup, Killed
from worker.consume.outage import Outage
from worker.consume.retry import next_try_ms
from worker.consume.sealed import SealedParts, sealed_parts
from worker.consume.subscribers import Subscribers
from worker.engine.contract import Engine
from worker.errors import EngineUnavailable, LayerUnavailable, Unsuited
from worker.sandbox.contract import Call, CallOutcome
from worker.sandbox.output import entries
from worker.sandbox.pool import Pool
from worker.sandbox.pooled import PooledSandbox, StartKind
from worker.sandbox.tail import Tail
from worker.sandbox.versions import Specs, VersionCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one invocation, in bytes."""

    max_result_bytes: int
    max_log_bytes: int


class _NotStarted(Exception):
    """The platform could not give the attempt a sandbox."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(slots=True)
class _Attempt:
    """What is known of an attempt while it is made."""

    message: JobMessage
    claim: Claim
    tail: Tail
    begun: float = field(default_factory=time.perf_counter)
    begun_ms: int = field(default_factory=now_ms)
    event: bytes = b""
    version: RunnableVersion | None = None
    start_kind: StartKind | None = None  # the pool changes its own when the sandbox is back
    ready: float | None = None  # when it had its sandbox
    cleanup: Cleanup = None  # what must end before the slot is free


class Invoker:
    """Runs invoke attempts."""

    def __init__(
        self,
        *,
        worker: str,
        engine: Engine,
        pool: Pool,
        versions: VersionCache,
        deployer: Deployer,
        limits: Limits,
        specs: Specs,
        outage: Outage,
        subscribers: Subscribers,
        payload_store: PayloadStore,
        jobs: Jobs,
    ) -> None:
        self._worker = worker
        self._engine = engine
        self._pool = pool
        self._versions = versions
        self._deployer = deployer
        self._limits = limits
        self._specs = specs
        self._outage = outage
        self._subscribers = subscribers
        self._payload_store = payload_store
        self._jobs = jobs

    async def run(self, message: JobMessage, claim: Claim) -> tuple[Record, Cleanup]:
        """One attempt. Never raises for what the function or the engine does; cancelling it kills the sandbox, and then
        raises :class:`Killed`."""
        attempt = _Attempt(message, claim, self._subscribers.begin(message, claim))
        try:
            return await self._run(attempt)
        except BaseException as error:
            # The outcome counts no more, and the slot is free once the sandbox is dead.
            if attempt.cleanup is not None:
                await attempt.cleanup
            if isinstance(error, asyncio.CancelledError):
                raise Killed(await self._cut_short(attempt)) from error
            raise
        finally:
            self._subscribers.end(attempt.tail)

    async def _run(self, attempt: _Attempt) -> tuple[Record, Cleanup]:
        message = attempt.message
        settings: FunctionSettings | None = None
        try:
            attempt.event = await self._event(message)
            version = attempt.version = await self._version(message)
            pooled = await self._sandbox(version)
            call = self._call_of(attempt, version)
            outcome = await self._call(attempt, pooled, call, version)
            if not outcome.ran and await self._is_lost(version):
                # Its image went after the sandbox was there, which has met no code yet.
                if attempt.cleanup is not None:
                    await attempt.cleanup
                attempt.cleanup = attempt.start_kind = attempt.ready = None
                pooled = await self._again(version)
                outcome = await self._call(attempt, pooled, call, version)
            settings = version.settings
        except _NotStarted as error:
            outcome = CallOutcome(
                reason=error.reason,
                error={"type": "PlatformError", "message": f"Function execution failed: {error}"},
                exit_code=None,
            )
        parts = await sealed_parts(message.id, attempt.event, outcome, self._payload_store)
        record = self._record(attempt, outcome, parts)
        return await self._judged(message, record, outcome, settings), attempt.cleanup

    async def _cut_short(self, attempt: _Attempt) -> Record:
        """What is known of an attempt that was killed."""
        ready = attempt.ready
        outcome = CallOutcome(
            reason=None,
            logs=entries(attempt.tail.kept),
            logs_truncated=attempt.tail.truncated,
            exit_code=None,
            run_ms=0.0 if ready is None else (time.perf_counter() - ready) * 1000,
        )
        parts = await sealed_parts(attempt.message.id, attempt.event, outcome, self._payload_store)
        record = self._record(attempt, outcome, parts)
        return record if ready is not None else replace(record, sandbox_ms=None, run_ms=None)

    async def _event(self, message: JobMessage) -> bytes:
        try:
            return await self._following(await self._payload_store.get(message.payload, message.id, Part.PAYLOAD))
        except Unreadable as error:
            unreadable = error
        except Unavailable as error:
            raise _NotStarted(Reason.DEPENDENCY_DOWN, f"its payload cannot be read: {error.message}") from error
        # While an accepted job waited, its payload may have been sealed anew where it is kept.
        if message.reply == NO_REPLY:
            try:
                kept = await self._jobs.payload(message.id)
                if kept is not None:
                    return await self._following(await self._payload_store.get(kept, message.id, Part.PAYLOAD))
            except Unavailable as error:
                raise _NotStarted(Reason.DEPENDENCY_DOWN, f"its payload cannot be read: {error.message}") from error
        raise _NotStarted(Reason.DEPENDENCY_DOWN, f"its payload cannot be read: {unreadable.message}")

    async def _following(self, payload: bytes) -> bytes:
        """The event in ``payload``, or of the job that it names. :raises Unavailable: if that cannot be read now."""
        before = referred(payload)
        if before is None:
            return payload
        end = await self._jobs.end_of(before)
        if end is None:
            raise Unavailable("the job that it follows is gone")
        return await envelope(end, self._payload_store)

    async def _judged(
        self, message: JobMessage, record: Record, outcome: CallOutcome, settings: FunctionSettings | None
    ) -> Record:
        """The record as it is, unless another attempt follows: at once where the engine failed this one, or after a
        while by the function's settings."""
        if record.reason is None:
            return record
        if record.reason != Reason.SANDBOX_START_FAILED or not await self._outage.again(message):
            due_ms = next_try_ms(
                message,
                outcome,
                settings,
                waited_for=await self._is_waited_for(message, outcome, settings),
                now_ms=record.at_ms,
                draw=random.random(),  # noqa: S311
            )
            if due_ms is not None:
                due_ms = await self._within(message, record, outcome, settings, due_ms)
            if due_ms is None:
                return record
            return replace(record, status=JobStatus.SCHEDULED, run_at_ms=due_ms)
        return replace(record, status=JobStatus.QUEUED, outcome="lost", lost=message.lost + 1, payload=None)

    async def _is_waited_for(
        self, message: JobMessage, outcome: CallOutcome, settings: FunctionSettings | None
    ) -> bool:
        """Whether there is a caller who gets the outcome. One whose wait ran out was given the id of a job instead.

        Looks only where a retry hangs on it.
        """
        if message.reply == NO_REPLY:
            return False
        if outcome.reason == Reason.DEPENDENCY_DOWN or settings is None or settings.max_attempts == 1:
            return True
        try:
            return not await self._jobs.still_open([message.id])
        except Unavailable:
            return True

    async def _within(
        self,
        message: JobMessage,
        record: Record,
        outcome: CallOutcome,
        settings: FunctionSettings | None,
        due_ms: float,
    ) -> float | None:
        """When an attempt that is due then may be, within ``retry_within_s`` of the first one's beginning; None for no
        more. A wait that the function itself asked for is cut to that.

        That beginning is asked for only of jobs that were accepted longer ago.
        """
        if settings is None or record.reason == Reason.DEPENDENCY_DOWN:
            return due_ms
        latest_ms = due_ms - 1000 * settings.retry_within_s
        if 1000 * time_of(message.id).timestamp() >= latest_ms:
            return due_ms
        try:
            began_ms = record.started_ms if message.attempt == 1 else await self._jobs.began_ms(message.id)
        except Unavailable:
            return None
        if began_ms is None:
            return None
        if began_ms >= latest_ms:
            return due_ms
        last_ms = began_ms + 1000 * settings.retry_within_s
        return last_ms if outcome.retry is not None and last_ms > record.at_ms else None

    def _call_of(self, attempt: _Attempt, version: RunnableVersion) -> Call:
        return Call(
            job_id=attempt.message.id,
            attempt=attempt.message.attempt,
            event=attempt.event,
            timeout_ms=version.settings.timeout_ms,
            max_result_bytes=self._limits.max_result_bytes,
            max_log_bytes=self._limits.max_log_bytes,
            tail=attempt.tail,
        )

    async def _call(
        self, attempt: _Attempt, pooled: PooledSandbox, call: Call, version: RunnableVersion
    ) -> CallOutcome:
        """How the call in ``pooled`` ended; the attempt knows what must end before the slot is free."""
        fresh = version.settings.isolation == "fresh"
        attempt.start_kind, attempt.ready = pooled.start_kind, time.perf_counter()
        try:
            return await pooled.sandbox.call(call)
        finally:
            attempt.cleanup = self._pool.release(pooled, fresh=fresh)

    async def _version(self, message: JobMessage) -> RunnableVersion:
        try:
            version = await self._versions.get(message.version_id)
        except Unavailable as error:
            raise _NotStarted(Reason.DEPENDENCY_DOWN, error.message) from error
        if version is None:
            raise _NotStarted(Reason.ARTIFACT_MISSING, "its version is gone")
        return version

    async def _sandbox(self, version: RunnableVersion) -> PooledSandbox:
        try:
            if version.layers is None:
                return await self._suited(version)
            return await self._acquire(version)
        except Unsuited:
            return await self._suited(version)
        except EngineUnavailable as error:
            if not await self._is_lost(version):
                raise _NotStarted(Reason.SANDBOX_START_FAILED, str(error)) from error
        return await self._again(version)

    async def _acquire(self, version: RunnableVersion) -> PooledSandbox:
        try:
            return await self._pool.acquire(self._specs.of(version), fresh=version.settings.isolation == "fresh")
        except LayerUnavailable as error:
            raise _NotStarted(error.reason, str(error)) from error

    async def _is_lost(self, version: RunnableVersion) -> bool:
        """Whether the image that its sandboxes start from was removed behind our back."""
        try:
            return version.layers is not None and not await self._engine.has(self._specs.of(version))
        except EngineUnavailable:
            return False

    async def _again(self, version: RunnableVersion) -> PooledSandbox:
        """A sandbox of a version whose image went a moment ago: the engine puts it together again."""
        try:
            return await self._acquire(version)
        except EngineUnavailable as error:
            raise _NotStarted(Reason.SANDBOX_START_FAILED, str(error)) from error

    async def _suited(self, version: RunnableVersion) -> PooledSandbox:
        """A sandbox of a version that has to be built again for this worker's engine."""
        self._versions.forget(version.id)
        try:
            version = await self._deployer.suited(version)
        except EngineUnavailable as error:
            raise _NotStarted(Reason.SANDBOX_START_FAILED, str(error)) from error
        except (ContainerPubError, BuildRejected) as error:
            raise _NotStarted(Reason.ARTIFACT_MISSING, f"it cannot be built again: {error}") from error
        return await self._again(version)

    def _record(self, attempt: _Attempt, outcome: CallOutcome, parts: SealedParts) -> Record:
        message, version = attempt.message, attempt.version
        elapsed_ms = (time.perf_counter() - attempt.begun) * 1000
        succeeded = outcome.reason is None
        queue_ms = max(0.0, float(attempt.begun_ms - message.enqueued_ms))
        return Record(
            id=message.id,
            user_id=message.user_id,
            function_id=message.function_id,
            version_id=message.version_id,
            queue=message.queue,
            status=JobStatus.SUCCEEDED if succeeded else JobStatus.FAILED,
            reason=outcome.reason,
            outcome="succeeded" if succeeded else "failed",
            attempt=message.attempt,
            lost=message.lost,
            epoch=attempt.claim.epoch,
            worker=self._worker,
            # By the clock that the claim was made by, whatever this machine's says.
            at_ms=round(attempt.claim.claimed_ms + elapsed_ms),
            started_ms=attempt.claim.claimed_ms,
            start_kind=attempt.start_kind,
            exit_code=outcome.exit_code,
            queue_ms=queue_ms,
            sandbox_ms=0.0 if attempt.ready is None else (attempt.ready - attempt.begun) * 1000,
            run_ms=outcome.run_ms,
            total_ms=queue_ms + elapsed_ms,
            cpu_ms=outcome.cpu_ms,
            peak_memory_bytes=outcome.peak_memory_bytes,
            timeout_ms=version.settings.timeout_ms if version else None,
            memory_mb=version.settings.memory_mb if version else None,
            logs_truncated=outcome.logs_truncated,
            request=parts.request,
            result=parts.result,
            error=parts.error,
            # Kept so that a failed call can be repeated; a durable job's row has it already.
            payload=None if succeeded or message.reply == "-" else message.payload,
            logs=parts.logs,
        )
