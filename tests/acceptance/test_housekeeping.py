"""Nothing outlives its owner: workers are killed, images pruned and functions deleted, with real containers."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiodocker
import pytest
from redis.asyncio import Redis

from shared.queue.queue import WORKERS
from tests.client import Answer, Client
from tests.deployment import Platform
from worker.build.code_cache import _prefix
from worker.config import EngineConfig
from worker.engine.docker.client import EngineClient
from worker.engine.docker.image_gc import FUNCTION, RUNTIME
from worker.engine.docker.sweep import sweep
from worker.sandbox.attach import SocketFolders

pytestmark = pytest.mark.docker

SWEPT_S = 60
ENV = {
    "LEASE_SECONDS": "4",
    "HEARTBEAT_SECONDS": "1",
    "LEADER_SECONDS": "3",
    "RECONCILE_SECONDS": "2",
    "SWEEP_SECONDS": "1",
    "SANDBOX_IDLE_SECONDS": "1",
    "SANDBOX_PAUSE_SECONDS": "0.3",
    "FUNCTION_MAX_CONCURRENT": "4",
}
NAP = """
import time

def handler(event, context):
    time.sleep(event["body"])
    return "slept"
"""


async def until(condition: Callable[[], Awaitable[Any]], within_s: float, why: Callable[[], object]) -> Any:
    """The first true answer of ``condition``."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while not (answer := await condition()):
        assert loop.time() < deadline, why()
        await asyncio.sleep(0.1)
    return answer


async def docker(*arguments: str, fails: bool = False) -> list[str]:
    done = await asyncio.to_thread(subprocess.run, ["docker", *arguments], capture_output=True, text=True, timeout=60)
    assert fails or done.returncode == 0, done.stderr
    return done.stdout.split()


async def containers(platform: Platform) -> dict[str, str]:
    """Container id to the worker that its label names, whatever its state."""
    label = f"label=containerpub.installation={platform.installation}"
    listed = await docker("ps", "-aq", "--filter", label)
    if not listed:
        return {}
    template = '{{.Id}} {{index .Config.Labels "containerpub.worker"}}'
    words = await docker("inspect", "--format", template, *listed, fails=True)
    return dict(zip(words[::2], words[1::2], strict=True))


async def images(platform: Platform, repository: str = RUNTIME) -> dict[str, str]:
    """Name to id of the images of runtimes, or of versions that are being built."""
    label = f"label=containerpub.installation={platform.installation}"
    shape = "{{.Repository}}:{{.Tag}} {{.ID}}"
    words = await docker("images", "--no-trunc", "--filter", label, "--format", shape, repository)
    return dict(zip(words[::2], words[1::2], strict=True))


async def workers(redis: Redis) -> set[str]:
    """The workers that are held to be alive."""
    return {worker.decode() for worker in await redis.hkeys(WORKERS)}  # type: ignore[misc]


async def of_dead_workers(platform: Platform, redis: Redis) -> list[str]:
    """Everything on this machine that belongs to no living worker of the platform."""
    living = await workers(redis)
    pids = {str(process.pid) for process in platform.processes.values()}
    left = [f"worker {worker} is held to live" for worker in living if worker.split("-")[-2] not in pids]
    left += [
        f"container {one} of {worker}" for one, worker in (await containers(platform)).items() if worker not in living
    ]
    data = platform.folder / "data"
    names = set()
    for worker in living:
        config = EngineConfig(
            installation=platform.installation,
            worker_id=worker,
            socket_dir=platform.folder / "s",
            data_dir=data,
        )
        names.add(SocketFolders.of("docker", config).own)
    for root in (platform.folder / "s", data / "sandboxes"):
        left += [str(path) for path in root.glob("*") if path.name not in names]
    making = tuple(_prefix(worker) for worker in living)
    left += [str(path) for path in data.glob("code/*/.making-*") if not path.name.startswith(making)]
    left += [name for name in await images(platform, FUNCTION) if "-source-" in name]
    # One a process that has one, and they are locked: nobody else's.
    scratch = list((data / "scratch").glob("*"))
    if len(scratch) > len(platform.processes):
        left += [str(path) for path in scratch]
    return left


class Steady:
    """A caller that goes on calling, and remembers what it was answered."""

    def __init__(self, client: Client, name: str) -> None:
        self.answers: list[Answer] = []
        self._client = client
        self._name = name

    async def __aenter__(self) -> Steady:
        self._task = asyncio.create_task(self._call())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _call(self) -> None:
        while True:
            self.answers.append(await self._client.invoke(self._name, 0.01))
            await asyncio.sleep(0.05)


