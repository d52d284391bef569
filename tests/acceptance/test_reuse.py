"""Sandboxes are used again, and never by anybody else, for other code, or after they failed: through the platform, in
real containers."""

from __future__ import annotations

import asyncio
from collections import Counter

import psutil
import pytest

from tests.deployment import Platform

pytestmark = pytest.mark.docker

_LEDGER = """
import os, uuid
mark, seen = str(uuid.uuid4()), []

def handler(event, context):
    what, who = event["body"]
    if what == "loop":
        while True:
            pass
    if what == "hoard":
        held = []
        while True:
            held.append(bytearray(1024 * 1024))
    if what == "exit":
        os._exit(0)
    seen.append(who)
    return [mark, sorted(set(seen))]
"""
_LEAKY = """
import os, uuid
mark, kept = str(uuid.uuid4()), []

def handler(event, context):
    kept.append(bytes(4096))
    if event["body"] == "descriptors":
        os.open("/dev/null", os.O_RDONLY)
    return [mark, len(kept)]
"""
_MOST_USES = 600
_MOST_DESCRIPTORS = 32  # left behind by a function until its sandbox is not used again


async def test_w6_w7_a_sandbox_serves_one_user_and_none_after_it_failed(database: str, redis_url: str) -> None:
    async with (
        Platform(database_url=database, redis_url=redis_url, engine="docker") as platform,
        platform.client() as alice,
        platform.client() as bob,
    ):
        marks: dict[str, set[str]] = {"alice": set(), "bob": set()}
        for client in (alice, bob):
            await client.register()
            answer = await client.deploy("ledger", {"main.py": _LEDGER}, settings={"memory_mb": 64, "timeout_s": 1})
            assert answer.json["version"] == 1, answer

        async def call(name: str) -> None:
            answer = await (alice if name == "alice" else bob).invoke("ledger", ["call", name])
            assert answer.json["success"], answer
            mark, seen = answer.json["result"]
            assert seen == [name]
            marks[name].add(mark)

        for _ in range(5):
            await asyncio.gather(*(call(name) for name in ("alice", "bob", "bob", "alice")))
        assert not marks["alice"] & marks["bob"]
        # Used again at all: else this would show nothing.
        assert sum(map(len, marks.values())) < 20

        for what, reason in (("loop", "timeout"), ("hoard", "out_of_memory"), ("exit", "crashed")):
            before = (await alice.invoke("ledger", ["call", "alice"])).json["result"][0]
            failed = (await alice.invoke("ledger", [what, "alice"])).json
            assert failed["reason"] == reason
            used = {(await alice.invoke("ledger", ["call", "alice"])).json["result"][0] for _ in range(3)}
            # One at a time, the most recently used serves: it took the failing call, and is gone.
            assert before not in used


async def test_w5_after_a_deploy_has_answered_no_call_meets_the_old_code(database: str, redis_url: str) -> None:
    async with (
        Platform(database_url=database, redis_url=redis_url, engine="docker", workers=2) as platform,
        platform.client() as client,
    ):
        await client.register()
        deployed = 0

        async def deploy(number: int) -> None:
            nonlocal deployed
            code = f"def handler(event, context):\n    return {number}\n"
            answer = await client.deploy("marker", {"main.py": code})
            assert answer.json["version"] == number, answer
            deployed = number

        await deploy(1)
        calls, over = 0, asyncio.Event()

        async def traffic() -> None:
            nonlocal calls
            while not over.is_set():
                least = deployed
                answer = await client.invoke("marker")
                assert answer.json["success"], answer
                assert answer.json["result"] >= least
                calls += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(traffic())
            for number in (2, 3):
                await deploy(number)
                goal = calls + 50
                while calls < goal:
                    await asyncio.sleep(0.01)
            over.set()
        assert (await client.invoke("marker")).json["result"] == 3


async def test_w8_sandboxes_that_leak_with_every_call_are_replaced_and_their_worker_is_as_before(
    database: str, redis_url: str
) -> None:
    env = {"SANDBOX_MAX_USES": str(_MOST_USES), "SANDBOX_IDLE_SECONDS": "3", "SANDBOX_GENERICS": "0"}
    async with (
        Platform(database_url=database, redis_url=redis_url, engine="docker", env=env) as platform,
        platform.client() as client,
    ):
        await client.register()
        for name in ("memory", "descriptors"):
            assert (await client.deploy(name, {"main.py": _LEAKY}, settings={"memory_mb": 64})).status == 201
        uses: dict[str, Counter[str]] = {"memory": Counter(), "descriptors": Counter()}

        async def calls(name: str, count: int) -> None:
            for _ in range(count):
                answer = await client.invoke(name, name)
                assert answer.status == 200, answer
                assert answer.json["success"], answer
                mark, use = answer.json["result"]
                uses[name][mark] = max(uses[name][mark], use)

        async def crowd(count: int) -> None:
            async with asyncio.TaskGroup() as group:
                for _ in range(8):
                    group.create_task(calls("memory", count * 9 // 10))
                    group.create_task(calls("descriptors", count // 10))

        worker = psutil.Process(platform.processes["worker-1"].pid)
        descriptors = worker.num_fds()
        await crowd(250)
        memory = worker.memory_info().rss  # now it has what it needs for such a crowd
        await crowd(1000)
        assert {name: seen.total() for name, seen in uses.items()} == {"memory": 9000, "descriptors": 1000}
        for name, most in (("memory", _MOST_USES), ("descriptors", _MOST_DESCRIPTORS + 1)):
            assert len(uses[name]) >= 10
            assert max(uses[name].values()) == most

        # Less than a kilobyte a call, and less than a descriptor a sandbox; some are connections that are kept for a
        # while, to Postgres, Redis and the engine.
        assert worker.memory_info().rss - memory < 8_000_000
        async with asyncio.timeout(30):
            while worker.num_fds() > descriptors + 10:
                await asyncio.sleep(0.1)
