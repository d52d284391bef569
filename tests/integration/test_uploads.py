"""Uploads through the real endpoint: what is refused, with which code, and that nothing of it stays."""

from __future__ import annotations

import asyncio
import gzip
import io
import tarfile
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from uuid import uuid4

import aiohttp
import psutil
import pytest

from tests.client import Answer, Client, pack
from tests.deployment import Platform

SOURCE = b"def handler(event, context):\n    return 'served'\n"
GOOD: dict[str, str | bytes] = {"main.py": SOURCE}


@pytest.fixture
async def client(shared_platform: Platform) -> AsyncIterator[Client]:
    async with shared_platform.client() as client:
        yield await client.register()


@pytest.fixture
def outside(shared_platform: Platform) -> Iterator[None]:
    """Fails a test after which there is an artifact more, a file beside the folders of the processes, or something in
    a scratch folder. (The worker's own folders change at any time.)"""

    def snapshot() -> set[Path]:
        stored = Path(shared_platform.env["FUNCTIONS_DIR"]).rglob("*")
        return {path for path in (*stored, *shared_platform.folder.iterdir()) if path.is_file()}

    before = snapshot()
    yield
    assert snapshot() - before == set()
    assert left_over(shared_platform) == []


def left_over(platform: Platform) -> list[Path]:
    """What uploads left in the scratch folders of processes."""
    return [path for path in (platform.folder / "data" / "scratch").glob("*/*") if path.name != ".lock"]


async def nothing_left(platform: Platform) -> None:
    """The server notices within seconds that a client is gone."""
    async with asyncio.timeout(10):
        while left_over(platform):
            await asyncio.sleep(0.02)


