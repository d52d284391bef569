"""The proxy of builds lets out to the index and nowhere else."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from worker.build.index_proxy import EgressProxy, leads_outside

Respond = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Listener:
    """A server on this machine that counts who reaches it."""

    def __init__(self) -> None:
        self.hits = 0
        self.port = 0


@asynccontextmanager
async def listening(respond: Respond) -> AsyncIterator[Listener]:
    seen = Listener()
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.hits += 1
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            await respond(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    seen.port = server.sockets[0].getsockname()[1]
    try:
        yield seen
    finally:
        server.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
    await reader.read()


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def ask(path: Path, request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(request)
    return reader, writer, await reader.readuntil(b"\r\n")


async def answer(path: Path, request: bytes) -> bytes:
    _, writer, status = await ask(path, request)
    writer.close()
    return status


@pytest.fixture
def log() -> list[str]:
    return []


def connect(host: str, port: int) -> bytes:
    return f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


async def test_an_allowed_host_is_reached_and_both_directions_end_properly(tmp_path: Path, log: list[str]) -> None:
    path = tmp_path / "s"
    async with (
        listening(echo) as far,
        EgressProxy(path, ["localhost"], log.append, port=far.port, may_reach=lambda _: True),
    ):
        reader, writer, status = await ask(path, connect("LocalHost.", far.port))
        assert status == b"HTTP/1.1 200 Connection established\r\n"
        await reader.readline()
        sent = b"x" * 300_000
        writer.write(sent)
        writer.write_eof()
        assert await reader.read(-1) == sent
        writer.close()
    assert log == []
    assert not path.exists()


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("other.example", 443),
        ("index.example.evil.example", 443),
        ("evilindex.example", 443),
        ("127.0.0.1", 443),
        ("169.254.169.254", 443),
        ("0x7f.1", 443),
        ("2130706433", 443),
        ("index.example", 80),
        ("index.example", 22),
        ("index.example", 8443),
        ("index.example", 0),
        ("index.example", 99999),
    ],
)
async def test_other_hosts_and_ports_are_refused(tmp_path: Path, log: list[str], host: str, port: int) -> None:
    async with EgressProxy(tmp_path / "s", ["index.example"], log.append):
        assert await answer(tmp_path / "s", connect(host, port)) == b"HTTP/1.1 403 Forbidden\r\n"
    assert len(log) == 1
    assert "refused" in log[0]


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET http://index.example/ HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: index.example\r\n\r\n",
        b"CONNECT index.example HTTP/1.1\r\n\r\n",
        b"CONNECT user@index.example:443 HTTP/1.1\r\n\r\n",
        b"CONNECT index.example:443/x HTTP/1.1\r\n\r\n",
        b"CONNECT [::1]:443 HTTP/1.1\r\n\r\n",
        b"CONNECT index.example\x00.evil.example:443 HTTP/1.1\r\n\r\n",
        b"CONNECT index.example:443 HTTP/1.1 CONNECT\r\n\r\n",
        b"connect index.example:443 HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\r\n\r\n",
        b"CONNECT index.example:443 HTTP/1.1\r\n" + b"x" * 20_000,
        b"\x1b[31m \xff\xfe\r\n\r\n",
    ],
)
async def test_only_plain_connect_is_served(tmp_path: Path, log: list[str], request_head: bytes) -> None:
    async with EgressProxy(tmp_path / "s", ["index.example"], log.append):
        assert await answer(tmp_path / "s", request_head) == b"HTTP/1.1 403 Forbidden\r\n"
    assert log


async def test_an_allowed_name_that_leads_inwards_opens_nothing(tmp_path: Path, log: list[str]) -> None:
    async with listening(echo) as far, EgressProxy(tmp_path / "s", ["localhost"], log.append, port=far.port):
        assert await answer(tmp_path / "s", connect("localhost", far.port)) == b"HTTP/1.1 403 Forbidden\r\n"
    assert far.hits == 0
    assert log == ["network access refused: localhost does not lead to a public address"]


async def test_bytes_are_bounded(tmp_path: Path, log: list[str]) -> None:
    async with (
        listening(echo) as far,
        EgressProxy(
            tmp_path / "s", ["localhost"], log.append, port=far.port, max_bytes=10_000, may_reach=lambda _: True
        ),
    ):
        reader, writer, _ = await ask(tmp_path / "s", connect("localhost", far.port))
        writer.write(b"x" * 50_000)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(50_000)
        writer.close()
    assert log == ["network access ended: more bytes than a build may transfer"]


async def test_a_connection_without_traffic_ends(tmp_path: Path, log: list[str]) -> None:
    async with (
        listening(silence) as far,
        EgressProxy(
            tmp_path / "s", ["localhost"], log.append, port=far.port, idle_timeout_s=0.2, may_reach=lambda _: True
        ),
    ):
        reader, writer, _ = await ask(tmp_path / "s", connect("localhost", far.port))
        await reader.readline()
        try:
            assert await reader.read() == b""
        except ConnectionResetError:
            pass
        writer.close()


async def test_connections_are_bounded(tmp_path: Path, log: list[str]) -> None:
    async with (
        listening(silence) as far,
        EgressProxy(
            tmp_path / "s", ["localhost"], log.append, port=far.port, max_connections=2, may_reach=lambda _: True
        ),
    ):
        held = [await ask(tmp_path / "s", connect("localhost", far.port)) for _ in range(2)]
        assert all(status.startswith(b"HTTP/1.1 200") for _, _, status in held)
        assert await answer(tmp_path / "s", connect("localhost", far.port)) == b"HTTP/1.1 403 Forbidden\r\n"
        assert far.hits == 2
        for _, writer, _ in held:
            writer.close()


async def test_close_cuts_what_is_open(tmp_path: Path, log: list[str]) -> None:
    async with listening(silence) as far:
        proxy = EgressProxy(tmp_path / "s", ["localhost"], log.append, port=far.port, may_reach=lambda _: True)
        await proxy.open()
        reader, writer, _ = await ask(tmp_path / "s", connect("localhost", far.port))
        await reader.readline()
        await proxy.close()
        await proxy.close()
        try:
            assert await reader.read() == b""
        except ConnectionResetError:
            pass
        writer.close()
        with pytest.raises(OSError), socket.socket(socket.AF_UNIX) as late:
            late.connect(str(tmp_path / "s"))


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254",
        "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.168.1.1", "198.18.0.1", "224.0.0.1", "239.255.255.250",
        "240.0.0.1", "255.255.255.255", "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1",
        "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::1",
        "2001:0:7f00:1::1", "2001::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1",
        "100::1", "localhost", "", "1.2.3", "0x7f000001",
    ],
)  # fmt: skip
def test_inner_addresses_do_not_lead_outside(address: str) -> None:
    assert not leads_outside(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "151.101.0.223", "2606:4700::1111", "::ffff:1.1.1.1", "203.0.113.7"])
def test_public_addresses_lead_outside(address: str) -> None:
    assert leads_outside(address)
