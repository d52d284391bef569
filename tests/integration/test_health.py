"""The health checks that containers run: true while the process they speak of does its work, false when it does not."""

from __future__ import annotations

import asyncio
import os
import sys

from tests.deployment import ROOT, Platform, free_port

EXPIRY_S = 20.0  # a silent worker's record lasts 11 s


async def check(room: str, **settings: str) -> tuple[int, str]:
    """Exit status and complaint of ``python -m {room}.health``."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        f"{room}.health",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **settings},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, complaint = await process.communicate()
    assert process.returncode is not None
    return process.returncode, complaint.decode()


async def test_all_are_healthy_while_the_platform_runs(platform: Platform, database: str, redis_url: str) -> None:
    outcomes = await asyncio.gather(
        check("api", HOST="0.0.0.0", PORT=str(platform.port)),
        check("worker", REDIS_URL=redis_url),
        check("scheduler", DATABASE_URL=database),
    )
    assert outcomes == [(0, ""), (0, ""), (0, "")]


async def test_nothing_is_healthy_where_nothing_runs(database: str, redis_url: str) -> None:
    outcomes = await asyncio.gather(
        check("api", PORT=str(free_port())),
        check("worker", REDIS_URL=redis_url),
        check("scheduler", DATABASE_URL=database),
    )
    assert [status for status, _ in outcomes] == [1, 1, 1]
    for (_, complaint), expected in zip(outcomes, ("no answer", "has signed on", "no scheduler leads"), strict=True):
        assert expected in complaint


async def test_a_dependency_that_is_away_is_a_sentence_and_not_a_traceback() -> None:
    nowhere = free_port()
    outcomes = await asyncio.gather(
        check("worker", REDIS_URL=f"redis://127.0.0.1:{nowhere}/0"),
        check("scheduler", DATABASE_URL=f"postgresql://x:y@127.0.0.1:{nowhere}/x"),
        check("worker", REDIS_URL="http://wrong"),
    )
    assert [status for status, _ in outcomes] == [1, 1, 1]
    assert not any("Traceback" in complaint for _, complaint in outcomes)


async def test_a_killed_worker_is_unhealthy_soon_and_a_new_one_healthy(platform: Platform, redis_url: str) -> None:
    platform.kill("worker-1")
    async with asyncio.timeout(EXPIRY_S):
        while (await check("worker", REDIS_URL=redis_url))[0] == 0:
            pass
    platform.start("worker-1")
    async with asyncio.timeout(EXPIRY_S):
        while (await check("worker", REDIS_URL=redis_url))[0] != 0:
            pass


async def test_an_api_without_workers_is_not_ready(platform: Platform, redis_url: str) -> None:
    await platform.terminate("worker-1")
    status, complaint = await check("api", PORT=str(platform.port))
    assert status == 1
    assert "no worker yet" in complaint
