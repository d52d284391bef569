"""Jobs that are looked on: states, log lines and progress are pushed as they happen, and nothing is missing."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator

import psutil
import pytest
from redis.asyncio import Redis

from tests.client import Client
from tests.deployment import Platform
from tests.eventstream import Event, EventStream, events_of, states, text
from tests.integration.conftest import StartApi

TALKER = """
import asyncio
import os
import sys

async def handler(event, context):
    body = event["body"]
    print("first", flush=True)
    context.logger.warning("careful")
    context.progress(0.25, "a quarter")
    # Goes on once it is told to by nobody: the test looks on meanwhile.
    for number in range(body.get("naps", 1)):
        await asyncio.sleep(body.get("nap_s", 0.5))
        print(f"nap {number}", flush=True)
    print("to the other", file=sys.stderr, flush=True)
    if context.attempt <= body.get("failures", 0):
        raise ValueError("not yet")
    return "said"
"""
STRINGS = """
import os

def handler(event, context):
    for _ in range(400):
        for byte in "a\\u20ac\\U0001f600\\n".encode():
            os.write(1, bytes([byte]))
    os.write(1, b"\\x00\\xff")
    return None
"""
LOUD = """
import asyncio

async def handler(event, context):
    for number in range(event["body"]):
        print(f"{number:6} " + "x" * 65528, flush=True)
        await asyncio.sleep(0.01)
    context.progress(1, "all printed")
    await asyncio.sleep(100)
