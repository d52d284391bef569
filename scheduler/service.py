"""The scheduler process: one leader at a time keeps the queue whole."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from redis.asyncio import Redis

from scheduler.callbacks import Callbacks
from scheduler.conserve import SHARE, Conserve
from scheduler.due import Due
from scheduler.expire import Expiry
from scheduler.leader import Leader
from scheduler.lease_reaper import LeaseReaper
from scheduler.rebuild import Rebuild
from scheduler.reconcile import Reconciler
from scheduler.retention import Kept, Retention
from scheduler.stopped import StoppedFunctions
from shared.errors import Misconfigured
from shared.ids import new_id
from shared.loop import Loop, Loops
from shared.postgres.deliveries import Deliveries
from shared.postgres.functions import Functions
from shared.postgres.jobs import Jobs
from shared.postgres.migrate import check_schema
from shared.postgres.pool import Pool, close_pool, open_pool, postgres_errors
from shared.postgres.queries import queries
from shared.queue.connection import connect, refuse_evicting_policy
from shared.queue.conservation import Conservation
from shared.queue.drain import Drain
from shared.queue.queue import Queue
from shared.settings import Settings

log = logging.getLogger(__name__)

_LOOK_S = 0.5
_PARTITIONS_S = 3600.0
_COUNTED = 1000
_DUE_S = 0.25
_EXPIRY_S = 1.0
_RETENTION_S = 60.0
_STOPPED_S = 1.0
_CALLBACKS_S = 0.25
_POLICY_S = 10.0


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    pool = await open_pool(
        settings.database_url.get_secret_value(),
        size=settings.database_pool_size,
        timeout_s=settings.dependency_timeout_seconds,
        name="scheduler",
    )
    redis = connect(settings.redis_url.get_secret_value(), timeout_s=settings.dependency_timeout_seconds)
    queue = Queue(redis)
    stop = asyncio.Event()
    stack = AsyncExitStack()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        with postgres_errors():
            async with pool.acquire() as connection:
                await check_schema(connection)
        await refuse_evicting_policy(redis)
        jobs = Jobs(pool, keyring=settings.keyring)
        holder = f"{socket.gethostname()[:32]}-{os.getpid()}-{new_id().hex[-8:]}"
        leader = Leader(pool, holder, life_s=settings.leader_seconds)
        drain = Drain(redis, jobs, consumer=f"scheduler-{holder}", queue=queue)
        rebuild = Rebuild(redis, queue, jobs, pool)
        lease_reaper = LeaseReaper(queue, lease_s=settings.lease_seconds, max_lost=settings.max_lost_deliveries)
        reconciler = Reconciler(queue, jobs, drain)
        due = Due(queue, jobs)
        expiry = Expiry(queue, jobs)
        conserve = Conserve(queue, Conservation(redis, queue, pool, share=SHARE), every_s=settings.conservation_seconds)
        kept = Kept(
            result_days=settings.result_days, redrive_days=settings.redrive_days, record_days=settings.record_days
        )
        retention = Retention(pool, kept)
        stopped = StoppedFunctions(queue, Functions(pool))
        callbacks = await stack.enter_async_context(Callbacks(jobs, Deliveries(pool, settings.keyring), settings))

        def leading(name: str, run_once: Callable[[], Awaitable[object]], every_s: float) -> Loop:
            return Loop(name=name, run_once=run_once, interval_s=every_s, active=lambda: leader.leading)

        loops = Loops()
        loops.start(
            leader.loop,
            leading("rebuild", rebuild.keep_open, _LOOK_S),
            leading("observer", lease_reaper.run_once, min(1.0, settings.lease_seconds / 5)),
            leading("reconciler", reconciler.run_once, settings.reconcile_seconds),
            leading("due", due.run_once, _DUE_S),
            leading("expiry", expiry.run_once, _EXPIRY_S),
            leading("stopped", stopped.run_once, _STOPPED_S),
            leading("conservation", conserve.run_once, settings.conservation_seconds),
            leading("callbacks", callbacks.step, _CALLBACKS_S),
            leading("retention", retention.run_once, _RETENTION_S),
            leading("policy", lambda: watch_policy(redis), _POLICY_S),
            leading("partitions", lambda: make_partitions(pool), _PARTITIONS_S),
        )
        try:
            await loops.until(stop)
        finally:
            await loops.stop()
        await leader.resign()
    finally:
        await stack.aclose()
        await queue.aclose()
        await redis.aclose()
        await close_pool(pool)


async def make_partitions(pool: Pool) -> int:
    """Make the partitions for the records of the coming months; how many were new.

    Records of other months, which a process with a wrong clock accepted, are kept and logged as an error."""
    sql = queries("leases")
    with postgres_errors():
        made = int(await pool.fetchval(sql["make_partitions"]))
        astray = int(await pool.fetchval(sql["count_without_month"], _COUNTED))
    if astray:
        log.error(
            "records are months away from now: an API process's clock is wrong, or was",
            extra={"at_least": astray},
        )
    return made


async def watch_policy(redis: Redis) -> None:
    """Log an error as long as Redis is set to evict keys. An operator may set that after all processes started, whose
    check at the start then saw nothing; Redis loses queued jobs by it."""
    try:
        await refuse_evicting_policy(redis)
    except Misconfigured as error:
        log.error("jobs may be lost", extra={"error": error.message})