async def test_f21_one_container_that_cannot_be_removed_keeps_no_other(tmp_path: Path) -> None:
    name = f"test-{uuid4().hex[:12]}"
    config = EngineConfig(installation=name, worker_id="living", socket_dir=tmp_path / "s", data_dir=tmp_path / "d")
    labels = ("--label", f"containerpub.installation={name}", "--label", "containerpub.worker=gone")
    made = [(await docker("create", *labels, "python:3.11-slim", "true"))[0] for _ in range(4)]
    (upper,) = await docker("inspect", "--format", "{{.GraphDriver.Data.UpperDir}}", made[2])
    held = Path(upper) / "held"
    held.touch()
    subprocess.run(["chattr", "+i", held], check=True)
    async with aiodocker.Docker() as engine:
        try:
            assert (
                await sweep(EngineClient(engine, 60.0).containers, config, (), frozenset({"living"}), frozenset()) == 3
            )
            assert await docker("ps", "-aq", "--no-trunc", "--filter", f"label={labels[1]}") == [made[2]]
        finally:
            subprocess.run(["chattr", "-i", held], check=True)
        assert await sweep(EngineClient(engine, 60.0).containers, config, (), frozenset({"living"}), frozenset()) == 1


async def test_f21_what_killed_workers_leave_goes_with_the_next_sweep_and_the_living_are_left_alone(
    database: str, redis_url: str
) -> None:
    redis = Redis.from_url(redis_url)
    async with (
        Platform(database_url=database, redis_url=redis_url, engine="docker", workers=2, env=ENV) as platform,
        platform.client() as client,
    ):
        await client.register()
        assert (await client.deploy("nap", {"main.py": NAP}, settings={"timeout_s": 20})).status == 201
        assert (await client.deploy("warm", {"main.py": NAP}, settings={"min_warm": 1})).status == 201
        async with Steady(client, "nap") as steady:
            for number in range(3):
                jobs = [await client.invoke("nap", 1.5, prefer="respond-async") for _ in range(6)]
                code = NAP + f"# {number}\n"
                jobs.append(await client.deploy("other", {"main.py": code}, prefer="respond-async"))
                victim = str(platform.processes["worker-1"].pid)

                async def has_some(pid: str = victim) -> bool:
                    return sum(worker.split("-")[-2] == pid for worker in (await containers(platform)).values()) > 1

                await until(has_some, 20, platform.logs)
                platform.kill("worker-1")
                platform.start("worker-1")
                for job in jobs:
                    assert job.status == 202, job
                    ended = await client.job(job.json["job_id"], wait=40)
                    assert ended["status"] == "succeeded", (ended, platform.logs())
            left: list[str] = []

            async def clean() -> bool:
                left[:] = await of_dead_workers(platform, redis)
                return not left and len(await workers(redis)) == 2

            await until(clean, SWEPT_S, lambda: (left, platform.logs()))
        failed = [answer for answer in steady.answers if answer.status != 200 or not answer.json["success"]]
        assert steady.answers
        assert failed == [], platform.logs()
        assert platform.processes["worker-2"].returncode is None

        # Every living worker keeps what is to be kept warm.
        async def warmed() -> bool:
            return len(set((await containers(platform)).values())) == 2

        await until(warmed, 20, platform.logs)
        await platform.stop()
        assert await containers(platform) == {}
    await redis.aclose()


async def test_f22_a_worker_that_is_told_to_stop_under_load_leaves_no_container(database: str, redis_url: str) -> None:
    env = ENV | {"SWEEP_SECONDS": "1000", "DRAIN_SECONDS": "1", "SANDBOX_IDLE_SECONDS": "60", "SANDBOX_AHEAD": "3"}
    async with (
        Platform(database_url=database, redis_url=redis_url, engine="docker", env=env) as platform,
        platform.client() as client,
    ):
        await client.register()
        settings: dict[str, dict[str, object]] = {
            "used": {},
            "fresh": {"isolation": "fresh"},
            "kept": {"min_warm": 2},
        }
        for name, wanted in settings.items():
            assert (await client.deploy(name, {"main.py": NAP + f"# {name}\n"}, settings=wanted)).status == 201
        for seconds in (0, 5):  # some end before the drain is over, and some are handed back
            calls = [await client.invoke(name, seconds, prefer="respond-async") for name in settings for _ in range(4)]
            assert {answer.status for answer in calls} == {202}

            async def several() -> bool:
                return len(await containers(platform)) >= 4

            await until(several, 30, platform.logs)
            await platform.terminate("worker-1")
            assert await containers(platform) == {}
            left = [
                path for root in ("s", "data/sandboxes", "data/scratch") for path in (platform.folder / root).glob("*")
            ]
            assert len(left) <= 1, left  # the API's scratch folder
            platform.start("worker-1")


