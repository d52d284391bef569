"""The HTTP server under attack: requests that never end, that lie about their length, that unpack to gigabytes."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import psutil
import pytest

from tests.client import Answer, Client
from tests.deployment import Platform
from tests.integration.conftest import StartApi, listening

SLOW = "def handler(event, context):\n    import time\n    time.sleep(event['body'])\n"
REQUEST_TIMEOUT_S = 1.0
CLOSED_WITHIN_S = 3.0  # the time, a look every quarter of it, and a slow machine


@pytest.fixture
async def client(shared_platform: Platform) -> AsyncIterator[Client]:
    async with shared_platform.client() as client:
        yield await client.register()


@pytest.fixture(scope="module")
def impatient(shared_platform: Platform) -> Iterator[Platform]:
    """A second API of the shared platform, which waits one second for a request to arrive."""
    env = shared_platform.env
    alone = Platform(
        database_url=env["DATABASE_URL"],
        redis_url=env["REDIS_URL"],
        engine="process",
        env={"REQUEST_TIMEOUT_SECONDS": str(REQUEST_TIMEOUT_S), "FUNCTIONS_DIR": env["FUNCTIONS_DIR"]},
    )
    alone.start("api")
    try:
        asyncio.run(listening(alone))
        yield alone
    finally:
        asyncio.run(alone.stop())


class Wire:
    """A raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *data: bytes) -> None:
        self.writer.write(b"".join(data))
        await self.writer.drain()

    async def rest(self, limit_s: float = 10) -> bytes:
        """What comes until the server closes; raises when it does not within ``limit_s``."""
        try:
            return await asyncio.wait_for(self.reader.read(), limit_s)
        except ConnectionError:
            return b""

    async def answer(self) -> Answer:
        """The next response, with a Content-Length as all of ours have."""
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Answer(int(head[0].split()[1]), headers, body)

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass


Dial = Callable[[Platform], Awaitable[Wire]]


@pytest.fixture
async def dial() -> AsyncIterator[Dial]:
    """Opens raw connections, and hangs up at the end."""
    wires: list[Wire] = []

    async def connect(platform: Platform) -> Wire:
        wires.append(Wire(*await asyncio.open_connection("127.0.0.1", platform.port)))
        return wires[-1]

    yield connect
    for wire in wires:
        await wire.close()


def head(client: Client, *lines: str, path: str = "/api/functions/none/invoke", method: str = "POST") -> bytes:
    fixed = (f"{method} {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {client.token}")
    return "\r\n".join((*fixed, *lines, "", "")).encode()


async def drip(wire: Wire, data: bytes) -> None:
    """Send a byte at a time, far more often than a pause may last, until the server hangs up."""
    try:
        for byte in data:
            await wire.send(bytes([byte]))
            await asyncio.sleep(REQUEST_TIMEOUT_S / 5)
    except ConnectionError:
        pass


GET_HEALTH = b"GET /api/health HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("sent", [b"", b"G", GET_HEALTH[:-2], b"GET / HTTP/1.1\r\nX-A: " + b"a" * 4000], ids=len)
async def test_h1_connection_without_a_whole_head_is_closed(dial: Dial, impatient: Platform, sent: bytes) -> None:
    started = time.monotonic()
    wires = [await dial(impatient) for _ in range(100)]
    for wire in wires:
        await wire.send(sent)
    rests = await asyncio.gather(*(wire.rest(CLOSED_WITHIN_S) for wire in wires))
    assert set(rests) == {b""}
    assert time.monotonic() - started >= REQUEST_TIMEOUT_S


async def test_h1_head_that_drips_is_closed(dial: Dial, impatient: Platform) -> None:
    wire = await dial(impatient)
    dripping = asyncio.create_task(drip(wire, b"GET / HTTP/1.1\r\n" + b"X-Header: value\r\n" * 100))
    assert await wire.rest(CLOSED_WITHIN_S) == b""
    await dripping


