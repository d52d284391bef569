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
from shared.errors import Misconfigured, Unavailable
from shared.ids import new_id
from shared.postgres.deliveries import Deliveries
from shared.postgres.functions import Functions
from shared.postgres.jobs import Jobs
from shared.postgres.migrate import check_schema
from shared.postgres.pool import Pool, close_pool, open_pool, postgres_errors
from shared.postgres.queries import queries
from shared.postgres.submissions import Submissions
from shared.process import ended
from shared.queue.connection import connect, refuse_evicting_policy
from shared.queue.conservation import Conservation
from shared.queue.drain import Drain
from shared.queue.queue import Queue
from shared.queue.scripts import QueueClosed
from shared.settings import Settings

log = logging.getLogger(__name__)

_LOOK_S = 0.5
_PARTITIONS_S = 3600.0
_EXPIRE_S = 60.0
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

        async def keep_open() -> None:
            if await rebuild.needed():
                await rebuild.run_once()

        loops = {
            "leader": leader.run(),
            "rebuild": _while_leading(leader, keep_open, every_s=_LOOK_S),
            "observer": _while_leading(leader, lease_reaper.run_once, every_s=min(1.0, settings.lease_seconds / 5)),
            "reconciler": _while_leading(leader, reconciler.run_once, every_s=settings.reconcile_seconds),
            "due": _while_leading(leader, due.run_once, every_s=_DUE_S),
            "expiry": _while_leading(leader, expiry.run_once, every_s=_EXPIRY_S),
            "stopped": _while_leading(leader, stopped.run_once, every_s=_STOPPED_S),
            "conservation": _while_leading(leader, conserve.run_once, every_s=settings.conservation_seconds),
            "callbacks": _while_leading(leader, callbacks.step, every_s=_CALLBACKS_S),
            "idempotency": _while_leading(leader, Submissions(pool).expire_keys, every_s=_EXPIRE_S),
            "retention": _while_leading(leader, retention.run_once, every_s=_RETENTION_S),
            "policy": _while_leading(leader, lambda: watch_policy(redis), every_s=_POLICY_S),
            "partitions": _while_leading(leader, lambda: make_partitions(pool), every_s=_PARTITIONS_S),
        }
        tasks = [asyncio.create_task(loop, name=name) for name, loop in loops.items()]
        stopping = asyncio.create_task(stop.wait(), name="stopping")
        done, _ = await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
        await ended([*tasks, stopping])
        for task in done - {stopping}:
            log.error("a loop ended", extra={"loop": task.get_name()})
            task.result()
        await leader.resign()
    finally:
        await stack.aclose()
        await queue.aclose()
        await redis.aclose()
        await close_pool(pool)


async def make_partitions(pool: Pool) -> int:
    """Months of records ahead of time; how many were made."""
    with postgres_errors():
        return int(await pool.fetchval(queries("leases")["make_partitions"]))


async def watch_policy(redis: Redis) -> None:
    """Say so again and again where Redis was told to evict keys after everybody had started: it loses queued jobs then,
    and whoever starts anew refuses to."""
    try:
        await refuse_evicting_policy(redis)
    except Misconfigured as error:
        log.error("jobs may be lost", extra={"error": error.message})


async def _while_leading(leader: Leader, work: Callable[[], Awaitable[object]], *, every_s: float) -> None:
    while True:
        if leader.leading:
            try:
                await work()
            except (Unavailable, QueueClosed) as error:
                log.warning("put off", extra={"error": str(error)})
            await asyncio.sleep(every_s)
        else:
            await asyncio.sleep(min(every_s, _LOOK_S))