async def test_f26_images_and_code_that_are_removed_come_back_and_callers_see_success(
    database: str, redis_url: str
) -> None:
    env = ENV | {"SANDBOX_IDLE_SECONDS": "0.3", "SANDBOX_GENERICS": "0", "FUNCTION_MAX_CONCURRENT": "8"}
    async with (
        Platform(database_url=database, redis_url=redis_url, engine="docker", env=env) as platform,
        platform.client() as client,
    ):
        await client.register()
        assert (await client.deploy("nap", {"main.py": NAP})).status == 201
        assert (await client.deploy("warm", {"main.py": NAP + "# warm\n"}, settings={"min_warm": 1})).status == 201
        for _ in range(4):
            # All at once, some while calls run: then the engine keeps the image, without a name.
            calls = [asyncio.create_task(client.invoke("nap", 0.2)) for _ in range(3)]
            await asyncio.sleep(0)
            for name, image in (await images(platform)).items():
                await docker("rmi", "--force", name, image, fails=True)
            for tree in (platform.folder / "data" / "code").glob("*/*/tree"):
                shutil.rmtree(tree.parent, ignore_errors=True)
            answers = [await one for one in calls]
            assert [answer.status for answer in answers] == [200] * 3, (answers, platform.logs())
            assert all(answer.json["success"] for answer in answers), (answers, platform.logs())

        # The sandbox that is kept warm comes back too. Its image may lose only its name, if that was quicker.
        gone = await containers(platform)
        for container in gone:
            await docker("rm", "--force", container, fails=True)
        for name, image in (await images(platform)).items():
            await docker("rmi", "--force", name, image, fails=True)

        async def back() -> bool:
            return not (await containers(platform)).keys() <= gone.keys()

        await until(back, 30, platform.logs)
        assert (await client.invoke("nap", 0)).json["success"]


async def test_images_that_nothing_was_started_from_of_late_go_past_the_budget_and_calls_bring_them_back(
    database: str, redis_url: str
) -> None:
    # Nothing but what is in use fits into the budget.
    env = ENV | {"IMAGE_DISK_BYTES": "1", "SANDBOX_GENERICS": "0"}
    async with (
        Platform(database_url=database, redis_url=redis_url, engine="docker", env=env) as platform,
        platform.client() as client,
    ):
        await client.register()
        assert (await client.deploy("called", {"main.py": NAP})).status == 201

        async def none_left() -> bool:
            return not await images(platform)

        await until(none_left, SWEPT_S, platform.logs)
        answer = await client.invoke("called", 0)
        assert (answer.status, answer.json["success"]) == (200, True), answer
        await until(none_left, SWEPT_S, platform.logs)


async def test_f9_no_sweep_takes_what_the_living_have_while_an_emptied_redis_names_nobody(
    database: str, redis_url: str
) -> None:
    env = ENV | {"SWEEP_SECONDS": "0.05", "SANDBOX_IDLE_SECONDS": "60", "SANDBOX_PAUSE_SECONDS": "60"}
    env |= {"HEARTBEAT_SECONDS": "0.5"}
    async with (
        Redis.from_url(redis_url) as redis,
        Platform(database_url=database, redis_url=redis_url, engine="docker", workers=2, env=env) as platform,
        platform.client() as client,
    ):
        await client.register()
        assert (await client.deploy("nap", {"main.py": NAP}, settings={"min_warm": 2})).status == 201

        async def warmed() -> bool:
            of_workers = Counter((await containers(platform)).values())
            return len(of_workers) == 2 and min(of_workers.values()) >= 2

        await until(warmed, 30, platform.logs)
        before = await containers(platform)

        async def served() -> bool:
            return (await client.invoke("nap", 0)).status == 200 and len(await workers(redis)) == 2

        for _ in range(3):
            # One worker shows up again long after the other's second heartbeat, and is alive all the same.
            platform.signal("worker-2", signal.SIGSTOP)
            await redis.flushall()
            await asyncio.sleep(float(env["LEASE_SECONDS"]) - 1)
            platform.signal("worker-2", signal.SIGCONT)
            await until(served, 30, platform.logs)
        # Both sweep again, twenty times a second.
        await asyncio.sleep(float(env["LEASE_SECONDS"]) + 1)
        assert before.items() <= (await containers(platform)).items(), platform.logs()
        assert all(process.returncode is None for process in platform.processes.values())
