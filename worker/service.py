"""One worker process: opens its parts in order and connects them."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from arq.connections import ArqRedis

from shared.artifacts import open_store, store_config
from shared.errors import Unavailable
from shared.functions import RunnableVersion
from shared.ids import new_id
from shared.loop import Loop
from shared.payload_store import PayloadStore
from shared.postgres.blobs import Blobs
from shared.postgres.jobs import Jobs
from shared.postgres.migrate import check_schema
from shared.postgres.pool import close_pool, open_pool, postgres_errors
from shared.postgres.versions import Versions
from shared.queue.connection import connect, refuse_evicting_policy
from shared.queue.drain import Drain
from shared.queue.message import JobMessage
from shared.queue.push import Push
from shared.queue.queue import CHANGED_CHANNEL, REBUILT_CHANNEL, Change, Claim, Queue
from shared.queue.records import Record
from shared.scratch import Scratch
from shared.sealing import NOT_SEALED
from shared.settings import Settings
from worker.build.layer_store import LayerStore
from worker.config import DockerfileConfig, EngineConfig
from worker.consume.arq_worker import Worker
from worker.consume.blob_sweep import BlobSweep
from worker.consume.deleted_jobs import DeletedJobs
from worker.consume.deploy import BuildLimits, Deployer
from worker.consume.dispatcher import Cleanup, Dispatcher
from worker.consume.invoke import Invoker, Limits
from worker.consume.outage import Outage
from worker.consume.payload_sweep import PayloadSweep
from worker.consume.subscribers import Subscribers
from worker.engine import make_engine
from worker.engine.contract import Engine
from worker.network.egress_policy import egress_policy
from worker.sandbox.pool import Pool, PoolLimits
from worker.sandbox.versions import Specs, VersionCache
from worker.sandbox.warmth import Warmth

if TYPE_CHECKING:
    from worker.build.layer_registry import LayerRegistry

log = logging.getLogger(__name__)

_RETRY_BEAT_S = 1.0


class Service:
    """Opens in :meth:`start`, closes in :meth:`stop` in the reverse order."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.id = f"{socket.gethostname()[:32]}-{os.getpid()}-{new_id().hex[-8:]}"
        self._open = AsyncExitStack()
        self._scratch = Scratch(settings.data_dir)
        redis = connect(settings.redis_url.get_secret_value(), timeout_s=settings.dependency_timeout_seconds)
        self._redis = ArqRedis(pool_or_conn=redis.connection_pool)
        self._queue = Queue(
            self._redis,
            max_stream_backlog=settings.max_stream_backlog,
            max_running_per_user=settings.max_running_per_user,
        )
        self.worker = Worker(
            {"invoke": self._invoke, "deploy": self._deploy, "delete": self._deploy},
            redis=self._redis,
            name=self.id,
            slots=settings.function_max_concurrent,
            on_startup=self.start,
            on_shutdown=self.stop,
        )
        self._invoker: Invoker
        self._deployer: Deployer
        self._versions: Versions
        self._engine: Engine
        self._pool: Pool | None = None

    async def start(self, ctx: dict[Any, Any]) -> None:
        settings, queue = self._settings, self._queue
        self._open.push_async_callback(queue.aclose)
        await refuse_evicting_policy(self._redis)
        postgres = await open_pool(
            settings.database_url.get_secret_value(),
            size=settings.database_pool_size,
            timeout_s=settings.dependency_timeout_seconds,
            name="worker",
        )
        self._open.push_async_callback(close_pool, postgres)
        with postgres_errors():
            async with postgres.acquire() as connection:
                await check_schema(connection)
        versions, jobs = Versions(postgres), Jobs(postgres)
        self._versions = versions
        store = await open_store(store_config(settings))
        self._open.push_async_callback(store.close)
        scratch = self._scratch
        await scratch.open()
        self._open.push_async_callback(scratch.close)
        # Beat before the engine has anything of this worker: another worker's sweep must not take it for a dead one's.
        await queue.beat(self.id)
        self._open.push_async_callback(self._retire)
        blobs, registry = Blobs(postgres), layer_registry(settings, scratch)
        layers = LayerStore(store, blobs, registry)
        self._engine = make_engine(settings.engine, engine_config(settings, self.id), layers)
        self._open.push_async_callback(self._engine.close)
        await self._engine.open()
        pool = self._pool = Pool(
            engine=self._engine,
            limits=PoolLimits(
                memory_mb=settings.worker_memory_mb,
                pause_s=settings.sandbox_pause_seconds,
                idle_s=settings.sandbox_idle_seconds,
                max_age_s=settings.sandbox_max_age_seconds,
                max_uses=settings.sandbox_max_uses,
                ahead=settings.sandbox_ahead,
                generics=settings.sandbox_generics,
            ),
        )
        self._open.push_async_callback(pool.close)
        specs = Specs(())  # no function gets an address or a password of a database that others use too
        subscribers = Subscribers(self._redis, settings.keyring)
        serves_invokes = "invoke" in settings.worker_queues

        async def prewarm(version: RunnableVersion) -> None:
            # Where another process runs the functions, a sandbox of this one would wait for no call.
            if serves_invokes:
                await pool.prewarm(specs.of(version))

        outage = Outage(self._engine, self._hold, max_lost=settings.max_lost_deliveries)
        self._deployer = Deployer(
            worker=self.id,
            engine=self._engine,
            versions=versions,
            store=store,
            queue=queue,
            scratch=scratch,
            prewarm=prewarm,
            limits=BuildLimits(
                timeout_s=settings.build_timeout_seconds,
                memory_mb=settings.build_memory_mb,
                max_unpacked_bytes=settings.build_max_unpacked_bytes,
                max_log_bytes=settings.build_log_bytes,
            ),
            outage=outage,
            deleted_jobs=DeletedJobs(jobs, queue),
        )
        self._invoker = Invoker(
            worker=self.id,
            engine=self._engine,
            pool=pool,
            versions=VersionCache(versions),
            deployer=self._deployer,
            limits=Limits(max_result_bytes=settings.max_result_bytes, max_log_bytes=settings.max_log_bytes),
            specs=specs,
            outage=outage,
            subscribers=subscribers,
            payload_store=PayloadStore(settings.keyring, store, inline_bytes=settings.inline_bytes),
            jobs=jobs,
        )
        dispatchers = tuple(
            Dispatcher(queue, name, self.id, slots=slots, kept=settings.reserved_slots, run=self.worker.run_one)
            for name, slots in (
                ("invoke", settings.function_max_concurrent),
                ("build", settings.build_max_concurrent),
            )
            if name in settings.worker_queues
        )
        by_name = {dispatcher.name: dispatcher for dispatcher in dispatchers}

        def told(message: bytes) -> None:
            verb, *rest = message.decode().split(" ")
            if verb == "wake":
                # The leader wakes every worker for every queue, whatever it serves.
                if (dispatcher := by_name.get(rest[0])) is not None:
                    dispatcher.wake()
            elif verb == "watch":
                subscribers.watch(rest[0])
            elif verb == "cancel":
                for dispatcher in dispatchers:
                    dispatcher.cancel(*rest)

        warmth = Warmth(pool, versions, specs, self._engine, self._deployer.suited)

        def changed(message: bytes) -> None:
            change = Change.decode(message)
            pool.drop(lambda spec: spec.function_id == change.function and spec.version_id != change.live)
            warmth.changed()

        def look_again() -> None:
            for dispatcher in dispatchers:
                dispatcher.look_again()

        push = Push(
            self._redis.connection_pool,
            {
                f"cp:worker:{self.id}": told,
                CHANGED_CHANNEL: changed,
                REBUILT_CHANNEL: lambda _: look_again(),
            },
            # What was missed meanwhile is found by looking.
            on_standing=look_again,
        )
        drain = Drain(self._redis, jobs, consumer=self.id, queue=self._queue)
        self._open.push_async_callback(drain.leave)
        self.worker.dispatchers = dispatchers
        self.worker.loops = (
            push.loop,
            Loop(
                name="heartbeat",
                run_once=self._beat,
                interval_s=settings.heartbeat_seconds,
                retry_s=min(_RETRY_BEAT_S, settings.heartbeat_seconds),
            ),
            drain.loop,
            pool.loop,
            *((warmth.loop,) if serves_invokes else ()),
            outage.loop,
            subscribers.loop,
            Loop(name="sweep", run_once=self._sweep, interval_s=settings.sweep_seconds),
            PayloadSweep(postgres, store, self.id).loop,
            BlobSweep(postgres, blobs, store, registry, self.id).loop,
        )
        if not settings.keyring.seals:
            log.warning(NOT_SEALED)
        log.info(
            "worker started", extra={"worker": self.id, "engine": settings.engine, "queues": settings.worker_queues}
        )

    def drain(self) -> None:
        """Claim no more jobs, and begin to destroy idle sandboxes: no call will use them any more."""
        self.worker.stopping.set()
        if self._pool is not None:
            self._pool.drain()

    async def stop(self, ctx: dict[Any, Any]) -> None:
        await self._open.aclose()

    async def _invoke(self, _: dict[Any, Any], message: JobMessage, claim: Claim) -> tuple[Record, Cleanup]:
        return await self._invoker.run(message, claim)

    async def _deploy(self, _: dict[Any, Any], message: JobMessage, claim: Claim) -> tuple[Record, Cleanup]:
        return await self._deployer.run(message, claim)

    def _hold(self, holding: bool) -> None:
        for dispatcher in self.worker.dispatchers:
            dispatcher.hold(holding)

    async def _retire(self) -> None:
        try:
            await self._queue.retire(self.id)
        except Unavailable as error:
            log.warning("could not sign off", extra={"error": error.message})

    async def _beat(self) -> None:
        await self._queue.beat(self.id)
        await self._queue.report(self.id, self._figures())

    def _figures(self) -> dict[str, Any]:
        return {
            "sandboxes": self._pool.state() if self._pool is not None else {},
            "slots": {dispatcher.name: dispatcher.busy for dispatcher in self.worker.dispatchers},
            "settled": sum(dispatcher.settled for dispatcher in self.worker.dispatchers),
        }

    async def _sweep(self) -> int:
        """Remove what dead workers left on this engine, and images that are not needed; how many things."""
        now = asyncio.get_running_loop().time()
        joined = [dispatcher.joined_at for dispatcher in self.worker.dispatchers]
        # After Redis was emptied, live workers show up again with their next heartbeat, which may be up to
        # LEASE_SECONDS late before its worker counts as dead.
        if any(at is None or now - at < self._settings.lease_seconds for at in joined):
            return 0
        living = frozenset(await self._queue.beats()) | {self.id}
        state = await self._queue.generation()
        # Asked for after the beats: in a Redis that was emptied before them there is none, or another one.
        if state is None or any(dispatcher.generation != state[0] for dispatcher in self.worker.dispatchers):
            return 0
        swept = await self._engine.sweep(living) + await self._scratch.sweep()
        if swept:
            log.info("swept", extra={"things": swept})
        removed = await self._engine.collect_garbage(self._versions.standing)
        if removed:
            log.info("removed images", extra={"images": removed})
        return swept + removed