def member(name: str, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def tar(*members: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for info in members:
            archive.addfile(info, io.BytesIO(b"x" * info.size))
    return buffer.getvalue()


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return buffer.getvalue()


def gzip_bomb() -> bytes:
    size = 260_000_000
    info = member("zeros", size=size)
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(size + -size % 512 + 1024), 9)


MAIN = member("main.py", size=1)
ATTACKS: dict[str, tuple[Callable[[], bytes], int]] = {
    "u1 parent": (lambda: tar(member("../x", size=1)), 422),
    "u1 parent within": (lambda: tar(member("a/../../x", size=1)), 422),
    "u1 parent in zip": (lambda: zipped("../x"), 422),
    "u1 backslash": (lambda: zipped("..\\x"), 422),
    "u2 absolute": (lambda: tar(member("/tmp/x", size=1)), 422),
    "u2 absolute in zip": (lambda: zipped("/tmp/x"), 422),
    "u3 symlink": (lambda: tar(member("l", type=tarfile.SYMTYPE, linkname="/tmp"), member("l/x", size=1)), 422),
    "u5 hardlink": (lambda: tar(MAIN, member("l", type=tarfile.LNKTYPE, linkname="main.py")), 422),
    "u6 fifo": (lambda: tar(member("f", type=tarfile.FIFOTYPE)), 422),
    "u6 device": (lambda: tar(member("d", type=tarfile.CHRTYPE, devmajor=1, devminor=3)), 422),
    "u8 gzip bomb": (gzip_bomb, 413),
    "u9 entries": (lambda: tar(*(member(f"f{number}") for number in range(2001))), 422),
    "u11 duplicate": (lambda: tar(member("a", size=1), member("a", size=1)), 422),
    "u11 case": (lambda: tar(member("a", size=1), member("A", size=1)), 422),
    "u12 file and folder": (lambda: tar(member("a", size=1), member("a/b", size=1)), 422),
    "u13 newline": (lambda: tar(member("a\r\nb", size=1)), 422),
    "u13 escape": (lambda: tar(member("a\x1b[31m", size=1)), 422),
    "u16 truncated": (lambda: pack({"a.bin": bytes(range(256)) * 400})[:-40], 422),
    "u16 not an archive": (lambda: b"hello", 422),
    "u16 empty": (lambda: b"", 422),
    "u17 long name": (lambda: tar(member("x" * 300, size=1)), 422),
    "u17 deep": (lambda: tar(member("d/" * 40 + "x", size=1)), 422),
}


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("attack", ATTACKS)
async def test_u1_to_u17_hostile_archive_is_refused_and_nothing_stored(client: Client, attack: str) -> None:
    craft, status = ATTACKS[attack]
    answer = await client.deploy(f"f-{uuid4().hex[:8]}", archive=await asyncio.to_thread(craft))
    assert answer.status == status, answer
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json["field"] == "archive"
    assert (await client.call("GET", "/api/functions")).json["items"] == []
    assert (await client.call("GET", "/api/jobs")).json["items"] == []


async def test_u14_modes_and_owners_are_normalised_not_refused(client: Client) -> None:
    info = member("main.py", size=len(SOURCE), mode=0o6000, uid=0, uname="root")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(info, io.BytesIO(SOURCE))
    assert (await client.deploy("modes", archive=buffer.getvalue())).status == 201
    assert (await client.invoke("modes")).json["result"] == "served"


async def upload(client: Client, data: AsyncIterator[bytes] | bytes, headers: dict[str, str] | None = None) -> Answer:
    sent = {"Content-Type": "multipart/form-data; boundary=b", **(headers or {})}
    return await client.call("POST", "/api/functions/deploy", data=data, headers=sent)


PART = b'--b\r\nContent-Disposition: form-data; name="archive"; filename="a"\r\n\r\n'
END = b"\r\n--b--\r\n"
CAP = 50_000_000
CHUNKED = "Transfer-Encoding: chunked"


@asynccontextmanager
async def uploading(
    client: Client, platform: Platform, length: str
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A raw connection on which the head of an upload was sent; broken off at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", platform.port)
    writer.write(
        f"POST /api/functions/deploy HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client.token}\r\n"
        f"Content-Type: multipart/form-data; boundary=b\r\n{length}\r\n\r\n".encode()
    )
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def send(writer: asyncio.StreamWriter, data: bytes, length: str) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data) if length == CHUNKED else data)
    await writer.drain()


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("length", [CHUNKED, f"Content-Length: {len(PART) + CAP + 50_000 + len(END)}"])
async def test_u18_body_over_the_cap_is_413_however_its_length_is_told(
    client: Client, shared_platform: Platform, length: str
) -> None:
    async with uploading(client, shared_platform, length) as (reader, writer):
        answer = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
        await send(writer, PART, length)
        for _ in range(CAP // 50_000 + 1):
            if answer.done():
                break
            await send(writer, b"x" * 50_000, length)
        await send(writer, END, length)
        head = await asyncio.wait_for(answer, 10)
        assert head.startswith(b"HTTP/1.1 413 "), head
        assert b'"upload_too_large"' in await asyncio.wait_for(reader.readuntil(b"}"), 10)
    await nothing_left(shared_platform)


@pytest.mark.usefixtures("outside")
async def test_u18_length_that_promises_too_much_is_refused_before_the_body(
    client: Client, shared_platform: Platform
) -> None:
    async with uploading(client, shared_platform, "Content-Length: 1000000000000") as (reader, _):
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert head.startswith(b"HTTP/1.1 413 ")
        assert b"Connection: close" in head


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("length", ["Content-Length: 40000000", CHUNKED])
async def test_u18_upload_that_breaks_off_leaves_nothing(
    client: Client, shared_platform: Platform, length: str
) -> None:
    async with uploading(client, shared_platform, length) as (_, writer):
        await send(writer, PART + b"x" * 2_000_000, length)
        async with asyncio.timeout(10):
            while not left_over(shared_platform):  # it is being written
                await asyncio.sleep(0.01)
    await nothing_left(shared_platform)


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("name", ["junk", "name", "settings", "archive"])
async def test_u19_ten_thousand_parts_are_refused_within_memory(
    client: Client, shared_platform: Platform, name: str
) -> None:
    api = psutil.Process(shared_platform.processes["api"].pid)
    before = api.memory_info().rss
    body = f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\nx\r\n'.encode() * 10_000 + b"--b--\r\n"
    answer = await upload(client, body)
    assert answer.status == 400, answer
    assert answer.json["code"] in ("unknown_field", "duplicate_field")
    assert api.memory_info().rss - before < 16_000_000


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no boundary at all",
        b"--b",
        b"--b--\r\n",
        b"--b\r\n\r\nx\r\n--b--\r\n",
        b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="archive"\r\n\r\nnever ends',
        b'--b\r\nContent-Disposition: form-data; name="archive"\r\nContent-Transfer-Encoding: x\r\n\r\nx\r\n--b--\r\n',
        b'--b\r\nContent-Disposition: form-data; name="archive"\r\nContent-Length: -1\r\n\r\nx\r\n--b--\r\n',
        b'--b\r\nContent-Disposition: form-data; name="archive"\r\nContent-Length: 999\r\n\r\nx\r\n--b--\r\n',
        b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n\r\nx\r\n--c--\r\n--b--\r\n",
        b"--b\r\nX: " + b"y" * 100_000 + b"\r\n\r\nx\r\n--b--\r\n",
        b"--b\r\n" + b"X: y\r\n" * 10_000 + b"\r\nx\r\n--b--\r\n",
        b"--b\r\n\xff\xfe: y\r\n\r\nx\r\n--b--\r\n",
    ],
    ids=lambda body: repr(body[:60]),
)
async def test_broken_multipart_is_4xx(client: Client, body: bytes) -> None:
    answer = await upload(client, body)
    assert answer.status in (400, 413, 422), answer
    assert answer.json["code"]


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize(
    "content_type",
    ["application/json", "multipart/form-data", "multipart/form-data; boundary=" + "x" * 200, "text/plain"],
)
async def test_upload_of_another_type_is_400(client: Client, content_type: str) -> None:
    answer = await upload(client, b"x", {"Content-Type": content_type})
    assert answer.status == 400, answer


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize(
    "name", ["Upper", "-dash", "dash-", "x" * 64, "two words", "../up", "a/b", "a\x00b", "ｆｕｌｌ", "a\nb", "%2e", "é"]
)
async def test_bad_function_names_are_422(client: Client, name: str) -> None:
    answer = await client.deploy(name, GOOD)
    assert (answer.status, answer.json["field"]) == (422, "name")


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ('{"timeout_s": 901}', "timeout_s"),
        ('{"timeout_s": 0}', "timeout_s"),
        ('{"timeout_s": -1}', "timeout_s"),
        ('{"memory_mb": 4096}', "memory_mb"),
        ('{"memory_mb": 1}', "memory_mb"),
        ('{"memory_mb": 1e400}', "settings"),
        ('{"cpus": 0}', "cpus"),
        ('{"concurrency": -1}', "concurrency"),
        ('{"concurrency": 99999999999999999999}', "concurrency"),
        ('{"handler": "main:\\u0000"}', "handler"),
        ('{"handler": 7}', "handler"),
        ('{"runtime": "../../etc"}', "runtime"),
        ('{"runtime": "cobol"}', "runtime"),
        ('{"privileged": true}', "privileged"),
        ("[]", "settings"),
        ("{", "settings"),
        ("NaN", "settings"),
        ("[" * 100_000, "settings"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_bad_settings_are_422_with_the_field(client: Client, settings: str, field: str) -> None:
    form = aiohttp.FormData()
    form.add_field("name", "f")
    form.add_field("settings", settings)
    form.add_field("archive", pack(GOOD), filename="f.tar.gz")
    answer = await client.call("POST", "/api/functions/deploy", data=form)
    assert answer.status == 413 if len(settings) > 64 * 1024 else 422, answer
    assert answer.json["field"] == field


@pytest.mark.usefixtures("outside")
async def test_project_file_is_read_with_distrust(client: Client) -> None:
    for name, content in (
        ("containerpub.toml", "not toml ["),
        ("containerpub.toml", 'handler = "main:\\u0000"'),
        ("containerpub.toml", "timeout_s = nan"),
        ("containerpub.toml", "timeout_s = inf"),
        ("containerpub.toml", "x = " + "[" * 5000),
        ("containerpub.toml", "name = 7"),
        ("function.json", "[]"),
        ("function.json", "[" * 5000),
        ("function.json", '{"timeout_s": "soon"}'),
    ):
        answer = await client.deploy("f", {**GOOD, name: content})
        assert answer.status == 422, (name, content[:30], answer)
        assert answer.json["field"], (name, content[:30])


async def test_missing_handler_or_syntax_error_is_422_and_the_old_version_still_serves(client: Client) -> None:
    assert (await client.deploy("f", GOOD)).status == 201
    for source in (
        "def handler(:\n",
        "def other(event, context): ...\n",
        "return 1\n",
        "x = '\ud800'\n".encode("utf-8", "surrogatepass"),
    ):
        answer = await client.deploy("f", {"main.py": source})
        assert (answer.status, answer.json["code"]) == (422, "analysis_rejected"), answer
        version = answer.json["version"]
        stored = (await client.call("GET", f"/api/functions/f/versions/{version}")).json
        assert (stored["status"], stored["reason"]) == ("failed", "analysis_rejected")
        assert (await client.invoke("f")).json["result"] == "served"
    assert (await client.call("GET", "/api/functions/f")).json["live_version"] == 1


async def test_a14_new_name_deployed_at_once_is_one_function_with_versions_without_gaps(client: Client) -> None:
    answers = await asyncio.gather(
        *(
            client.deploy("race", {"main.py": f"def handler(event, context):\n    return {number}\n"}, prefer=None)
            for number in range(20)
        )
    )
    assert {answer.status for answer in answers} == {202}
    assert len({answer.json["function_id"] for answer in answers}) == 1
    assert sorted(answer.json["version"] for answer in answers) == list(range(1, 21))
    for answer in answers:
        assert (await client.job(answer.json["job_id"], wait=60))["status"] == "succeeded"
    assert len((await client.call("GET", "/api/functions")).json["items"]) == 1


async def test_a14_same_artifact_deployed_at_once_is_one_function_and_then_no_deploy(client: Client) -> None:
    answers = await asyncio.gather(*(client.deploy("same", GOOD) for _ in range(10)))
    assert {answer.status for answer in answers} <= {200, 201, 202}
    assert len({answer.json["function_id"] for answer in answers}) == 1
    newest = max(answer.json["version"] for answer in answers)
    again = await client.deploy("same", GOOD)
    assert (again.status, again.json["version"], again.json["job_id"]) == (200, newest, None)