"""
LOUD_ENV = {"MAX_LOG_BYTES": "32000000", "EVENT_READ_SECONDS": "2"}


@pytest.fixture
async def client(shared_platform: Platform) -> AsyncIterator[Client]:
    async with shared_platform.client() as client:
        await client.register()
        settings = {"timeout_s": 60, "max_attempts": 3, "retry_delay_s": 0.2}
        assert (await client.deploy("talker", {"main.py": TALKER}, settings=settings)).status == 201
        yield client


@pytest.fixture
async def loud(database: str, redis_url: str) -> AsyncIterator[tuple[Platform, Client]]:
    """A platform that keeps much of what is printed, and does not wait for long for whoever does not read it."""
    async with (
        Platform(database_url=database, redis_url=redis_url, engine="process", env=LOUD_ENV) as platform,
        platform.client() as client,
    ):
        await client.register()
        assert (await client.deploy("loud", {"main.py": LOUD}, settings={"timeout_s": 120})).status == 201
        yield platform, client


def printed(lines: int) -> str:
    return "".join(f"{number:6} " + "x" * 65528 + "\n" for number in range(lines))


async def all_printed(client: Client, job: str) -> None:
    async with asyncio.timeout(60):
        while (await client.job(job))["progress"] is None:
            await asyncio.sleep(0.05)


async def read_until(stream: EventStream, size: int) -> str:
    """What was told of stdout, once it is ``size`` characters or more."""
    parts: list[str] = []
    async with asyncio.timeout(60):
        async for event in stream:
            if event.name == "log":
                parts.append(event.data["message"])
                if sum(map(len, parts)) >= size:
                    break
    return "".join(parts)


def moves(events: list[Event]) -> list[tuple[str, int]]:
    """The states that were told, with their attempts, without those before the first attempt."""
    told = [(event.data["status"], event.data["attempt"]) for event in events if event.name == "state"]
    return [move for move in told if move != ("queued", 0)]


async def started(client: Client, **body: float) -> str:
    job: str = (await client.invoke("talker", body, prefer="respond-async")).json["job_id"]
    return job


async def test_what_a_call_prints_is_told_while_it_runs(client: Client) -> None:
    job = await started(client, nap_s=2)
    async with events_of(client, job) as stream:
        seen = await stream.until("log", message="first\n")
        assert (await client.job(job))["status"] == "running"
        seen += await stream.rest()
    assert states(seen) in (["queued", "running", "succeeded"], ["running", "succeeded"])
    assert text(seen) == "first\nnap 0\n"
    assert text(seen, "stderr") == "to the other\n"
    assert [event.data["level"] for event in seen if event.name == "log" and event.data["stream"] == "logger"] == [
        "warning"
    ]
    assert seen[-1].id == "end"
    assert seen[-1].data["result"] == "said"
    assert seen[-1].data == await client.job(job)


async def test_one_who_comes_late_is_told_from_the_beginning(client: Client) -> None:
    job = await started(client, nap_s=2)
    async with asyncio.timeout(20):
        while (await client.job(job))["progress"] is None:
            await asyncio.sleep(0.05)
    async with events_of(client, job) as one, events_of(client, job) as two:
        for stream in (one, two):
            assert text(await stream.until("log", message="first\n")) == "first\n"
        assert (await client.job(job))["status"] == "running"
        for stream in (one, two):
            assert text(await stream.rest()) == "nap 0\n"


async def test_progress_is_told_and_shown_until_the_end(client: Client) -> None:
    job = await started(client, nap_s=2)
    async with events_of(client, job) as stream:
        told = (await stream.until("progress"))[-1].data
        assert told == {"attempt": 1, "fraction": 0.25, "message": "a quarter"}
        async with asyncio.timeout(10):
            while (shown := (await client.job(job))["progress"]) is None:
                await asyncio.sleep(0.05)
        assert shown == told
        await stream.rest()
    assert (await client.job(job))["progress"] is None


async def test_an_ended_job_is_told_whole_and_a_client_goes_on_where_it_was(client: Client) -> None:
    job = await started(client, nap_s=0.05, naps=3)
    await client.job(job, wait=20)
    async with events_of(client, job) as stream:
        everything = await stream.rest()
    assert states(everything) == ["succeeded"]
    assert text(everything) == "first\nnap 0\nnap 1\nnap 2\n"
    for position, event in enumerate(everything):
        if event.name == "log":
            async with events_of(client, job, last_id=event.id) as again:
                rest = await again.rest()
            assert rest == everything[position + 1 :]
    answer = await client.call("GET", f"/api/jobs/{job}/events", headers={"Last-Event-ID": "end"})
    assert (answer.status, answer.body) == (204, b"")
    async with events_of(client, job, last_id="what, ever") as odd:
        assert await odd.rest() == everything


async def test_a_client_that_comes_back_meanwhile_misses_nothing_and_hears_nothing_twice(client: Client) -> None:
    job = await started(client, nap_s=0.3, naps=6)
    heard, last_id = "", ""
    for _ in range(3):
        async with events_of(client, job, last_id=last_id) as stream:
            async for event in stream:
                heard += event.data["message"] if event.name == "log" and event.data["stream"] == "stdout" else ""
                if event.name == "log" and event.data["message"].startswith("nap"):
                    break
            last_id = stream.last_id
    async with events_of(client, job, last_id=last_id) as stream:
        heard += text(await stream.rest())
    assert heard == "first\n" + "".join(f"nap {number}\n" for number in range(6))


async def test_nothing_is_lost_with_the_connection_to_redis(client: Client, redis_url: str) -> None:
    job = await started(client, nap_s=0.3, naps=8)
    async with Redis.from_url(redis_url) as redis, events_of(client, job) as stream:
        seen = await stream.until("log", message="first\n")
        for number in (1, 4):
            await redis.client_kill_filter(_type="pubsub")
            seen += await stream.until("log", message=f"nap {number}\n")
        seen += await stream.rest()
    assert text(seen) == "first\n" + "".join(f"nap {number}\n" for number in range(8))
    assert states(seen)[-1] == "succeeded"


async def test_each_attempt_is_told(client: Client) -> None:
    job = await started(client, nap_s=0.3, failures=2)
    async with events_of(client, job) as stream:
        seen = await stream.rest()
    assert moves(seen) == [
        *(("running", 1), ("scheduled", 1), ("queued", 1)),
        *(("running", 2), ("scheduled", 2), ("queued", 2)),
        *(("running", 3), ("succeeded", 3)),
    ]
    due = [event.data["run_at"] for event in seen if event.name == "state" and event.data["status"] == "scheduled"]
    assert len(set(due)) == 2
    assert None not in due
    for attempt in (1, 2, 3):
        mine = [event for event in seen if event.name != "log" or event.data["attempt"] == attempt]
        assert text(mine) == "first\nnap 0\n"


async def test_the_states_of_a_lost_and_of_a_returned_attempt_are_told(platform: Platform) -> None:
    platform.change(LEASE_SECONDS="2", HEARTBEAT_SECONDS="0.5", DRAIN_SECONDS="0.5")
    for name in ("scheduler", "worker-1"):
        await platform.terminate(name)
        platform.start(name)
    async with platform.client() as client:
        await client.register()
        assert (await client.deploy("talker", {"main.py": TALKER}, settings={"timeout_s": 60})).status == 201
        lost, returned = [await started(client, nap_s=3, naps=1) for _ in range(2)]
        async with events_of(client, lost) as one, events_of(client, returned) as other:
            seen = await one.until("log", message="first\n")
            platform.kill("worker-1")
            platform.start("worker-1")
            seen += await one.until("log", message="first\n", attempt=2)
            told = await other.until("log", message="first\n", attempt=2)
            await platform.terminate("worker-1")
            platform.start("worker-1")
            told += await other.rest()
            seen += await one.rest()
    for events in (seen, told):
        assert moves(events) == [
            *(("running", 1), ("queued", 1)),
            *(("running", 2), ("queued", 1), ("running", 2), ("succeeded", 2)),
        ]


async def test_characters_that_are_cut_are_told_whole(client: Client) -> None:
    assert (await client.deploy("strings", {"main.py": STRINGS})).status == 201
    job = (await client.invoke("strings", None, prefer="respond-async")).json["job_id"]
    async with events_of(client, job) as stream:
        assert text(await stream.rest()) == "a\u20ac\U0001f600\n" * 400 + "\\x00\\xff"


async def test_a_user_may_look_on_so_many_jobs_at_a_time(platform: Platform, start_api: StartApi) -> None:
    async with platform.client() as client:
        await client.register()
        assert (await client.deploy("talker", {"main.py": TALKER}, settings={"timeout_s": 60})).status == 201
        job = await started(client, nap_s=30)
        narrow = await start_api({"MAX_EVENT_STREAMS_PER_USER": "2", "JWT_SECRET": platform.env["JWT_SECRET"]})
        client.url = narrow.url
        async with events_of(client, job), events_of(client, job):
            refused = await client.call("GET", f"/api/jobs/{job}/events")
            assert (refused.status, refused.json["code"]) == (429, "too_many_streams")
            assert "Retry-After" in refused.headers
        async with asyncio.timeout(10):  # the server hears of a client that left a moment later
            while (await client.call("GET", f"/api/jobs/{job}/events", headers={"Last-Event-ID": "end"})).status == 429:
                await asyncio.sleep(0.05)


async def test_a_stopping_api_ends_its_streams(platform: Platform) -> None:
    async with platform.client() as client:
        await client.register()
        assert (await client.deploy("talker", {"main.py": TALKER}, settings={"timeout_s": 60})).status == 201
        job = await started(client, nap_s=30)
        async with events_of(client, job) as stream:
            await stream.until("log", message="first\n")
            platform.signal("api", signal.SIGTERM)
            async with asyncio.timeout(10):
                assert states(await stream.rest()) == []


async def test_one_who_comes_late_is_told_more_than_may_be_left_unread(loud: tuple[Platform, Client]) -> None:
    _, client = loud
    job = (await client.invoke("loud", 48, prefer="respond-async")).json["job_id"]
    await all_printed(client, job)
    async with events_of(client, job) as stream:
        assert await read_until(stream, len(printed(48))) == printed(48)
    assert (await client.job(job))["status"] == "running"


async def test_one_who_stopped_reading_for_a_while_is_told_the_rest(
    loud: tuple[Platform, Client], start_api: StartApi
) -> None:
    platform, client = loud
    patient = await start_api({"JWT_SECRET": platform.env["JWT_SECRET"]})
    client.url = patient.url
    job = (await client.invoke("loud", 200, prefer="respond-async")).json["job_id"]
    async with events_of(client, job) as stream:
        await all_printed(client, job)  # more than fits into what lies between
        assert await read_until(stream, len(printed(200))) == printed(200)
    assert (await client.job(job))["status"] == "running"


async def test_one_who_reads_nothing_is_left_and_costs_nobody_anything(loud: tuple[Platform, Client]) -> None:
    platform, client = loud
    api = psutil.Process(platform.processes["api"].pid)
    job = (await client.invoke("loud", 200, prefer="respond-async")).json["job_id"]
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", platform.port))
        request = f"GET /api/jobs/{job}/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client.token}\r\n\r\n"
        deaf.sendall(request.encode())
        before = api.memory_info().rss

        async def read_nothing() -> None:
            async with asyncio.timeout(30):
                while any(one.raddr == deaf.getsockname() for one in api.net_connections("tcp4")):
                    await asyncio.sleep(0.1)

        async with events_of(client, job) as stream:
            heard, _ = await asyncio.gather(read_until(stream, len(printed(200))), read_nothing())
        assert heard == printed(200)
        assert api.memory_info().rss - before < 32_000_000  # what all see passes through, and leaves some behind
        assert (await client.job(job))["status"] == "running"
        deaf.settimeout(10)
        told = b""
        try:
            while data := await asyncio.to_thread(deaf.recv, 65536):
                told += data
        except ConnectionResetError:
            pass
    assert told.startswith(b"HTTP/1.1 200 ")
    assert len(told) < len(printed(200)) / 2  # what lay in the buffers of the kernel and in those of the connection
