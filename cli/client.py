"""One HTTP exchange with the server, repeated where repeating is safe; every failure crosses into :mod:`cli.errors`.

A GET is repeated after a broken connection and after 502, 503 and 504. Anything else is repeated only if the connection
was never made: the server may have acted on a request whose answer was lost.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import IO, Any, Self

import aiohttp
from yarl import URL

from cli.archive import Archive
from cli.errors import ApiError, Unreachable

MAX_TRIES = 4
FIRST_DELAY_S = 0.2
MAX_RETRY_AFTER_S = 30.0
CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 60.0
UPLOAD_TIMEOUT_S = 900.0
MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_EVENT_BYTES = 16 * 1024 * 1024
RETRIED_STATUSES = frozenset({502, 503, 504})

ARCHIVE_TYPE = "application/gzip"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A multipart body: text fields, then the archive."""

    fields: Mapping[str, str]
    archive: Archive

    def form(self, content: IO[bytes]) -> aiohttp.FormData:
        form = aiohttp.FormData(default_to_multipart=True)
        for name, value in self.fields.items():
            form.add_field(name, value)
        form.add_field("archive", content, filename="archive.tar.gz", content_type=ARCHIVE_TYPE)
        return form


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """``path`` is percent-encoded. ``wait_s``: how long the server may take on purpose before it answers."""

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, object] | None = None
    upload: Upload | None = None
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """``document`` is the object in the body; empty for an empty body."""

    http_status: int
    document: dict[str, Any]


def retry_delay_s(retries: int, *, jitter: float, retry_after_s: float | None = None) -> float:
    """How long to wait after ``retries`` retries: doubling, spread over its upper half by ``jitter`` in
    [0, 1), and never less than the server asked for."""
    spread = FIRST_DELAY_S * 2.0**retries * (0.5 + jitter / 2)
    return max(spread, retry_after_s or 0.0)


