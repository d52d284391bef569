"""Which version serves when builds end in another order than they began."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.deployment import Platform

WHO = "import uuid\nSANDBOX = str(uuid.uuid4())\ndef handler(event, context):\n    return [%d, SANDBOX]\n"


@pytest.fixture
async def platform(database: str, redis_url: str) -> AsyncIterator[Platform]:
    env = {"RESERVED_SLOTS": "0"}  # so that one user has two builds at a time
    async with Platform(database_url=database, redis_url=redis_url, engine="process", env=env) as platform:
        yield platform


async def test_an_older_build_that_ends_late_disturbs_nobody(platform: Platform, database: str) -> None:
    async with platform.client() as client:
        await client.register()
        assert (await client.deploy("f", {"main.py": WHO % 1})).status == 201
        connection = await asyncpg.connect(database)
        try:
            async with connection.transaction():
                late = await client.deploy("f", {"main.py": WHO % 2}, prefer=None)
                # Its activation waits for this row, as for a build that takes long.
                await connection.execute("SELECT FROM versions WHERE number = 2 FOR UPDATE")
                assert (await client.deploy("f", {"main.py": WHO % 3})).status == 201
                served = (await client.invoke("f")).json["result"]
                assert served[0] == 3
                assert (await client.job(late.json["job_id"])).get("status") in ("queued", "running")
        finally:
            await connection.close()
        assert (await client.job(late.json["job_id"], wait=30))["status"] == "succeeded"
        assert (await client.invoke("f")).json["result"] == served, "by the same sandbox"
