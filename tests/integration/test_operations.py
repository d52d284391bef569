"""What every operation declares holds before its body is looked at: who may call it, with what scope, with how much."""

from __future__ import annotations

import asyncio
import gzip
import io
import threading
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from http.client import HTTPConnection

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from api import keys
from api.accounts import Accounts, Caller
from api.app import OPERATIONS
from api.operation import Operation
from api.session import allowed
from shared.errors import Forbidden, http_status
from shared.ids import new_id
from shared.postgres.pool import Pool
from shared.postgres.users import User, Users
from shared.queue.queue import Queue
from shared.scopes import ALL_SCOPES, Scope
from shared.settings import load
from tests.client import Answer, Client
from tests.deployment import Platform
from tests.integration.conftest import StartApi

HOSTILE = b"[" + b"[]," * 2_000_000 + b"[]]"
"""Six megabytes that take more than a second to look through, value by value."""
FILLED = {name: str(new_id()) for name in ("function", "job", "delivery")} | {"number": "1"}
PUBLIC = {"register", "login", "refresh", "health", "ready", "metrics", "openapi"}
SMALL = {"register", "login", "refresh", "cancel_job", "cancel_jobs", "redrive_job", "redrive_jobs", "stop_function"}


def named(operation: Operation) -> str:
    return operation.handler.__name__


def path_of(operation: Operation) -> str:
    return operation.path.format(**FILLED)


@pytest.fixture
async def api(start_api: StartApi) -> Platform:
    """An API process that nothing else calls."""
    return await start_api({})


@pytest.fixture
async def client(api: Platform) -> AsyncIterator[Client]:
    async with api.client() as client:
        yield await client.register()


async def send(client: Client, operation: Operation, body: bytes, *, token: str, packed: bool = False) -> Answer:
    headers = {"Content-Type": "application/json"} | ({"Content-Encoding": "gzip"} if packed else {})
    return await client.call(operation.method, path_of(operation), data=io.BytesIO(body), headers=headers, token=token)


def test_only_these_operations_are_public() -> None:
    assert {named(operation) for operation in OPERATIONS if operation.public} == PUBLIC
    assert {operation.scope for operation in OPERATIONS} == {*Scope, None}


def test_public_operations_that_change_something_count_against_their_address() -> None:
    assert {named(operation) for operation in OPERATIONS if operation.rated} == {"register", "login", "refresh"}


def test_operations_whose_body_is_small_or_empty_take_no_more_than_four_kilobytes() -> None:
    settings = load({})
    limits = {named(operation): operation.limit.most(settings) for operation in OPERATIONS}
    assert {limits[name] for name in SMALL} == {4096}
    assert {name for name, most in limits.items() if most > 4096} == {"invoke", "invoke_batch", "deploy"}
    assert limits["invoke"] == settings.max_body_bytes


async def answer_to_head(api: Platform, operation: Operation, size: int, authorization: bytes) -> Answer:
    """What an operation answers to the head of a request with a body of ``size`` bytes, none of which is sent."""
    host, port = api.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"{operation.method} {path_of(operation)} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n".encode()
        + b"Content-Type: application/json\r\n"
        + (b"Authorization: " + authorization + b"\r\n" if authorization else b"")
        + b"\r\n"
    )
    status, *lines = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    body = await asyncio.wait_for(reader.readexactly(int(headers["content-length"])), 10)
    writer.close()
    return Answer(int(status.split()[1]), headers, body)


async def test_every_operation_asks_for_a_credential_before_its_body_comes(api: Platform) -> None:
    for operation in OPERATIONS:
        if not operation.public:
            for authorization in (b"", b"Bearer not.a.token", b"Basic eDp5", b"Bearer \xff\xfe\x80"):
                answer = await answer_to_head(api, operation, 100, authorization)
                assert answer.status == 401, (named(operation), authorization, answer)


async def test_every_operation_refuses_too_large_a_body_before_it_comes(client: Client, api: Platform) -> None:
    settings = load({})
    for operation in OPERATIONS:
        size = operation.limit.most(settings) + 1
        answer = await answer_to_head(api, operation, size, f"Bearer {client.token}".encode())
        assert (answer.status, answer.json["code"]) == (413, operation.limit.code), (named(operation), answer)


async def test_a_body_that_unpacks_to_too_much_is_refused_before_it_is_parsed(client: Client) -> None:
    packed = gzip.compress(b"{" * 100_000)
    for operation in OPERATIONS:
        if named(operation) in SMALL - {"stop_function"}:  # which reads no body at all
            answer = await send(client, operation, packed, token=client.token or "", packed=True)
            if operation.body is not None or any(one.where == "query" for one in operation.parameters):
                assert answer.status == 413, (named(operation), answer)


