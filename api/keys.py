"""The keys under which the application holds its parts."""

from __future__ import annotations

import asyncio

from aiohttp import web

from api.accounts import Accounts
from api.admission import Admission
from api.pending_replies import PendingReplies
from api.resolver import Resolver
from api.subscriptions import Subscriptions
from shared.artifacts import ArtifactStore
from shared.loop import Loops
from shared.payload_store import PayloadStore
from shared.postgres.blobs import Blobs
from shared.postgres.deliveries import Deliveries
from shared.postgres.functions import Functions
from shared.postgres.invocations import Invocations
from shared.postgres.jobs import Jobs
from shared.postgres.pool import Pool
from shared.postgres.versions import Versions
from shared.queue.queue import Queue
from shared.scratch import Scratch
from shared.sealing import Keyring
from shared.settings import Settings
from shared.submission.submitter import Submitter

REQUEST_ID = "containerpub.request_id"
RATE_HEADERS = "containerpub.rate_headers"

SETTINGS = web.AppKey("settings", Settings)
VERSION = web.AppKey("version", str)
OPENAPI = web.AppKey("openapi", bytes)
LEAVING = web.AppKey("leaving", asyncio.Event)  # set once the process was told to stop
API_ID = web.AppKey("api_id", str)  # names this process's reply channel
POOL: web.AppKey[Pool] = web.AppKey("pool")
CORS_ORIGINS: web.AppKey[frozenset[str]] = web.AppKey("cors_origins")
QUEUE = web.AppKey("queue", Queue)
KEYRING = web.AppKey("keyring", Keyring)
PAYLOAD_STORE = web.AppKey("texts", PayloadStore)
ACCOUNTS = web.AppKey("accounts", Accounts)
FUNCTIONS = web.AppKey("functions", Functions)
VERSIONS = web.AppKey("versions", Versions)
BLOBS = web.AppKey("blobs", Blobs)
JOBS = web.AppKey("jobs", Jobs)
INVOCATIONS = web.AppKey("invocations", Invocations)
DELIVERIES = web.AppKey("deliveries", Deliveries)
STORE: web.AppKey[ArtifactStore] = web.AppKey("store")
SCRATCH = web.AppKey("scratch", Scratch)
RESOLVER = web.AppKey("resolver", Resolver)
ADMISSION = web.AppKey("admission", Admission)
SUBMITTER = web.AppKey("submitter", Submitter)
SUBSCRIPTIONS = web.AppKey("subscriptions", Subscriptions)
LOOPS = web.AppKey("loops", Loops)
PENDING_REPLIES = web.AppKey("waiting", PendingReplies)