async def test_h1_second_head_on_a_connection_has_no_more_time(dial: Dial, impatient: Platform) -> None:
    wire = await dial(impatient)
    await wire.send(GET_HEALTH)
    assert (await wire.answer()).status == 200
    await wire.send(GET_HEALTH[:20])
    assert await wire.rest(CLOSED_WITHIN_S) == b""


async def test_h1_body_that_pauses_is_answered_with_408(dial: Dial, impatient: Platform) -> None:
    async with impatient.client() as client:
        await client.register()
        for lines, part in (
            (("Content-Length: 100",), b'{"body": '),
            (("Content-Length: 5000000",), b'{"body": "' + b"x" * 100_000),
            (("Transfer-Encoding: chunked",), b"9\r\n{"),
            (("Transfer-Encoding: chunked",), b'9\r\n{"body": \r\n'),
            (("Content-Length: 100", "Content-Encoding: gzip"), gzip.compress(b"x")[:10]),
        ):
            wire = await dial(impatient)
            await wire.send(head(client, *lines), part)
            answer = await asyncio.wait_for(wire.answer(), CLOSED_WITHIN_S)
            assert (answer.status, answer.json["code"]) == (408, "request_timeout"), lines
            assert answer.headers["content-type"].startswith("application/problem+json")


async def test_h1_body_that_drips_is_answered_with_408(dial: Dial, impatient: Platform) -> None:
    async with impatient.client() as client:
        await client.register()
        wire = await dial(impatient)
        await wire.send(head(client, "Content-Length: 1000"))
        dripping = asyncio.create_task(drip(wire, b" " * 1000))
        assert (await asyncio.wait_for(wire.answer(), CLOSED_WITHIN_S)).status == 408
        await dripping


async def test_h1_upload_that_pauses_is_answered_with_408_and_leaves_nothing(dial: Dial, impatient: Platform) -> None:
    async with impatient.client() as client:
        await client.register()
        wire = await dial(impatient)
        form = b'--b\r\nContent-Disposition: form-data; name="archive"; filename="a"\r\n\r\n' + b"x" * 300_000
        lines = ("Content-Type: multipart/form-data; boundary=b", "Content-Length: 1000000")
        await wire.send(head(client, *lines, path="/api/functions/deploy"), form)
        assert (await asyncio.wait_for(wire.answer(), CLOSED_WITHIN_S)).status == 408
        assert uploads_of(impatient) == []


def uploads_of(platform: Platform) -> list[str]:
    return [str(path) for path in (platform.folder / "data" / "scratch").glob("*/*") if path.name != ".lock"]


async def test_h1_body_that_takes_long_but_keeps_coming_is_served(dial: Dial, impatient: Platform) -> None:
    async with impatient.client() as client:
        await client.register()
        wire = await dial(impatient)
        await wire.send(head(client, "Content-Length: 30000"))
        until = time.monotonic() + 2.5 * REQUEST_TIMEOUT_S
        sent = 0
        while time.monotonic() < until:
            await wire.send(b" " * 1000)
            sent += 1000
            await asyncio.sleep(0.1)
        await wire.send(b"{}" + b" " * (30000 - 2 - sent))
        assert (await wire.answer()).status == 404


async def test_h1_long_call_and_idle_connection_are_not_taken_for_slow_requests(
    dial: Dial, impatient: Platform
) -> None:
    async with impatient.client() as client:
        await client.register()
        assert (await client.deploy("slow", {"main.py": SLOW})).status == 201
        assert (await client.invoke("slow", 2.5 * REQUEST_TIMEOUT_S)).json["success"]
        wire = await dial(impatient)
        for _ in range(2):
            await wire.send(GET_HEALTH)
            assert (await wire.answer()).status == 200
            await asyncio.sleep(2 * REQUEST_TIMEOUT_S)


