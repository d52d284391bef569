"""The application: its parts, in the order in which they are opened, and its routes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from importlib.metadata import version as installed_version

from aiohttp import web

from api import keys
from api.accounts import Accounts
from api.admission import Admission
from api.middleware import around
from api.openapi import document
from api.operation import Operation
from api.pending_replies import PendingReplies
from api.resolver import Resolver
from api.routes import (
    accounts,
    batch,
    deliveries,
    deploy,
    events,
    functions,
    invoke,
    jobs,
    operations,
    records,
    redrive,
    versions,
)
from api.subscriptions import Subscriptions
from shared.artifacts import open_store, store_config
from shared.ids import new_id
from shared.loop import Loop, Loops
from shared.payload_store import PayloadStore
from shared.postgres.blobs import Blobs
from shared.postgres.deliveries import Deliveries
from shared.postgres.functions import Functions
from shared.postgres.invocations import Invocations
from shared.postgres.jobs import Jobs
from shared.postgres.migrate import check_schema
from shared.postgres.pool import close_pool, open_pool, postgres_errors
from shared.postgres.submissions import Submissions
from shared.postgres.users import Users
from shared.postgres.versions import Versions
from shared.queue.connection import connect, refuse_evicting_policy
from shared.queue.push import Push
from shared.queue.queue import CHANGED_CHANNEL, EVENTS_CHANNEL, FINAL_CHANNEL, OPENED_CHANNEL, Queue
from shared.scratch import Scratch
from shared.settings import Settings
from shared.submission.submitter import Submitter

log = logging.getLogger(__name__)

_RECHECK_AGAIN_S = 1.0

VERSION = installed_version("containerpub")

OPERATIONS: tuple[Operation, ...] = (
    *accounts.OPERATIONS,
    *deploy.OPERATIONS,
    *functions.OPERATIONS,
    *versions.OPERATIONS,
    *invoke.OPERATIONS,
    *batch.OPERATIONS,
    *jobs.OPERATIONS,
    *redrive.OPERATIONS,
    *deliveries.OPERATIONS,
    *events.OPERATIONS,
    *records.OPERATIONS,
    *operations.OPERATIONS,
)


def build_app(settings: Settings) -> web.Application:
    """The application for ``settings``; opens nothing until it is started."""
    # aiohttp's one limit applies to JSON bodies; a deploy bounds its parts as it reads them.
    app = web.Application(middlewares=[around], client_max_size=settings.max_body_bytes)
    app[keys.SETTINGS] = settings
    app[keys.KEYRING] = settings.keyring
    app[keys.CORS_ORIGINS] = frozenset(settings.cors_origins)
    app[keys.VERSION] = VERSION
    app[keys.LEAVING] = asyncio.Event()
    app[keys.API_ID] = new_id().hex
    app[keys.LOOPS] = Loops()
    app[keys.OPENAPI] = document(OPERATIONS, version=app[keys.VERSION], server=settings.public_url)
    app.on_shutdown.append(_end_subscriptions)
    app.cleanup_ctx.extend((_store, _postgres, _queue))
    for operation in OPERATIONS:
        app.router.add_route(operation.method, operation.path, operation.serve)
    return app


async def _end_subscriptions(app: web.Application) -> None:
    app[keys.SUBSCRIPTIONS].stop()


async def _postgres(app: web.Application) -> AsyncIterator[None]:
    settings = app[keys.SETTINGS]
    pool = await open_pool(
        settings.database_url.get_secret_value(),
        size=settings.database_pool_size,
        timeout_s=settings.dependency_timeout_seconds,
        name="api",
    )
    with postgres_errors():
        async with pool.acquire() as connection:
            await check_schema(connection)
    app[keys.POOL] = pool
    app[keys.FUNCTIONS] = Functions(pool)
    app[keys.VERSIONS] = Versions(pool)
    app[keys.BLOBS] = Blobs(pool)
    app[keys.JOBS] = Jobs(pool, app[keys.PAYLOAD_STORE])
    app[keys.INVOCATIONS] = Invocations(pool, app[keys.KEYRING])
    app[keys.DELIVERIES] = Deliveries(pool, settings.keyring)
    app[keys.RESOLVER] = Resolver(app[keys.FUNCTIONS])
    yield
    await close_pool(pool)


async def _store(app: web.Application) -> AsyncIterator[None]:
    app[keys.SCRATCH] = Scratch(app[keys.SETTINGS].data_dir)
    await app[keys.SCRATCH].open()
    store = app[keys.STORE] = await open_store(store_config(app[keys.SETTINGS]))
    app[keys.PAYLOAD_STORE] = PayloadStore(app[keys.KEYRING], store, inline_bytes=app[keys.SETTINGS].inline_bytes)
    yield
    await app[keys.STORE].close()
    await app[keys.SCRATCH].close()


async def _queue(app: web.Application) -> AsyncIterator[None]:
    settings = app[keys.SETTINGS]
    redis = connect(settings.redis_url.get_secret_value(), timeout_s=settings.dependency_timeout_seconds)
    await refuse_evicting_policy(redis)
    queue = app[keys.QUEUE] = Queue(
        redis,
        max_stream_backlog=settings.max_stream_backlog,
        max_running_per_user=settings.max_running_per_user,
        keyring=app[keys.KEYRING],
    )
    pending, resolver = PendingReplies(), app[keys.RESOLVER]
    app[keys.PENDING_REPLIES] = pending
    subscriptions = app[keys.SUBSCRIPTIONS] = Subscriptions(
        queue, pending, app[keys.KEYRING], most_of_user=settings.max_event_streams_per_user
    )

    def back() -> None:
        pending.connection_back()
        subscriptions.connection_back()
        resolver.forget_all()

    recheck = Loop(
        name="recheck",
        run_once=lambda: pending.rebuilt(lambda jobs: queue.present("invoke", jobs)),
        interval_s=None,
        retry_s=_RECHECK_AGAIN_S,
    )
    push = Push(
        redis.connection_pool,
        {
            f"cp:reply:{app[keys.API_ID]}": pending.replied,
            FINAL_CHANNEL: pending.ended,
            EVENTS_CHANNEL: subscriptions.heard,
            CHANGED_CHANNEL: resolver.changed,
            OPENED_CHANNEL: lambda _: recheck.wake.set(),
        },
        on_standing=back,
        on_loss=pending.connection_lost,
    )
    submissions = Submissions(app[keys.POOL])
    app[keys.ADMISSION] = Admission(submissions, queue, max_queued=settings.max_queued_per_user)
    app[keys.SUBMITTER] = Submitter(
        submissions, app[keys.JOBS], queue, app[keys.PAYLOAD_STORE], patience_s=settings.dependency_timeout_seconds
    )
    app[keys.ACCOUNTS] = Accounts(Users(app[keys.POOL]), queue, settings)
    loops = app[keys.LOOPS]
    loops.start(push.loop, subscriptions.loop, recheck)
    yield
    await app[keys.SUBMITTER].close()
    app[keys.ACCOUNTS].close()
    await loops.stop()
    await queue.aclose()
    await redis.aclose()
