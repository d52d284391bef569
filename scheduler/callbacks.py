"""Sends callbacks that are due to their receivers."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import aiohttp
import orjson
from aiohttp.abc import AbstractResolver

from scheduler.names import Names
from shared.addresses import may_be_called
from shared.callbacks.signature import signed_headers
from shared.callbacks.url import checked_url
from shared.errors import Invalid, Unavailable, Unreadable
from shared.jobs import Job
from shared.jobview import job_view
from shared.postgres.deliveries import Deliveries, Delivery, DeliveryStatus
from shared.postgres.jobs import Jobs
from shared.process import ended
from shared.settings import Settings

log = logging.getLogger(__name__)

_REPLY_BYTES = 64 * 1024
_FACTOR = 3.0
_HOLD_BEYOND_S = 15.0  # for Postgres, on both sides of a try
_UNSIGNED = "Its signing secret is sealed with a key that the server does not have; make another secret."
_GONE = 410  # the receiver wants no more of it
_THREADS = 2  # a callback at a time: a look-up may outlast its try
_USER_SHARE = 4  # of all at a time, a fourth at most are one user's


class _AddressRefused(OSError):
    """A callback was about to connect to an address that callbacks may not go to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """How one try ended; ``error`` is None if the callback was delivered."""

    http_status: int | None = None
    error: str | None = None


