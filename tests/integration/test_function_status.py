"""What a function's status says of its versions."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.client import Client
from tests.deployment import Platform
from tests.integration.conftest import StartApi

GOOD = {"main.py": "def handler(event, context):\n    return 1\n"}
BROKEN = {"main.py": "def handler(:\n"}
SECRET = "postgresql://shared:pw-of-all@db.example/functions"


@pytest.fixture
async def client(shared_platform: Platform) -> AsyncIterator[Client]:
    async with shared_platform.client() as client:
        yield await client.register()


async def statuses(client: Client, name: str) -> set[Any]:
    one = (await client.call("GET", f"/api/functions/{name}")).json
    (listed,) = (each for each in (await client.call("GET", "/api/functions")).json["items"] if each["name"] == name)
    assert one == listed
    return {one["status"]}


async def test_a_function_whose_only_version_failed_is_failed(client: Client) -> None:
    assert (await client.deploy("f", BROKEN)).status == 422
    assert await statuses(client, "f") == {"failed"}
    assert (await client.deploy("f", GOOD)).status == 201
    assert await statuses(client, "f") == {"active"}
    assert (await client.deploy("f", BROKEN)).status == 422
    assert await statuses(client, "f") == {"active"}, "the version before serves"


async def test_a_stopped_function_is_inactive_whatever_its_versions_are(client: Client) -> None:
    assert (await client.deploy("f", BROKEN)).status == 422
    assert (await client.call("POST", "/api/functions/f/stop")).json["status"] == "inactive"
    assert await statuses(client, "f") == {"inactive"}
    assert (await client.call("POST", "/api/functions/f/start")).json["status"] == "failed"


async def test_a_function_is_building_before_its_first_version_is_done(start_api: StartApi) -> None:
    alone = await start_api({})  # no worker builds
    async with alone.client() as client:
        await client.register()
        assert (await client.deploy("f", GOOD, prefer=None)).status == 202
        assert await statuses(client, "f") == {"building"}


async def test_no_function_is_handed_a_database_of_all_functions(database: str, redis_url: str) -> None:
    names = ("FUNCTION_DATABASE_URL", "FUNCTION_DB_MAX_CONNECTIONS", "FUNCTION_DB_TIMEOUT_MS")
    env = dict(zip(names, (SECRET, "5", "5000"), strict=True))
    running = Platform(database_url=database, redis_url=redis_url, engine="process", env=env)
    code = {"main.py": "import os\ndef handler(event, context):\n    return dict(os.environ)\n"}
    async with running, running.client() as client:
        await client.register()
        assert (await client.deploy("env", code)).status == 201
        seen = (await client.invoke("env")).json["result"]
        assert "DATABASE_URL" not in seen
        assert "pw-of-all" not in json.dumps(seen)