def parse_retry_after(value: str | None, *, now: datetime) -> float | None:
    """Seconds in a ``Retry-After`` header, which is a number or a date; ``None`` when there is none to be read."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now.timestamp())


class Client:
    """Speaks to ``api_url``. Redirects are not followed: they would carry the token elsewhere."""

    def __init__(
        self,
        api_url: str,
        *,
        jitter: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.api_url = api_url
        self._jitter = jitter
        self._sleep = sleep
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(
            headers={"User-Agent": "containerpub-cli", "Accept": "application/json"},
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._http is not None:
            await self._http.close()

    async def send(self, request: Request, *, token: str | None) -> Answer:
        """The server's answer below 400. Raises :class:`ApiError` for others, :class:`Unreachable` without one."""
        retries = 0
        while True:
            try:
                return await self._exchange(request, token)
            except Unreachable as error:
                if not (request.method == "GET" or error.before_sending) or retries + 1 >= MAX_TRIES:
                    raise
                delay = retry_delay_s(retries, jitter=self._jitter())
            except ApiError as error:
                asked = error.retry_after_s
                if request.method != "GET" or error.http_status not in RETRIED_STATUSES or retries + 1 >= MAX_TRIES:
                    raise
                if asked is not None and asked > MAX_RETRY_AFTER_S:
                    raise
                delay = retry_delay_s(retries, jitter=self._jitter(), retry_after_s=asked)
            await self._sleep(delay)
            retries += 1

    async def check_server(self) -> None:
        """Raise :class:`Unreachable` unless a ContainerPub server answers at ``api_url``."""
        try:
            answer = await self.send(Request(method="GET", path="/api/health"), token=None)
        except ApiError as error:
            if error.http_status in RETRIED_STATUSES:
                raise
            raise _stranger(self.api_url, error.http_status) from error
        if not {"status", "version", "engine"} <= answer.document.keys():
            raise _stranger(self.api_url, answer.http_status)

    async def _exchange(self, request: Request, token: str | None) -> Answer:
        if self._http is None:
            raise RuntimeError("the client is not open")
        headers = dict(request.headers)
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        timeout = aiohttp.ClientTimeout(
            total=UPLOAD_TIMEOUT_S if request.upload else None,
            sock_connect=CONNECT_TIMEOUT_S,
            sock_read=ANSWER_TIMEOUT_S + request.wait_s,
        )
        with self._failures():
            async with AsyncExitStack() as stack:
                form = None
                if request.upload is not None:
                    form = request.upload.form(stack.enter_context(request.upload.archive.reader()))
                response = await stack.enter_async_context(
                    self._http.request(
                        request.method,
                        URL(self.api_url + request.path, encoded=True),
                        params=request.params or None,
                        headers=headers,
                        data=form,
                        json=request.body,
                        timeout=timeout,
                        allow_redirects=False,
                    )
                )
                return _answer(response, await _read(response), self.api_url)

    async def stream(self, request: Request, *, token: str | None) -> AsyncIterator[tuple[str, str, dict[str, Any]]]:
        """The Server-Sent Events of an answer: name, id and data of each. It may end at any time.

        Raises as :meth:`send`, and never repeats the request.
        """
        if self._http is None:
            raise RuntimeError("the client is not open")
        headers = {**request.headers, "Accept": "text/event-stream"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=ANSWER_TIMEOUT_S)
        url = URL(self.api_url + request.path, encoded=True)
        with self._failures():
            async with self._http.get(
                url, headers=headers, timeout=timeout, allow_redirects=False, read_bufsize=MAX_EVENT_BYTES
            ) as response:
                if response.status != 200 or response.content_type != "text/event-stream":
                    _answer(response, await _read(response), self.api_url)
                    return
                name, event_id, data = "", "", ""
                async for raw in response.content:
                    field_name, _, value = raw.decode("utf-8", "replace").rstrip("\r\n").partition(":")
                    value = value.removeprefix(" ")
                    if field_name == "event":
                        name = value
                    elif field_name == "id":
                        event_id = value
                    elif field_name == "data":
                        data += value
                    elif not field_name and data:
                        yield name, event_id, _object(data, self.api_url)
                        name, event_id, data = "", "", ""

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Turns errors of a connection into :class:`Unreachable`."""
        try:
            yield
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
            raise Unreachable(
                f"{self.api_url} does not prove who it is: {error}.", hint="Check API_URL and the server's certificate."
            ) from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Unreachable(
                f"{self.api_url} cannot be reached: {_reason(error)}.",
                hint="Start a server with `containerpub up`, or set API_URL to one that runs.",
                before_sending=True,
            ) from error
        except TimeoutError as error:
            raise Unreachable(f"{self.api_url} did not answer in time.", hint="Try again later.") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unreachable(
                f"The connection to {self.api_url} broke: {_reason(error)}.", hint="Try again; see the server's log."
            ) from error


def _stranger(api_url: str, http_status: int) -> Unreachable:
    return Unreachable(
        f"What answers at {api_url} (with HTTP status {http_status}) is no ContainerPub server, or a proxy before one.",
        hint="Set API_URL to the address of your server, or start one with `containerpub up`.",
    )


def _object(text: str, api_url: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Unreachable(f"{api_url} did not answer as a ContainerPub server.", hint="Check API_URL.")
    return value


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise Unreachable(f"The server's answer is larger than {MAX_ANSWER_BYTES // 1024 // 1024} MB.")
    return bytes(body)


def _answer(response: aiohttp.ClientResponse, body: bytes, api_url: str) -> Answer:
    status = response.status
    document: object = None
    readable = True
    try:
        document = json.loads(body) if body else {}
    except (ValueError, RecursionError):
        readable = False
    if status >= 400:
        problem = document if isinstance(document, dict) else {}
        if status < 500 and "code" not in problem:
            raise _stranger(api_url, status)
        retry_after = parse_retry_after(response.headers.get("Retry-After"), now=datetime.now(UTC))
        raise ApiError(http_status=status, problem=problem, retry_after_s=retry_after)
    if 300 <= status < 400:
        raise Unreachable(
            f"{api_url} sends requests on to {response.headers.get('Location', 'another place')}.",
            hint="Set API_URL to the address it names.",
        )
    if not readable or not isinstance(document, dict):
        raise _stranger(api_url, status)
    return Answer(http_status=status, document=document)


def _reason(error: BaseException) -> str:
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, ConnectionRefusedError):
        return "nothing listens there"
    text = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
    return text or type(cause).__name__