class Callbacks:
    """Sends callbacks. An async context manager: on leaving it breaks off the tries under way.

    A callback whose try was broken off, or whose scheduler died, stays claimed for a while. Then a scheduler sends it
    again, with the same id.

    :param resolver: finds the addresses of names; the system's if left out.
    """

    def __init__(
        self, jobs: Jobs, deliveries: Deliveries, settings: Settings, *, resolver: AbstractResolver | None = None
    ) -> None:
        self._jobs = jobs
        self._deliveries = deliveries
        self._allow = settings.callback_networks
        self._timeout_s = settings.callback_timeout_seconds
        self._max_tries = settings.callback_max_attempts
        self._retry_s = settings.callback_retry_seconds
        self._max_retry_s = settings.callback_retry_max_seconds
        self._at_once = settings.callback_concurrency
        self._max_outcome_bytes = settings.callback_max_result_bytes
        self._resolver = resolver
        self._sending: dict[asyncio.Task[DeliveryStatus | None], UUID] = {}
        self._http: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        # Every try connects anew, so that the address of each is judged.
        connector = aiohttp.TCPConnector(
            resolver=self._resolver or Names(threads=_THREADS * self._at_once),
            socket_factory=self._socket,
            use_dns_cache=False,
            force_close=True,
            limit=0,
        )
        self._http = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await ended(list(self._sending))
        await self._http.close()

    async def step(self) -> int:
        """Begin to send due callbacks, as many as there is room for; how many it began."""
        for task in [task for task in self._sending if task.done()]:
            del self._sending[task]
            task.result()
        begun = 0
        while room := self._at_once - len(self._sending):
            found = await self._deliveries.claim(
                most=room,
                most_per_user=max(1, self._at_once // _USER_SHARE),
                hold_s=self._timeout_s + _HOLD_BEYOND_S,
                sending=Counter(self._sending.values()),
            )
            for delivery in found:
                task = asyncio.create_task(self._try(delivery), name="callback")
                self._sending[task] = delivery.user_id
            begun += len(found)
            if len(found) < room:
                break
        return begun

    async def run_once(self) -> Counter[DeliveryStatus]:
        """Send due callbacks, one try each, and wait for their end; how many are in which state now."""
        await self.step()
        tasks = list(self._sending)
        found = [status for status in await asyncio.gather(*tasks) if status is not None]
        self._sending.clear()
        return Counter(found)

    async def _try(self, delivery: Delivery) -> DeliveryStatus | None:
        """Send the callback once and write down how that ended; its state then. None if Postgres did not take it or
        another try began meanwhile."""
        fields = {"delivery": str(delivery.id), "job": str(delivery.job_id), "attempt": delivery.attempts}
        try:
            job = await self._jobs.get(delivery.user_id, delivery.job_id)
            if job is None:
                return None  # deleted with its delivery
            try:
                signing = (await self._deliveries.secret(delivery.user_id)).signing
            except Unreadable:
                # A try like another: put off, it would be claimed again for as long as the key is missing.
                outcome = _Outcome(error=_UNSIGNED)
            else:
                outcome = await self._send(delivery, self._body(delivery, job), signing)
            status = self._status_after(delivery, outcome)
            noted = await self._deliveries.end(
                delivery,
                status,
                http_status=outcome.http_status,
                error=outcome.error,
                wait_s=self._wait_s(delivery.attempts) if status is DeliveryStatus.PENDING else 0,
            )
        except Unavailable as error:
            log.warning("a callback is put off", extra=fields | {"error": error.message})
            return None
        if status is DeliveryStatus.DEAD:
            log.warning("a callback is dead", extra=fields | {"error": outcome.error})
        return status if noted else None

    def _status_after(self, delivery: Delivery, outcome: _Outcome) -> DeliveryStatus:
        if outcome.error is None:
            return DeliveryStatus.DELIVERED
        if delivery.attempts >= self._max_tries or outcome.http_status == _GONE:
            return DeliveryStatus.DEAD
        return DeliveryStatus.PENDING

    def _wait_s(self, tries: int) -> float:
        """Three times as long after every try, up to a limit; a fifth more or less, so that they do not meet."""
        wait_s = min(self._retry_s * _FACTOR ** min(tries - 1, 50), self._max_retry_s)
        return wait_s * random.uniform(0.8, 1.2)  # noqa: S311 - nothing secret

    def _body(self, delivery: Delivery, job: Job) -> bytes:
        """The body: the same text at every try, since a job that ended does not change."""
        data = job_view(job)
        size = len(job.result or b"") + len(job.error or b"")
        data["result_omitted"] = size > self._max_outcome_bytes or job.missing is not None
        if data["result_omitted"]:
            data["result"] = data["error"] = None
        return orjson.dumps({"type": delivery.event, "timestamp": job.finished_at, "data": data}, default=_plain)

    async def _send(self, delivery: Delivery, body: bytes, secrets: tuple[str, ...]) -> _Outcome:
        status: int | None = None
        try:
            # aiohttp asks no resolver about an address that stands in the URL itself, so check it here.
            url = checked_url(delivery.url, self._allow)
            headers = signed_headers(str(delivery.id), int(time.time()), body, secrets)
            headers |= {"Content-Type": "application/json", "User-Agent": "ContainerPub"}
            async with self._http.post(url, data=body, headers=headers, allow_redirects=False) as response:
                status = response.status
                await _read(response)
        except Invalid as error:
            return _Outcome(error=error.message)
        except TimeoutError:
            return _Outcome(http_status=status, error=f"There was no whole answer within {self._timeout_s:g} s.")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return _Outcome(http_status=status, error=_sentence(error))
        except Exception:  # a callback that cannot be sent must become dead, and not hold up the others
            log.exception("a callback cannot be sent", extra={"delivery": str(delivery.id)})
            return _Outcome(http_status=status, error="It could not be sent.")
        if not 200 <= status < 300:
            return _Outcome(http_status=status, error=f"It was answered with {status}.")
        return _Outcome(http_status=status)

    def _socket(self, info: Any) -> socket.socket:
        """A socket for the address that a name led to, if callbacks may go to it. aiohttp connects to exactly this
        address, so a second look-up cannot change it."""
        family, kind, protocol, _, address = info
        if not may_be_called(address[0], self._allow):
            raise _AddressRefused("the address is not a public one")
        made = socket.socket(family, kind, protocol)
        made.setblocking(False)
        return made


async def _read(response: aiohttp.ClientResponse) -> None:
    """Read an answer up to a limit, and close the connection if there is more."""
    left = _REPLY_BYTES
    while left > 0 and (chunk := await response.content.read(left)):
        left -= len(chunk)
    if left <= 0:
        response.close()


def _sentence(error: Exception) -> str:
    """What the owner reads of a try that failed; it tells nothing of the network behind a name."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, _AddressRefused) or "not a public one" in str(cause):
            return "The address of its host is not a public one."
        cause = cause.__cause__
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "Its host has no address."
    if isinstance(error, aiohttp.ClientSSLError):
        return "TLS failed: the certificate is not valid, or no TLS is spoken there."
    if isinstance(error, aiohttp.ClientConnectorError):
        return "Nothing at its address accepted the connection."
    return f"The connection broke: {type(error).__name__}."


def _plain(value: object) -> str:
    # asyncpg's UUIDs are a subclass, and orjson takes only the class itself.
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
