"""What Redis and Postgres allow at most: the plainest use of each, by a client that does nothing else."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import UUID, uuid4

import asyncpg

from bench.figure import WrongAnswer, median
from shared.ids import new_id

_TIMEOUT_S = 30
_INSERT_USER = "INSERT INTO users (id, email, username, password_hash) VALUES ($1, $2, $3, '')"
_INSERT_JOB = """
INSERT INTO jobs (id, kind, user_id, function_id, version_id, status, concurrency, payload, created_at)
VALUES ($1, 'invoke', $2, $3, $4, 'queued', 0, $5, $6)
"""


def redis_round_trip_ms(url: str, count: int) -> float:
    """Median time of a push to a list that somebody else waits on, until that one's push back: two hops through Redis.

    Blocking sockets, and a thread at the other end. Blocks.
    """
    echo = threading.Thread(target=_echo, args=(url, count), daemon=True)
    echo.start()
    took = []
    with _connect(url) as redis:
        ask = _command("LPUSH", "bench:there", "x") + _command("BRPOP", "bench:back", str(_TIMEOUT_S))
        for _ in range(count):
            started = time.perf_counter()
            redis.sendall(ask)
            _expect(redis, b":1\r\n" + _popped("bench:back"))
            took.append(1000 * (time.perf_counter() - started))
    echo.join(_TIMEOUT_S)
    return median(took)


async def inserts_per_second(dsn: str, clients: int, duration_s: float) -> float:
    """Jobs a second into Postgres, each with an INSERT and a commit of its own, by ``clients`` connections."""
    ids = (uuid4(), uuid4(), uuid4())
    connections = [await asyncpg.connect(dsn) for _ in range(clients)]
    try:
        await connections[0].execute(_INSERT_USER, ids[0], f"{ids[0]}@example.com", f"bench-{ids[0].hex[:20]}")
        loop = asyncio.get_running_loop()
        started = loop.time()
        counts = await asyncio.gather(*(_insert(one, ids, started + duration_s) for one in connections))
        return sum(counts) / (loop.time() - started)
    finally:
        await asyncio.gather(*(one.close() for one in connections))


async def _insert(connection: Any, ids: tuple[UUID, UUID, UUID], until: float) -> int:
    statement = await connection.prepare(_INSERT_JOB)
    loop = asyncio.get_running_loop()
    count = 0
    while loop.time() < until:
        await statement.fetch(new_id(), *ids, b'{"body":{"name":"Ada"}}', datetime.now(UTC))
        count += 1
    return count


def _echo(url: str, count: int) -> None:
    wait, back = _command("BRPOP", "bench:there", str(_TIMEOUT_S)), _command("LPUSH", "bench:back", "x")
    with _connect(url) as redis:
        redis.sendall(wait)
        for _ in range(count):
            _expect(redis, _popped("bench:there"))
            redis.sendall(back + wait)
            _expect(redis, b":1\r\n")


def _connect(url: str) -> socket.socket:
    address = urlsplit(url)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(_TIMEOUT_S)
    connection.connect(unquote(address.path))
    connection.sendall(_command("AUTH", parse_qs(address.query)["password"][0]))
    _expect(connection, b"+OK\r\n")
    return connection


def _command(*words: str) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word.encode()) for word in words)


def _popped(key: str) -> bytes:
    return b"*2\r\n$%d\r\n%b\r\n$1\r\nx\r\n" % (len(key), key.encode())


def _expect(connection: socket.socket, answer: bytes) -> None:
    received = b""
    while len(received) < len(answer):
        data = connection.recv(len(answer) - len(received))
        if not data:
            break
        received += data
    if received != answer:
        raise WrongAnswer(f"Redis answered {received!r} instead of {answer!r}")
