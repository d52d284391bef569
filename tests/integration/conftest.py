"""An API process on its own, for tests of the HTTP boundary that need settings of their own and no worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import aiohttp
import pytest

from tests.client import Client
from tests.deployment import READY_S, Platform

StartApi = Callable[[dict[str, str]], Awaitable[Platform]]


@pytest.fixture
async def start_api(database: str, redis_url: str) -> AsyncIterator[StartApi]:
    """Starts API processes with settings of their own on one empty database, without scheduler and workers."""
    async with AsyncExitStack() as stack:

        async def start(env: dict[str, str]) -> Platform:
            alone = Platform(database_url=database, redis_url=redis_url, engine="process", env=env)
            stack.push_async_callback(alone.stop)
            alone.start("api")
            await listening(alone)
            return alone

        yield start


async def listening(alone: Platform) -> None:
    """Wait until its API answers."""
    deadline = asyncio.get_running_loop().time() + READY_S
    async with Client(alone.url) as client:
        while True:
            try:
                if (await client.call("GET", "/api/health")).status == 200:
                    return
            except aiohttp.ClientError:
                pass
            assert alone.processes["api"].returncode is None, alone.logs()
            assert asyncio.get_running_loop().time() < deadline, alone.logs()
            await asyncio.sleep(0.05)