def api_memory(platform: Platform) -> int:
    return int(psutil.Process(platform.processes["api"].pid).memory_info().rss)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_h2_compressed_request_bomb_is_refused_within_its_memory(
    client: Client, shared_platform: Platform, encoding: str
) -> None:
    plain = b'{"body": "' + b"x" * 200_000_000 + b'"}'
    bomb = gzip.compress(plain, 1) if encoding == "gzip" else zlib.compress(plain, 1)
    before = api_memory(shared_platform)
    headers = {"Content-Encoding": encoding, "Content-Type": "application/json"}
    for path in ("/api/auth/login", "/api/functions/none/invoke"):
        answer = await client.call("POST", path, data=bomb, headers=headers)
        assert (answer.status, answer.json["code"]) == (413, "too_large")
    assert api_memory(shared_platform) - before < 100_000_000, "of 400 MB"


async def test_h2_compressed_request_is_served_and_a_broken_one_is_400(client: Client) -> None:
    async def status(data: bytes, encoding: str) -> int:
        headers = {"Content-Encoding": encoding, "Content-Type": "application/json"}
        return (await client.call("POST", "/api/functions/none/invoke", data=data, headers=headers)).status

    good = gzip.compress(b'{"body": 1}')
    assert await status(good, "gzip") == 404
    assert await status(b"not gzip at all", "gzip") == 400
    for cut in range(1, len(good)):
        # The trailer and the end mark are no data: without them everything is there.
        assert await status(good[:-cut], "gzip") in ((400, 404) if cut <= 9 else (400,)), cut
    assert await status(good[:15] + b"\xff\xff\xff" + good[18:], "gzip") == 400


REFUSED = re.compile(rb"HTTP/1\.[01] 400 ")
SMUGGLED = b"GET /api/health HTTP/1.1\r\nHost: smuggled\r\n\r\n"


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 4\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 4",
        b"Content-Length: 4\r\nContent-Length: 5",
        b"Content-Length: 4, 5",
        b"Content-Length: +4",
        b"Content-Length: -4",
        b"Content-Length: 0x4",
        b"Content-Length: 4 4",
        b"Content-Length:",
        b"Content-Length: 99999999999999999999",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding: chunked, chunked",
        b"Transfer-Encoding: \x0bchunked",
        b"Transfer-Encoding : chunked",
        b"Content-Length : 4",
        b" Content-Length: 4",
        b"X: y\r\n Transfer-Encoding: chunked",
        b"X: y\rTransfer-Encoding: chunked",
        b"X: y\x00z",
        b"X\x00: y",
        b"X y: z",
        b": y",
    ],
    ids=repr,
)
async def test_h7_ambiguous_request_is_refused_and_nothing_after_it_is_served(
    dial: Dial, client: Client, shared_platform: Platform, lines: bytes
) -> None:
    wire = await dial(shared_platform)
    await wire.send(b"POST /api/auth/login HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n\r\n", b"0\r\n\r\n", SMUGGLED)
    reply = await wire.rest()
    assert REFUSED.match(reply), reply[:200]
    assert reply.count(b"HTTP/1.") == 1
    assert b'"status":"ok"' not in reply
    document = json.loads(reply.partition(b"\r\n\r\n")[2])
    assert document["code"] == "malformed_request"
    assert b"application/problem+json" in reply


@pytest.mark.parametrize(
    "body", [b"5x\r\nhello\r\n0\r\n\r\n", b"-5\r\nhello\r\n", b"0x5\r\nhello\r\n", b"\r\n", b"5\r\nhelloXX", b"f" * 17]
)
async def test_h7_broken_chunks_are_refused(dial: Dial, client: Client, shared_platform: Platform, body: bytes) -> None:
    wire = await dial(shared_platform)
    await wire.send(head(client, "Transfer-Encoding: chunked"), body, SMUGGLED)
    reply = await wire.rest()
    assert REFUSED.match(reply), reply[:200]
    assert b'"status":"ok"' not in reply


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/3.7\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
        b"GET / HTTP/1.1\r\n" + b"X" * 20_000 + b": y\r\n\r\n",
    ],
    ids=["tls", "version", "nul", "nonsense", "long path", "long value", "many headers", "long name"],
)
async def test_malformed_request_is_answered_as_a_problem_and_closed(
    dial: Dial, shared_platform: Platform, request_bytes: bytes
) -> None:
    wire = await dial(shared_platform)
    await wire.send(request_bytes)
    reply = await wire.rest()
    status = int(reply.split(b" ", 2)[1])
    assert 400 <= status < 500, reply[:200]
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["status"] == status
    assert b"Traceback" not in reply


