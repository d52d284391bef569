"""A loop of the API that dies takes its process with it, so that a supervisor starts a whole one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from api.__main__ import serve
from api.subscriptions import Subscriptions
from shared.settings import load
from tests.deployment import free_port


async def test_api_process_ends_when_one_of_its_loops_dies(
    database: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dies(_: Subscriptions) -> int:
        raise ValueError("the loop of feeds")

    monkeypatch.setattr(Subscriptions, "run_once", dies)
    settings = load(
        {
            "DATABASE_URL": database,
            "REDIS_URL": redis_url,
            "DATA_DIR": str(tmp_path),
            "JWT_SECRET": "a secret of this test that is long enough",
            "HOST": "127.0.0.1",
            "PORT": str(free_port()),
        },
        needs_jwt=True,
    )
    with pytest.raises(ValueError, match="the loop of feeds"):
        async with asyncio.timeout(30):
            await serve(settings)