def engine_config(settings: Settings, worker: str) -> EngineConfig:
    return EngineConfig(
        installation=settings.installation_id,
        worker_id=worker,
        socket_dir=settings.socket_dir,
        data_dir=settings.data_dir,
        docker_host=settings.docker_host or None,
        base_images=settings.base_images,
        oci_runtime=settings.docker_runtime or None,
        index_hosts=settings.index_hosts,
        engine_call_timeout_s=settings.engine_timeout_seconds,
        max_container_changes=settings.engine_max_changes,
        start_timeout_s=settings.sandbox_start_timeout_seconds,
        code_cache_bytes=settings.code_cache_bytes,
        image_disk_bytes=settings.image_disk_bytes,
        # Other workers write down the images that they use with each of their sweeps: one may be late, and one fail.
        image_in_use_s=3 * settings.sweep_seconds,
        open_files=settings.function_open_files,
        egress=egress_policy(settings),
        sandbox_users=range(settings.sandbox_first_user, settings.sandbox_first_user + settings.sandbox_users),
        dockerfile=dockerfile_config(settings),
    )


def layer_registry(settings: Settings, scratch: Scratch) -> LayerRegistry | None:
    """The registry that the settings name, if any."""
    if not settings.registry_url:
        return None
    # Its library takes a sixth of a second to load: only workers that have a registry wait for it.
    from worker.build.layer_registry import LayerRegistry

    return LayerRegistry(
        settings.registry_url,
        scratch,
        user=settings.docker_registry_user,
        password=settings.docker_registry_password.get_secret_value(),
        timeout_s=settings.artifact_timeout_seconds,
    )


def dockerfile_config(settings: Settings) -> DockerfileConfig | None:
    """The bounds on builds of tenants' Dockerfiles; None while the operator has not turned them on."""
    if not settings.dockerfile_runtime:
        return None
    return DockerfileConfig(
        base_images=settings.dockerfile_base_images,
        cgroup_parent=settings.dockerfile_cgroup_parent,
        max_processes=settings.dockerfile_max_processes,
        min_free_bytes=settings.dockerfile_min_free_bytes,
    )
