"""Every example, through the running platform, in containers: each ends as its README says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.client import Answer, Client
from tests.deployment import Platform

pytestmark = pytest.mark.docker


@pytest.fixture
async def client(database: str, redis_url: str) -> AsyncIterator[Client]:
    async with (
        Platform(database_url=database, redis_url=redis_url, engine="docker") as platform,
        platform.client() as client,
    ):
        yield await client.register()


async def deploy(client: Client, folder: Path) -> None:
    files: dict[str, str | bytes] = {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    answer = await client.deploy(folder.name, files, prefer="wait=120")
    assert answer.status == 201, answer


async def records(client: Client, name: str) -> list[dict[str, Any]]:
    answer = await client.call("GET", f"/api/functions/{name}/invocations")
    assert answer.status == 200, answer
    return list(answer.json["items"])


async def recorded(client: Client, answer: Answer, name: str) -> dict[str, Any]:
    """The record of an invoke that was waited for."""
    await client.job(answer.json["job_id"], wait=10)
    return next(item for item in await records(client, name) if item["job_id"] == answer.json["job_id"])


async def test_hello_http_cpu_and_numbers_answer(client: Client, examples: Path) -> None:
    """``numbers`` has a library with compiled code in its requirements.txt."""
    for name in ("hello", "http", "cpu", "numbers"):
        await deploy(client, examples / name)
    hello = await client.invoke("hello", {"name": "Ada"})
    assert hello.json["result"] == {"greeting": "Hello, Ada!"}
    event = {"method": "GET", "path": "/ada", "query": {"loud": "1"}}
    http = await client.call("POST", "/api/functions/http/invoke", json=event)
    assert http.json["result"] == {"status": 200, "headers": {"X-Guest": "ada"}, "body": {"name": "ADA LOVELACE"}}
    cpu = await client.invoke("cpu", {"below": 100_000})
    assert cpu.json["result"] == {"below": 100_000, "primes": 9592}
    numbers = await client.invoke("numbers")
    assert numbers.json["result"]["solution"] == [2.0, 3.0], numbers
    record = await recorded(client, numbers, "numbers")
    assert (record["outcome"], record["exit_code"]) == ("succeeded", 0)
    assert record["peak_memory_bytes"] > 10_000_000


async def test_the_examples_in_javascript_answer(client: Client, examples: Path) -> None:
    """``node-deps`` has a package that its package-lock.json pins."""
    for name in ("node", "node-deps"):
        await deploy(client, examples / name)
    node = await client.invoke("node", {"name": "Ada"})
    assert node.json["result"] == {"greeting": "Hello, Ada!"}, node
    assert (await recorded(client, node, "node"))["outcome"] == "succeeded"
    deps = await client.invoke("node-deps", {"versions": ["1.2.0", "1.10.0", "2.0.0"], "range": "^1.0.0"})
    assert deps.json["result"] == {"newest": "1.10.0", "sorted": ["1.2.0", "1.10.0", "2.0.0"]}, deps


async def test_misbehaving_examples_end_with_their_reason_and_disturb_nobody(client: Client, examples: Path) -> None:
    for name in ("hello", "timeout", "memory", "chatty"):
        await deploy(client, examples / name)
    assert (await client.invoke("hello")).status == 200
    over = asyncio.Event()
    seen: list[Answer] = []

    async def neighbour() -> None:
        while not over.is_set():
            seen.append(await client.invoke("hello", {"name": "Ada"}))

    calling = asyncio.create_task(neighbour())
    timeout, memory, chatty = await asyncio.gather(*(client.invoke(name) for name in ("timeout", "memory", "chatty")))
    over.set()
    await calling

    assert timeout.json["reason"] == "timeout"
    assert timeout.json["error"]["message"] == "Function execution timed out (5000ms)"
    record = await recorded(client, timeout, "timeout")
    assert record["exit_code"] == -1
    assert 4990 <= record["timings"]["run_ms"] < 5500
    assert record["logs"]["container"]["stdout"] == "working, and never done\n"
    assert record["logs"]["metadata"]["timeout_ms"] == 5000

    assert memory.json["reason"] == "out_of_memory", memory
    record = await recorded(client, memory, "memory")
    assert (record["outcome"], record["exit_code"]) == ("failed", 137)
    assert record["logs"]["container"]["stdout"].startswith("holding 8 MB\n")
    assert record["logs"]["metadata"]["memory_limit_mb"] == 64

    assert chatty.json["result"] == {"lines": 20_000}
    record = await recorded(client, chatty, "chatty")
    assert record["logs_truncated"] is True
    assert 200_000 < len(record["logs"]["container"]["stdout"]) <= 256_000

    assert len(seen) > 100
    assert all(answer.json["result"] == {"greeting": "Hello, Ada!"} for answer in seen)


async def test_flask_answers_with_cookies_an_image_and_a_failing_view(client: Client, examples: Path) -> None:
    await deploy(client, examples / "flask")

    async def ask(**event: Any) -> Answer:
        return await client.call("POST", "/api/functions/flask/invoke", json=event)

    assert (await client.invoke("flask", {"name": "Ada"})).json["result"]["status"] == 405
    entered = (await ask(method="POST", path="/guests", body={"name": "Ada"})).json["result"]
    assert (entered["status"], entered["body"]) == (201, '{"welcome":"Ada"}\n')
    assert ["Set-Cookie", "guest=Ada; Path=/"] in entered["headers"]
    pixel = (await ask(method="GET", path="/pixel.gif")).json["result"]
    assert pixel["headers"]["Content-Type"] == "image/gif"
    assert pixel["body_base64"].startswith("R0lGODlh")
    broken = await ask(method="GET", path="/broken")
    assert (broken.json["success"], broken.json["result"]["status"]) == (True, 500)
    record = await recorded(client, broken, "flask")
    assert "ZeroDivisionError: on purpose" in record["logs"]["container"]["stderr"]