async def test_metrics_token_that_is_not_utf_8_is_401(start_api: StartApi) -> None:
    guarded = await start_api({"METRICS_TOKEN": "secret-of-metrics"})
    (metrics,) = (operation for operation in OPERATIONS if named(operation) == "metrics")
    assert (await answer_to_head(guarded, metrics, 0, b"Bearer \xff\xfe")).status == 401


async def test_credential_of_another_scope_is_refused_with_403(pool: Pool, queue: Queue) -> None:
    user = User(id=new_id(), email="a@example.com", username="abc", created_at=new_time())

    class Narrow(Accounts):
        """Accounts whose credentials allow what they say, as those for machines will."""

        async def authenticate(self, authorization: str | None) -> Caller:
            scopes = frozenset(Scope(name) for name in (authorization or "").split())
            return Caller(user=user, session=new_id(), scopes=scopes)

    async def serve(request: web.Request) -> web.Response:
        try:
            await allowed(request, Scope(request.match_info["scope"]))
        except Forbidden as error:
            return web.Response(status=http_status(error), text=error.code)
        return web.Response(status=204)

    settings = load({})
    app = web.Application()
    app[keys.ACCOUNTS] = Narrow(Users(pool), queue, settings)
    app.router.add_get("/{scope}", serve)
    async with TestClient(TestServer(app)) as client:
        for held in Scope:
            for asked in Scope:
                async with client.get(f"/{asked}", headers={"Authorization": held}) as answer:
                    assert answer.status == (204 if held is asked else 403)
        async with client.get("/deploy", headers={"Authorization": " ".join(ALL_SCOPES)}) as answer:
            assert answer.status == 204
    app[keys.ACCOUNTS].close()


def new_time() -> datetime:
    return datetime.now(UTC)


async def test_public_calls_of_one_address_are_limited_where_a_rate_is_set(start_api: StartApi) -> None:
    rated = await start_api({"RATE_PER_SECOND_PER_ADDRESS": "0.01", "RATE_BURST_PER_ADDRESS": "2"})
    async with rated.client() as client:
        body = {"email": "nobody@example.com", "password": "wrong"}
        answers = [await client.call("POST", "/api/auth/login", json=body) for _ in range(3)]
        assert [answer.status for answer in answers] == [401, 401, 429]
        assert answers[2].json["code"] == "rate_limited"
        assert int(answers[2].headers["Retry-After"]) > 0
        assert (await client.call("GET", "/api/health")).status == 200


@pytest.mark.alone
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
async def test_hostile_bodies_without_a_token_are_refused_and_nobody_waits_for_them(
    client: Client, api: Platform, packed: bool
) -> None:
    body = gzip.compress(HOSTILE) if packed else HOSTILE
    hostile = [one for one in OPERATIONS if named(one) in ("login", "cancel_job", "redrive_jobs", "invoke")]
    quiet = await neighbour(client, 200)
    enough = threading.Event()

    def attack() -> set[int]:
        """At least twenty of them, one after the other, for as long as the neighbour calls."""
        seen, sent = set(), 0
        while sent < 20 or not enough.is_set():
            seen.add(post(api, hostile[sent % len(hostile)], body, packed=packed))
            sent += 1
        return seen

    attacking = asyncio.create_task(asyncio.to_thread(attack))
    beside = await neighbour(client, 200)
    enough.set()
    assert await attacking <= {401, 413}
    # One that was parsed took more than a second, in which every neighbour waited.
    assert p99(beside) < max(0.05, 8 * p99(quiet)), (p99(quiet), sorted(beside)[-5:])


async def neighbour(client: Client, calls: int) -> list[float]:
    """How long some small calls took, in seconds."""
    took = []
    for _ in range(calls):
        started = time.perf_counter()
        assert (await client.call("GET", "/api/auth/me")).status == 200
        took.append(time.perf_counter() - started)
    return took


def post(api: Platform, operation: Operation, body: bytes, *, packed: bool) -> int:
    """The status of a call without a token, by a client that blocks, apart from the loop that takes the times."""
    host, port = api.url.removeprefix("http://").split(":")
    connection = HTTPConnection(host, int(port), timeout=10)
    headers = {"Content-Type": "application/json"} | ({"Content-Encoding": "gzip"} if packed else {})
    try:
        connection.request(operation.method, path_of(operation), body=body, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def p99(values: list[float]) -> float:
    return sorted(values)[len(values) * 99 // 100 - 1]
