"""``containerpub up`` with its real servers and processes: one folder, and nothing left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import asyncpg
import psutil
import pytest

from cli.supervisor.engine import ANSWER_TIMEOUT_S, choose_engine
from cli.supervisor.ledger import Ledger
from shared.embedded.postgres import EmbeddedPostgres
from shared.sealing import new_key
from tests.processes import assert_gone, command_line

ROOT = Path(__file__).parents[2]
READY_S = 60
STOP_S = 30


class Up:
    """One ``containerpub up`` on ``data``; what it says goes to a file, so that nothing it says can stall it."""

    def __init__(self, data: Path, said: Path, *arguments: str, **variables: str) -> None:
        self.data = data
        self.said = said
        command = [sys.executable, "-m", "cli", "up", "--data", str(data), "--port", "0", "--engine", "process"]
        with said.open("ab") as output:
            self.process = subprocess.Popen(
                [*command, *arguments], cwd=ROOT, env={**os.environ, **variables}, stdout=output, stderr=output
            )

    async def url(self) -> str:
        file = self.data / "api.url"
        await until(lambda: "ready: " in self.text() or self.process.poll() is not None, READY_S, self.text)
        assert self.process.poll() is None, self.text()
        return file.read_text().strip()

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def child(self, name: str) -> psutil.Process | None:
        """The running child whose command line shows ``name``."""
        for process in psutil.Process(self.process.pid).children():
            if name in " ".join(command_line(process)):
                return process
        return None

    async def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return await asyncio.to_thread(self.process.wait, STOP_S + 5)

    async def says(self, text: str) -> None:
        await until(lambda: text in self.text(), 10, self.text)

    def text(self) -> str:
        return self.said.read_text(errors="replace")


async def until(holds: Callable[[], object], within_s: float, told: Callable[[], str]) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + within_s
    while not holds():
        assert loop.time() < end, told()
        await asyncio.sleep(0.05)


async def is_ready(url: str) -> bool:
    try:
        async with aiohttp.ClientSession() as session, session.get(f"{url}/api/ready") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


async def until_ready(up: Up) -> None:
    url = await up.url()
    loop = asyncio.get_running_loop()
    end = loop.time() + READY_S
    while not await is_ready(url):
        assert loop.time() < end, up.text()
        await asyncio.sleep(0.1)


Start = Callable[..., Up]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    started: list[Up] = []

    def begin(*arguments: str, data: Path = tmp_path / "data", **variables: str) -> Up:
        up = Up(data, tmp_path / f"said-{len(started)}", *arguments, **variables)
        started.append(up)
        return up

    yield begin
    for up in started:
        if up.process.poll() is None:
            try:
                await up.end(signal.SIGTERM)
            finally:
                up.process.kill()


async def test_one_command_makes_a_ready_server_in_a_private_folder(start: Start) -> None:
    up = start()
    assert await is_ready(await up.url())
    for name in ("", "postgres", "redis", "artifacts"):
        assert stat.S_IMODE((up.data / name).stat().st_mode) == 0o700
    for name in ("jwt_secret", "encryption_keys", "installation_id", "lock", "postgres/password", "redis/password"):
        assert stat.S_IMODE((up.data / name).stat().st_mode) == 0o600
    assert len((up.data / "jwt_secret").read_text()) == 64
    kept = ("jwt_secret", "encryption_keys", "postgres/password", "redis/password")
    secrets = [(up.data / name).read_text() for name in kept]
    shown = up.text() + " ".join(word for process in up.family() for word in command_line(process))
    assert [secret for secret in secrets if secret in shown] == []
    await up.says("containerpub register")
    assert "development only" in up.text()


async def test_secrets_and_identity_are_drawn_once(start: Start) -> None:
    kept = ("jwt_secret", "encryption_keys", "installation_id", "postgres/password", "redis/password")
    up = start()
    await up.url()
    before = [(up.data / name).read_text() for name in kept]
    assert await up.end(signal.SIGTERM) == 0
    again = start()
    await again.url()
    assert [(up.data / name).read_text() for name in kept] == before


async def test_a_new_key_before_the_old_one_seals_everything_at_the_next_start(start: Start) -> None:
    up = start()
    await up.url()
    file = up.data / "encryption_keys"
    old = file.read_text()
    assert await up.end(signal.SIGTERM) == 0
    file.write_text(f"new:{new_key().partition(':')[2]}\n{old}")
    again = start()
    await again.url()
    await again.says("sealed anew: 0 jobs, 0 invocations, 0 log entries")
    assert await again.end(signal.SIGTERM) == 0
    file.write_text("new:short")
    refused = start()
    await refused.says('encryption_keys: key 1 ("new") is not base64')
    assert await asyncio.to_thread(refused.process.wait, 20) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_stop_leaves_nothing_running_within_30_seconds(start: Start, number: signal.Signals) -> None:
    up = start()
    await up.url()
    family = up.family()
    assert {"api", "scheduler", "worker"} <= {word for process in family for word in command_line(process)[-1:]}
    assert await up.end(number) == 0, up.text()
    assert_gone(family, within_s=0)
    assert not (up.data / "api.url").exists()
    identity = (up.data / "installation_id").read_text()
    assert not Path(f"/tmp/containerpub-{identity[:8]}").exists()


async def test_stop_during_the_start_leaves_nothing_running(start: Start) -> None:
    up = start()
    await until(lambda: up.child("postgres") or up.child("initdb"), READY_S, up.text)
    family = up.family()
    assert await up.end(signal.SIGTERM) == 0, up.text()
    assert_gone(family, within_s=0)
    await start().url()


async def test_second_up_on_a_folder_is_refused_with_the_holders_pid(start: Start) -> None:
    up = start()
    url = await up.url()
    second = start()
    assert await asyncio.to_thread(second.process.wait, READY_S) == 1
    assert f"in use by the process {up.process.pid}" in second.text()
    assert len(second.text().splitlines()) == 1
    assert await is_ready(url)


async def test_port_in_use_is_told_in_a_sentence(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        up = start("--port", str(taken.getsockname()[1]))
        assert await asyncio.to_thread(up.process.wait, READY_S) == 1
    assert "Choose another" in up.text()
    assert "Traceback" not in up.text()
    assert not (up.data / "postgres").exists()


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"JWT_SECRET": "short"}, ["JWT_SECRET: must be set to 32 bytes"]),
        ({"DRAIN_SECONDS": "soon", "REDIS_URL": "http://cache"}, ["DRAIN_SECONDS: ", "REDIS_URL: "]),
    ],
)
async def test_settings_with_mistakes_end_it_before_anything_is_started(
    start: Start, variables: dict[str, str], named: list[str]
) -> None:
    up = start(**variables)
    assert await asyncio.to_thread(up.process.wait, READY_S) == 2
    assert [name for name in named if name not in up.text()] == []
    assert len(up.text().splitlines()) == 1 + len(named)
    assert not (up.data / "postgres").exists()
    again = start()  # it let go of the folder
    await again.url()


async def test_engine_that_was_asked_for_and_is_away_is_told_in_a_sentence(start: Start, tmp_path: Path) -> None:
    up = start("--engine", "docker", DOCKER_HOST=f"unix://{tmp_path}/none.sock")
    assert await asyncio.to_thread(up.process.wait, READY_S) == 1
    assert "No container engine can be used" in up.text()
    assert "Traceback" not in up.text()


@pytest.mark.parametrize("name", ["-m worker", "-m api", "-m scheduler", "redis-server", "bin/postgres"])
async def test_killed_child_is_started_again(start: Start, name: str) -> None:
    up = start("--workers", "1")
    await up.url()
    before = up.child(name)
    assert before is not None, up.text()
    before.kill()
    before.wait(10)
    await until(lambda: up.child(name), READY_S, up.text)
    assert "was ended by SIGKILL; starting it again" in up.text()
    await until_ready(up)
    assert await up.end(signal.SIGTERM) == 0, up.text()


async def account(url: str, path: str, within_s: float = 30) -> int:
    body = {"email": "one@example.com", "password": "correct horse battery"}
    if path == "register":
        body["username"] = "one"
    async with aiohttp.ClientSession() as session:
        timeout = aiohttp.ClientTimeout(total=within_s)
        async with session.post(f"{url}/api/auth/{path}", json=body, timeout=timeout) as answer:
            return answer.status


@pytest.mark.parametrize("at_once", [True, False])
async def test_killed_supervisor_leaves_no_process_and_loses_nothing(start: Start, at_once: bool) -> None:
    up = start()
    assert await account(await up.url(), "register") in (200, 201)
    family = up.family()
    up.process.kill()
    await asyncio.to_thread(up.process.wait, 10)
    if not at_once:
        assert_gone(family, within_s=5)
    again = start()
    assert await account(await again.url(), "login") == 200
    assert_gone(family, within_s=0)
    assert await again.end(signal.SIGTERM) == 0, again.text()


async def test_child_that_does_not_last_is_started_again_ever_later(start: Start) -> None:
    up = start("--workers", "1")
    await up.url()
    for delay in ("0.2 s", "0.4 s", "0.8 s"):
        await until(lambda: up.child("-m worker"), READY_S, up.text)
        worker = up.child("-m worker")
        assert worker is not None
        worker.kill()
        await up.says(f"worker-1 was ended by SIGKILL; starting it again in {delay}")


async def test_child_that_ignores_the_stop_is_killed_within_30_seconds(start: Start) -> None:
    up = start("--workers", "1")
    await up.url()
    family = up.family()
    worker = up.child("-m worker")
    assert worker is not None
    worker.suspend()
    began = asyncio.get_running_loop().time()
    assert await up.end(signal.SIGTERM) == 0, up.text()
    assert asyncio.get_running_loop().time() - began < STOP_S
    assert_gone(family, within_s=0)


async def test_second_signal_kills_what_is_still_there(start: Start) -> None:
    up = start("--workers", "1")
    await up.url()
    family = up.family()
    worker = up.child("-m worker")
    assert worker is not None
    worker.suspend()
    up.process.send_signal(signal.SIGINT)
    await up.says("SIGINT: stopping")
    began = asyncio.get_running_loop().time()
    assert await up.end(signal.SIGINT) == 0, up.text()
    assert asyncio.get_running_loop().time() - began < 10
    assert_gone(family, within_s=0)


def test_leftovers_are_ended_only_while_they_are_the_same_process(tmp_path: Path) -> None:
    file = tmp_path / "processes.json"
    with subprocess.Popen(["sleep", "600"]) as same, subprocess.Popen(["sleep", "600"]) as reused:
        try:
            ledger = Ledger(file)
            ledger.record("same", same.pid)
            ledger.record("reused", reused.pid)
            recorded = json.loads(file.read_text())
            recorded["reused"][1] -= 60
            file.write_text(json.dumps(recorded))
            assert Ledger(file).end_leftovers() == ["same"]
            same.wait(10)
            assert reused.poll() is None
            assert Ledger(file).end_leftovers() == []
        finally:
            same.kill()
            reused.kill()


@pytest.mark.docker
async def test_engine_that_answers_is_found_by_itself() -> None:
    engine = await choose_engine("auto", os.environ)
    assert engine.name == "docker"
    assert engine.docker_host is not None
    assert await choose_engine("docker", {"DOCKER_HOST": engine.docker_host}) == engine


async def test_engine_that_never_answers_is_given_up_in_time(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "mute.sock"))
        mute.listen()  # takes connections, and that is all
        async with asyncio.timeout(ANSWER_TIMEOUT_S + 2):
            engine = await choose_engine("auto", {"DOCKER_HOST": f"unix://{tmp_path}/mute.sock"})
    assert engine.name == "process"
    assert f"did not answer within {ANSWER_TIMEOUT_S:g} s" in engine.notes[0]


async def test_process_engine_lets_one_user_register(start: Start) -> None:
    up = start()
    url = await up.url()
    assert await account(url, "register") in (200, 201)
    other = {"email": "two@example.com", "username": "two", "password": "correct horse battery"}
    async with aiohttp.ClientSession() as session, session.post(f"{url}/api/auth/register", json=other) as answer:
        assert 400 <= answer.status < 500


async def test_users_own_database_is_used_instead(start: Start, tmp_path: Path) -> None:
    async with EmbeddedPostgres(tmp_path / "own") as own:
        up = start(DATABASE_URL=own.dsn)
        await up.url()
        assert not (up.data / "postgres").exists()
        connection = await asyncpg.connect(own.dsn)
        assert await connection.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        await connection.close()
        assert await up.end(signal.SIGTERM) == 0, up.text()


async def test_packages_in_the_users_folder_do_not_get_in_the_way(tmp_path: Path) -> None:
    """A user's project may well have a folder named ``api`` or ``worker``."""
    for name in ("api", "worker", "scheduler", "cli"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__main__.py").write_text("raise SystemExit('the wrong one')")
    said = tmp_path / "said"
    command = [sys.executable, "-P", "-m", "cli", "up", "--data", "data", "--port", "0", "--engine", "process"]
    with said.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=output, stderr=output
        )
    try:
        await until((tmp_path / "data" / "api.url").exists, READY_S, said.read_text)
        assert "the wrong one" not in said.read_text()
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, STOP_S + 5)
