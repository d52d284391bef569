"""Deploy jobs, which make layers of an artifact and a version active, and delete jobs, which clear up a function."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import orjson

from shared.artifacts import ArtifactStore, artifact_key
from shared.errors import ArtifactCorrupt, ArtifactMissing, ContainerPubError, Unavailable
from shared.functions import RunnableVersion
from shared.jobs import JobKind, JobStatus, Reason
from shared.postgres.versions import Versions
from shared.queue.message import JobMessage, now_ms
from shared.queue.queue import Change, Claim, Queue
from shared.queue.records import Record
from shared.scratch import Scratch
from worker.build.builds import Builds
from worker.build.plan import BuildPlan, BuildRejected, BuiltVersion
from worker.consume.deleted_jobs import DeletedJobs
from worker.consume.dispatcher import Cleanup
from worker.consume.outage import Outage
from worker.engine.contract import Engine
from worker.errors import EngineUnavailable, LayerUnavailable

log = logging.getLogger(__name__)

_LOG_EVERY_S = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildLimits:
    """Bounds of one build; see the settings of the same names."""

    timeout_s: float
    memory_mb: int
    max_unpacked_bytes: int
    max_log_bytes: int


class Deployer:
    """Runs deploy and delete jobs. Repeating either changes nothing: a lost attempt is simply run again.

    :param prewarm: starts a first sandbox of a version that is about to become active.
    """

    def __init__(
        self,
        *,
        worker: str,
        engine: Engine,
        versions: Versions,
        store: ArtifactStore,
        queue: Queue,
        scratch: Scratch,
        prewarm: Callable[[RunnableVersion], Awaitable[None]],
        limits: BuildLimits,
        outage: Outage,
        deleted_jobs: DeletedJobs,
    ) -> None:
        self._worker = worker
        self._engine = engine
        self._versions = versions
        self._store = store
        self._queue = queue
        self._scratch = scratch
        self._prewarm = prewarm
        self._limits = limits
        self._outage = outage
        self._deleted_jobs = deleted_jobs
        self._rebuilding = Builds()

    async def run(self, message: JobMessage, claim: Claim) -> tuple[Record, Cleanup]:
        return await self._run(message, claim), None

    async def _run(self, message: JobMessage, claim: Claim) -> Record:
        claimed_ms, started = now_ms(), time.perf_counter()
        work = self._delete if message.kind is JobKind.DELETE else self._deploy
        again = False
        reason: str | None = None
        error: str | None = None
        result: dict[str, object] | None = None
        try:
            result = await work(message)
        except BuildRejected as rejected:
            reason, error = rejected.reason, rejected.message
        except ArtifactMissing as missing:
            reason, error = Reason.ARTIFACT_MISSING, missing.message
        except LayerUnavailable as lost:
            reason, error = lost.reason, lost.message
        except EngineUnavailable as away:
            reason, error = Reason.DEPENDENCY_DOWN, str(away)
            again = await self._outage.again(message)
        except ContainerPubError as away:
            reason, error = Reason.DEPENDENCY_DOWN, away.message
        run_ms = (time.perf_counter() - started) * 1000
        queue_ms = max(0.0, float(claimed_ms - message.enqueued_ms))
        record = Record(
            id=message.id,
            kind=message.kind,
            user_id=message.user_id,
            function_id=message.function_id,
            version_id=message.version_id,
            queue=message.queue,
            status=JobStatus.SUCCEEDED if reason is None else JobStatus.FAILED,
            reason=reason,
            outcome="succeeded" if reason is None else "failed",
            attempt=message.attempt,
            lost=message.lost,
            epoch=claim.epoch,
            worker=self._worker,
            at_ms=round(claim.claimed_ms + run_ms),
            started_ms=claim.claimed_ms,
            queue_ms=queue_ms,
            run_ms=run_ms,
            total_ms=queue_ms + run_ms,
            result=None if result is None else orjson.dumps(result),
            error=None if error is None else orjson.dumps({"type": "DeployError", "message": error}),
        )
        if again:
            record = replace(record, status=JobStatus.QUEUED, outcome="lost", lost=message.lost + 1)
        return record

    async def suited(self, version: RunnableVersion) -> RunnableVersion:
        """The version with layers that this worker's engine can use. If an older release or another kind of engine
        built it, builds it again, once for all callers. Raises the errors of a build."""
        async with self._rebuilding.single_flight(str(version.id)):
            known = await self._versions.runnable(version.id) or version
            if known.layers is not None and await self._engine.suits(known.settings.runtime, known.layers):
                return known
            log.info("building a version again", extra={"version": str(version.id)})
            built = await self._build(version, lambda _: None)
            before = None if known.layers is None else known.layers.base
            await self._versions.record_layers(version.id, layers=built.layers, instead_of=before)
            # If several workers built it, all use the layers that the first one wrote to Postgres.
            recorded = await self._versions.runnable(version.id)
            return recorded or replace(version, layers=built.layers)

    async def _deploy(self, message: JobMessage) -> dict[str, object]:
        version = await self._versions.runnable(message.version_id)
        if version is None:
            raise BuildRejected(Reason.BUILD_FAILED, "The function was deleted before it was built.")
        if version.status == "failed":
            raise BuildRejected(Reason.BUILD_FAILED, "The version had failed already.")
        if version.status == "building":
            lines = _BuildLog(self._versions, version)
            writer = asyncio.create_task(lines.write(), name=f"build-log-{version.id}")
            try:
                built = await self._build(version, lines.add)
            finally:
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)
                await lines.flush()
            await self._prewarm(replace(version, layers=built.layers))
            if not await self._versions.activate(version.id, layers=built.layers, analysis=built.analysis):
                raise BuildRejected(Reason.BUILD_FAILED, "The version failed or was deleted while it was built.")
        # Before the job ends: a caller that sees it ended is served by the new version. It is not this one if a newer
        # build ended first.
        live = await self._versions.live(version.function_id)
        await self._queue.announce_change(Change(function=version.function_id, live=live))
        return {"function_id": str(version.function_id), "version": version.number}

    async def _build(self, version: RunnableVersion, add: Callable[[str], None]) -> BuiltVersion:
        async with self._scratch.folder() as folder:
            artifact = folder / "artifact.tar.gz"
            try:
                await self._store.fetch(artifact_key(version.artifact_sha256), artifact)
            except ArtifactCorrupt as error:
                raise ArtifactMissing(error.message) from error
            plan = BuildPlan(
                version_id=version.id,
                function_id=version.function_id,
                user_id=version.user_id,
                runtime=version.settings.runtime,
                handler=version.settings.handler,
                artifact=artifact,
                artifact_sha256=version.artifact_sha256,
                timeout_s=self._limits.timeout_s,
                memory_mb=self._limits.memory_mb,
                max_unpacked_bytes=self._limits.max_unpacked_bytes,
                max_log_bytes=self._limits.max_log_bytes,
            )
            return await self._engine.build(plan, add)

    async def _delete(self, message: JobMessage) -> dict[str, object]:
        """End the function's jobs, have workers destroy its sandboxes, and forget its versions, whose blobs a sweep
        deletes later."""
        await self._queue.announce_change(Change(function=message.function_id, live=None))
        await self._deleted_jobs.end(message.function_id)
        versions = await self._versions.forget_built(message.function_id)
        return {"function_id": str(message.function_id), "versions": versions}


class _BuildLog:
    """Lines of a running build, written to Postgres a few times a second."""

    def __init__(self, versions: Versions, version: RunnableVersion) -> None:
        self._versions = versions
        self._version = version
        self._lines: list[str] = []

    def add(self, line: str) -> None:
        self._lines.append(line.rstrip("\n").replace("\x00", "\\x00") + "\n")

    async def write(self) -> None:
        while True:
            await asyncio.sleep(_LOG_EVERY_S)
            await self.flush()

    async def flush(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            try:
                await self._versions.append_build_log(self._version.id, "".join(lines))
            except Unavailable:
                self._lines[:0] = lines