async def test_h8_foreign_origin_gets_no_permission(client: Client) -> None:
    for method, extra in (("GET", {}), ("OPTIONS", {"Access-Control-Request-Method": "DELETE"})):
        for origin in ("https://evil.example", "null", "*"):
            answer = await client.call(method, "/api/functions", headers={"Origin": origin, **extra})
            assert not [name for name in answer.headers if name.lower().startswith("access-control-")]


async def test_h8_named_origins_get_permission_exactly_and_never_a_wildcard(start_api: StartApi) -> None:
    good = "https://app.example"
    alone = await start_api({"CORS_ORIGINS": f"{good}, http://localhost:3000"})
    async with alone.client() as client:
        for origin in (good, "http://localhost:3000"):
            preflight = await client.call(
                "OPTIONS", "/api/functions", headers={"Origin": origin, "Access-Control-Request-Method": "GET"}
            )
            assert preflight.status == 204
            assert preflight.headers["Access-Control-Allow-Origin"] == origin
            assert "Authorization" in preflight.headers["Access-Control-Allow-Headers"]
            refused = await client.call("GET", "/api/functions", headers={"Origin": origin})
            assert (refused.status, refused.headers["Access-Control-Allow-Origin"]) == (401, origin)
            assert refused.headers["Vary"] == "Origin"
            assert "Access-Control-Allow-Credentials" not in refused.headers
        for origin in (f"{good}.evil.example", "http://app.example", f"{good}/", f"{good}:444", good.upper(), "null"):
            answer = await client.call("GET", "/api/functions", headers={"Origin": origin})
            assert "Access-Control-Allow-Origin" not in answer.headers, origin


async def test_h11_every_answer_forbids_sniffing_and_storing(client: Client) -> None:
    for method, path in (("GET", "/api/health"), ("GET", "/nowhere"), ("PUT", "/api/jobs"), ("GET", "/api/functions")):
        answer = await client.call(method, path)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Request-ID"]


async def test_request_id_is_taken_over_when_harmless_and_replaced_when_not(client: Client) -> None:
    async def given(value: str) -> str:
        return str((await client.call("GET", "/nowhere", headers={"X-Request-ID": value})).json["request_id"])

    assert await given("trace-1.2_3") == "trace-1.2_3"
    for hostile in ("a b", "<script>", "x" * 65, "ä", '"'):
        assert await given(hostile) != hostile


async def test_location_does_not_reflect_the_host(client: Client) -> None:
    await client.deploy("f", {"main.py": "def handler(e, c): ...\n"})
    answer = await client.call(
        "POST", "/api/functions/f/invoke", json={}, headers={"Host": "evil.example", "Prefer": "respond-async"}
    )
    assert answer.headers["Location"].startswith("/api/jobs/")


async def test_client_that_goes_away_cancels_its_call_and_frees_its_slot(
    dial: Dial, client: Client, shared_platform: Platform
) -> None:
    await client.deploy("slow", {"main.py": SLOW}, settings={"timeout_s": 60, "concurrency": 1})
    wire = await dial(shared_platform)
    body = b'{"body": 50}'
    await wire.send(head(client, f"Content-Length: {len(body)}", path="/api/functions/slow/invoke"), body)
    async with asyncio.timeout(20):
        while True:
            following = (await client.invoke("slow", 0, prefer="respond-async")).json["job_id"]
            if (await client.job(following, wait=1))["status"] == "queued":
                break  # the call holds the function's only slot
    await wire.close()
    assert (await client.job(following, wait=15))["status"] == "succeeded"
    cancelled = (await client.call("GET", "/api/jobs?status=cancelled")).json["items"]
    assert [job["kind"] for job in cancelled] == ["invoke"]
