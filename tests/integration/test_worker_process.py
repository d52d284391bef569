"""One worker process: how it starts and stops."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil

from tests.deployment import Platform
from tests.processes import assert_gone


async def test_a_worker_that_is_still_starting_stops_at_once(database: str, redis_url: str, tmp_path: Path) -> None:
    """Its engine accepts and says nothing, for longer than anybody wants to wait for a stop."""
    asked = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        writer.close()

    address = tmp_path / "engine.sock"
    async with await asyncio.start_unix_server(say_nothing, address):
        platform = Platform(
            database_url=database,
            redis_url=redis_url,
            engine="docker",
            env={"DOCKER_HOST": f"unix://{address}", "ENGINE_TIMEOUT_SECONDS": "120"},
        )
        try:
            worker = platform.start("worker-1")
            async with asyncio.timeout(30):
                await asked.wait()
            children = psutil.Process(worker.pid).children()
            await platform.terminate("worker-1", within_s=10)
        finally:
            await platform.stop()
    assert_gone(children, within_s=0)
    assert "Traceback" not in platform.logs()


async def test_building_and_calling_can_be_the_business_of_different_workers(database: str, redis_url: str) -> None:
    """A deploy waits for a worker that builds, a call for one that runs functions, and each is only that one's."""
    platform = Platform(database_url=database, redis_url=redis_url, engine="process", env={"WORKER_QUEUES": "invoke"})
    async with platform, platform.client() as client:
        await client.register()
        accepted = await client.deploy(
            "hello", {"main.py": "def handler(event, context): return event['body']"}, prefer="wait=1"
        )
        assert accepted.status == 202, "nobody builds"
        platform.change(WORKER_QUEUES="build")
        platform.start("worker-2")
        assert (await client.job(accepted.json["job_id"], wait=30))["status"] == "succeeded"
        assert (await client.invoke("hello", 1)).json["result"] == 1
        await platform.terminate("worker-1")
        assert (await client.invoke("hello", 2, prefer="wait=1")).status == 202, "nobody runs functions"
        deployed = await client.deploy("other", {"main.py": "def handler(event, context): return 2"})
        assert deployed.status == 201, deployed
