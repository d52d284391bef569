"""A release is replaced by the next one under load, process by process: both serve, and no job is lost."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from scenes import Load, Scene, scene, until

from shared.postgres.migrate import known_migrations
from tests.client import Client
from tests.deployment import ROOT, free_port

PACKAGES = ("api", "worker", "scheduler", "shared", "cli", "runtimes", "sql")
ADDED = f"{known_migrations()[-1].number + 1:04}_add_note.sql"
SCRIPTS = "from shared.queue.scripts import SCRIPTS; print(*(script.sha for script in SCRIPTS))"
UNKNOWN = re.compile(r"unknown job goes back to the queue  job=(\S+)")


def next_release(folder: Path) -> None:
    """Put the sources of a release there that comes after this one, with the same layout of the queue: all scripts have
    another text, messages a field more that only Python reads, and jobs a column more."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    prelude = folder / "shared/queue/lua/prelude.lua"
    replace(prelude, "-- Shared by every", "-- Of the next release, shared by every")
    message = folder / "shared/queue/message.py"
    replace(message, 'f"{self.enqueued_ms}\\n"', 'f"{self.enqueued_ms} note\\n"')
    replace(message, "priority, kind, enqueued = (", "priority, kind, enqueued, *_ = (")
    (folder / "sql/migrations" / ADDED).write_text("ALTER TABLE jobs ADD COLUMN note text;\n")


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, path
    path.write_text(text.replace(old, new))


async def run(on: Scene, *arguments: str) -> str:
    """What a command of the release says that processes are started from now."""
    command = [sys.executable, *arguments]
    done = await asyncio.to_thread(
        subprocess.run, command, env=on.platform.env, cwd=on.platform.folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@asynccontextmanager
async def by_way_of(url: str, on: Scene) -> AsyncIterator[Scene]:
    """The same account, seen by another API."""
    async with Client(url) as client:
        client.token = on.client.token
        yield Scene(on.platform, client, on.redis, on.database_url)


def answered(load: Load) -> None:
    for answer in load.accepts:
        assert answer.status == 202, answer
    for answer in load.invokes:
        assert answer.status == 200, answer
        assert (answer.json["success"], answer.json["result"]) == (True, "slept"), answer


async def test_f23_two_releases_serve_side_by_side_and_no_job_is_lost(
    database: str, redis_url: str, tmp_path: Path
) -> None:
    next_release(tmp_path)
    port = free_port()
    async with scene(database, redis_url) as old, by_way_of(f"http://127.0.0.1:{port}", old) as new:
        platform = old.platform
        ours = (await run(old, "-c", SCRIPTS)).split()
        platform.change(PYTHONPATH=str(tmp_path), PORT=str(port))
        theirs = (await run(old, "-c", SCRIPTS)).split()
        assert set(ours).isdisjoint(theirs)

        async def logged(process: str, words: str) -> None:
            async def found() -> bool:
                return words in platform.log(process).read_text()

            await until(found, 20, platform.logs)

        async with Load(old) as by_old:
            await by_old.served(10)
            assert ADDED in await run(old, "-m", "cli", "migrate")
            await by_old.served(10)

            platform.start("worker-2")
            await logged("worker-2", "joined the queue")
            await by_old.served(10)

            platform.start("api-2")
            await platform.ready(new.client.url)
            async with Load(new) as by_new:

                async def given_back() -> set[str]:
                    """Accepted jobs of the new release that the old worker had claimed."""
                    return set(UNKNOWN.findall(platform.log("worker-1").read_text())).intersection(new.accepted)

                await until(given_back, 30, platform.logs)
                await asyncio.gather(by_old.served(10), by_new.served(10))

                platform.start("scheduler-2")
                await platform.terminate("scheduler")
                await logged("scheduler-2", "leading")
                await asyncio.gather(by_old.served(10), by_new.served(10))

                await platform.terminate("worker-1")
                await asyncio.gather(by_old.served(10), by_new.served(10))

                await by_old.stop()
                await platform.terminate("api")
                await by_new.served(10)
        for load in (by_old, by_new):
            answered(load)
        old.nothing_exited()
        # As a leader whose scripts were not known would have closed it, and made a new one.
        assert "rebuilding the queue" not in platform.log("scheduler-2").read_text()
        for side in (old, new):
            jobs = await side.all_ended(20)
            assert {(row["attempt"], row["lost"]) for row in jobs.values()} == {(1, 0)}
            await side.one_outcome_each()
        attempts = await new.attempts()
        for job in await given_back():
            *before, last = attempts[job]
            assert before
            assert {record["outcome"] for record in before} == {"handed_back"}
            assert last["outcome"] == "succeeded"
            assert last["worker_id"] not in {record["worker_id"] for record in before}
