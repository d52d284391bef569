"""Sandboxes are used again, and never by anybody else, for other code, or after they failed: through the platform, in
real containers."""

from __future__ import annotations

import asyncio

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
