"""Processes that die, or are cut off, at the worst moment: between a result and its record, or around a commit.

A relay between a process and a server holds what it says at that moment; then the process is killed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

import aiohttp
import asyncpg
import pytest
from scenes import LEASE_S, Load, Scene, own_postgres, scene, until

from bench.relay import Relay
from shared.embedded.postgres import EmbeddedPostgres
from shared.postgres.migrate import migrate
from shared.queue.queue import RECORDS
from shared.queue.scripts import ENQUEUE
from tests.client import Answer
from tests.clocks import WallClock
from tests.deployment import free_port
from tests.machine import lacks

__all__ = ["own_postgres"]  # a fixture

KEY = "order-4711"
DELAY_S = 2
LATER = f"/api/functions/nap/invoke?delay={DELAY_S}"


@asynccontextmanager
async def redis_relay(folder: Path, redis_url: str) -> AsyncIterator[tuple[Relay, str]]:
    """A relay, and the Redis address that leads through it."""
    address = urlsplit(redis_url)
    path = folder / "redis.sock"
    async with Relay(path, Path(unquote(address.path))) as relay:
        yield relay, f"unix://{quote(str(path), safe='/')}?{address.query}"


@asynccontextmanager
async def postgres_relay(folder: Path, database_url: str) -> AsyncIterator[tuple[Relay, str]]:
    """A relay, and the database address that leads through it."""
    base, _, query = database_url.partition("?")
    asked = parse_qs(query)
    name = f".s.PGSQL.{asked['port'][0]}"
    async with Relay(folder / name, Path(asked["host"][0]) / name) as relay:
        yield relay, f"{base}?host={quote(str(folder), safe='/')}&port={asked['port'][0]}"


@pytest.fixture
def sockets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s")


async def only(on: Scene, name: str, **env: str) -> None:
    """Replace the worker by one with other settings, the only one from then on."""
    before = on.platform.env
    on.platform.change(**env)
    on.platform.start(name)
    on.platform.change(**{key: before[key] for key in env})
    await on.platform.terminate("worker-1")
    assert (await on.client.invoke("nap", 0)).status == 200

    async def recorded() -> bool:
        return bool(await on.rows("SELECT FROM invocations"))

    # Nothing of it may be on its way any more when what follows is held.
    await until(recorded, 15, on.platform.logs)
    await on.drained()


async def with_api(on: Scene, **env: str) -> None:
    """Replace the API process by one with other settings."""
    await on.platform.terminate("api")
    on.platform.change(**env)
    on.platform.start("api")
    await on.platform.ready()


async def attempts_of_the_one(on: Scene) -> list[tuple[str, int]]:
    (records,) = (await on.attempts()).values()
    return [(record["outcome"], record["attempt"]) for record in records]


async def test_f2_worker_killed_after_the_result_and_before_anybody_knew_it_runs_it_again(
    database: str, redis_url: str, sockets: Path
) -> None:
    async with scene(database, redis_url) as on, redis_relay(sockets, redis_url) as (relay, through):
        await only(on, "worker-2", REDIS_URL=through)
        relay.hold_request(b'"succeeded"')  # the settle
        await on.accept(0)
        await asyncio.wait_for(relay.held.wait(), 20)
        assert await on.kill_worker("worker-2") == set(on.accepted)
        on.platform.start("worker-3")
        await on.all_ended(LEASE_S + 5)
        assert await attempts_of_the_one(on) == [("lost", 1), ("succeeded", 2)]
        await on.one_outcome_each()


async def test_f2_worker_killed_with_a_record_that_is_not_committed_leaves_it_to_another(
    database: str, redis_url: str, sockets: Path
) -> None:
    async with scene(database, redis_url) as on, postgres_relay(sockets, database) as (relay, through):
        await only(on, "worker-2", DATABASE_URL=through)
        relay.hold_request(b"COMMIT")
        await on.accept(0)
        await asyncio.wait_for(relay.held.wait(), 20)
        await on.kill_worker("worker-2")
        await relay.cut()
        ((status, result),) = await on.rows(
            "SELECT status, result FROM jobs WHERE kind = 'invoke' AND id = ANY ($1)", on.ids
        )
        assert (status, result) == ("queued", None), "it was committed all the same"
        assert await on.redis.xlen(RECORDS) == 1, "it was acknowledged before it was committed"
        on.platform.start("worker-3")
        await on.all_ended(15)
        assert await attempts_of_the_one(on) == [("succeeded", 1)]
        ((record,),) = (await on.attempts()).values()
        assert on.killed[record["worker_id"].split("-")[-2]] == "worker-2", "it was run again"
        await on.one_outcome_each()


async def test_f3_worker_killed_between_commit_and_acknowledgement_leaves_no_second_record(
    database: str, redis_url: str, sockets: Path
) -> None:
    async with scene(database, redis_url) as on, redis_relay(sockets, redis_url) as (relay, through):
        await only(on, "worker-2", REDIS_URL=through)
        relay.hold_request(b"XACK")
        await on.accept(0)
        await asyncio.wait_for(relay.held.wait(), 20)
        await on.kill_worker("worker-2")
        before = await on.jobs()
        assert [row["status"] for row in before.values()] == ["succeeded"]
        assert await on.redis.xlen(RECORDS) == 1
        on.platform.start("worker-3")
        assert await attempts_of_the_one(on) == [("succeeded", 1)]
        assert await on.jobs() == before
        await on.one_outcome_each()


async def test_f4_settle_of_a_worker_that_slept_beyond_its_lease_ends_nothing_that_another_runs(
    database: str, redis_url: str, sockets: Path
) -> None:
    async with scene(database, redis_url) as on, redis_relay(sockets, redis_url) as (relay, through):
        await only(on, "worker-2", REDIS_URL=through)
        relay.hold_request(b'"succeeded"')  # the settle
        await on.accept(LEASE_S)
        await asyncio.wait_for(relay.held.wait(), 20)
        on.platform.signal("worker-2", signal.SIGSTOP)
        on.platform.start("worker-3")

        async def runs_again() -> bool:
            return "worker-3" in await on.holders()

        await until(runs_again, 3 * LEASE_S + 5, on.platform.logs)
        relay.hold_request(b"")
        relay.flow()
        on.platform.signal("worker-2", signal.SIGCONT)

        async def told() -> bool:
            return "settle refused" in on.platform.log("worker-2").read_text()

        await until(told, 15, on.platform.logs)
        await on.all_ended(15)
        assert await attempts_of_the_one(on) == [("lost", 1), ("succeeded", 2)]
        (records,) = (await on.attempts()).values()
        pids = {str(process.pid): name for name, process in on.platform.processes.items()}
        assert [pids[record["worker_id"].split("-")[-2]] for record in records] == ["worker-2", "worker-3"]
        on.nothing_exited()
        await on.one_outcome_each()


async def test_f5_job_whose_api_died_between_its_commit_and_the_queue_is_found(
    database: str, redis_url: str, sockets: Path
) -> None:
    async with scene(database, redis_url) as on, redis_relay(sockets, redis_url) as (relay, through):
        await with_api(on, REDIS_URL=through)
        relay.hold_request(ENQUEUE.sha.encode())
        await on.accept_many(1, 0)
        await asyncio.wait_for(relay.held.wait(), 20)
        on.platform.kill("api")
        await relay.cut()
        assert not await on.redis.exists("cp:invoke:messages"), "it was on the queue already"
        await on.all_ended(10)
        assert await attempts_of_the_one(on) == [("succeeded", 1)]
        await on.one_outcome_each()


async def test_f7_same_key_at_two_apis_is_one_job(database: str, redis_url: str) -> None:
    async with scene(database, redis_url, workers=2) as on:
        port = free_port()
        on.platform.change(PORT=str(port))
        on.platform.start("api-2")
        urls = (on.platform.url, f"http://127.0.0.1:{port}")
        await on.platform.ready(urls[1])
        headers = {"Prefer": "respond-async", "Idempotency-Key": KEY, "Authorization": f"Bearer {on.client.token}"}

        async def ask(url: str) -> str:
            async with on.client.http.post(
                f"{url}/api/functions/nap/invoke", json={"body": 0}, headers=headers
            ) as answer:
                assert answer.status == 202, await answer.text()
                return str((await answer.json())["job_id"])

        (job,) = set(await asyncio.gather(*(ask(url) for url in urls * 25)))
        on.accepted.append(job)
        await on.all_ended(10)
        assert [str(row["id"]) for row in await on.rows("SELECT id FROM jobs WHERE kind = 'invoke'")] == [job]
        assert on.runs.read_text().split() == [job]
        await on.one_outcome_each()


@pytest.mark.parametrize("committed", [False, True], ids=["before-the-commit", "after-the-commit"])
async def test_f6_api_killed_around_its_commit_may_be_asked_again(
    database: str, redis_url: str, sockets: Path, committed: bool
) -> None:
    async with scene(database, redis_url) as on, postgres_relay(sockets, database) as (relay, through):
        on.platform.kill("api")
        on.platform.change(DATABASE_URL=through)
        on.platform.start("api")
        await on.platform.ready()
        (relay.hold_answer if committed else relay.hold_request)(KEY.encode())

        async def ask() -> Answer:
            headers = {"Prefer": "respond-async", "Idempotency-Key": KEY}
            return await on.client.call("POST", "/api/functions/nap/invoke", json={"body": 0}, headers=headers)

        asking = asyncio.create_task(ask())
        await asyncio.wait_for(relay.held.wait(), 20)
        on.platform.kill("api")
        with pytest.raises(aiohttp.ClientError):
            await asking
        rows = await on.rows("SELECT id FROM jobs WHERE kind = 'invoke'")
        keys = await on.rows("SELECT job_id FROM idempotency_keys")
        assert (len(rows), len(keys)) == ((1, 1) if committed else (0, 0))
        on.platform.change(DATABASE_URL=database)
        on.platform.start("api")
        await on.platform.ready()
        answer = await ask()
        assert answer.status == 202
        on.accepted.append(answer.json["job_id"])
        assert [str(row["id"]) for row in await on.rows("SELECT id FROM jobs WHERE kind = 'invoke'")] == on.accepted
        assert not committed or str(rows[0]["id"]) == on.accepted[0]
        await on.all_ended(15)
        await on.one_outcome_each()


async def test_f12_worker_cut_off_from_redis_beyond_its_lease_lives_and_serves_again(
    database: str, redis_url: str, sockets: Path
) -> None:
    async with scene(database, redis_url) as on, redis_relay(sockets, redis_url) as (relay, through):
        await only(on, "worker-2", REDIS_URL=through)
        relay.delay_s = 0.25  # half a second there and back would be as slow as it gets within a region
        await on.accept_many(2, 1)
        await on.busy()
        relay.stall()
        on.platform.start("worker-3")
        await on.all_ended(LEASE_S + 15)
        relay.delay_s = 0
        relay.flow()
        await on.platform.terminate("worker-3")
        await on.accept_many(4, 0)
        await on.all_ended(20)
        on.nothing_exited()
        outcomes = await on.rows("SELECT DISTINCT outcome FROM invocations ORDER BY 1")
        assert [row["outcome"] for row in outcomes] == ["lost", "succeeded"]
        await on.one_outcome_each()


async def test_f12_callers_of_a_redis_that_hangs_do_not_wait_for_each_other(
    database: str, redis_url: str, sockets: Path
) -> None:
    names = [f"nap-{number}" for number in range(8)]
    async with scene(database, redis_url, DEPENDENCY_TIMEOUT_SECONDS="2") as on:
        for name in names:
            assert (await on.client.deploy(name, {"main.py": on.nap})).status == 201
        await on.accept_many(1, 60)
        await on.busy()
        async with redis_relay(sockets, redis_url) as (relay, through):
            await with_api(on, REDIS_URL=through)
            relay.stall()
            async with asyncio.timeout(4):  # a look and its time-out
                looks = await asyncio.gather(
                    *(on.client.call("GET", f"/api/jobs/{on.accepted[0]}") for _ in range(30)),
                    *(on.client.call("GET", "/api/jobs") for _ in range(10)),
                )
            async with asyncio.timeout(2):
                asked = [on.client.invoke(name, 0, prefer="respond-async") for name in names * 3]
                accepts = await asyncio.gather(*asked)
            async with asyncio.timeout(4):
                waits = await asyncio.gather(*(on.client.invoke(name, 0) for name in names))
            relay.flow()
            assert {answer.status for answer in looks} == {200}
            assert {answer.status for answer in accepts} == {202}
            assert {(answer.status, answer.json["code"]) for answer in waits} == {(503, "dependency_down")}
            await on.client.call("POST", f"/api/jobs/{on.accepted.pop()}/cancel")
            on.accepted += [answer.json["job_id"] for answer in accepts]
            await on.all_ended(20)
            await on.one_outcome_each()
            await on.platform.terminate("api")  # before what it speaks through


async def test_f14_callers_of_a_postgres_that_hangs_do_not_wait_for_each_other(
    database: str, redis_url: str, sockets: Path
) -> None:
    async with scene(database, redis_url, DEPENDENCY_TIMEOUT_SECONDS="2") as on:
        await on.accept_many(1, 0)
        await on.all_ended(20)
        async with postgres_relay(sockets, database) as (relay, through):
            await with_api(on, DATABASE_URL=through)
            assert (await on.client.invoke("nap", 0)).status == 200  # so that the function is known
            assert (await on.client.call("GET", f"/api/jobs/{on.accepted[0]}")).status == 200
            relay.stall()
            async with asyncio.timeout(7):  # for a connection, for its answer, and to give it up
                kept, *answers = await asyncio.gather(
                    on.client.invoke("nap", 60, prefer="wait=0.5"),
                    *(on.client.call("GET", f"/api/jobs/{on.accepted[0]}") for _ in range(40)),
                    *(on.client.invoke("nap", 0, prefer="respond-async") for _ in range(20)),
                )
            relay.flow()
            assert (kept.status, kept.json["code"], kept.json["may_have_run"]) == (503, "dependency_down", True)
            assert (await on.client.call("POST", f"/api/jobs/{kept.json['job_id']}/cancel")).status in (200, 404)
            assert {(answer.status, answer.json["code"]) for answer in answers} == {(503, "dependency_down")}
            assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers)

            async def served() -> bool:
                return (await on.client.call("GET", f"/api/jobs/{on.accepted[0]}")).status == 200

            await until(served, 10, on.platform.logs)
            await on.platform.terminate("api")


async def test_f13_postgres_whose_backends_are_killed_loses_nothing_acknowledged(
    own_postgres: EmbeddedPostgres, redis_url: str
) -> None:
    async with scene(own_postgres.dsn, redis_url) as on:
        async with Load(on) as load:
            for _ in range(3):
                await load.served(10)
                ((pid,),) = await on.rows(
                    "SELECT pid FROM pg_stat_activity WHERE application_name = 'containerpub-api' LIMIT 1"
                )
                os.kill(pid, 9)
            await load.served(20, within_s=15)
        load.only_clean_refusals()
        on.nothing_exited()
        await on.all_ended(30)
        await on.one_outcome_each()


async def test_f14_exhausted_pool_refuses_and_accepts_nothing_in_part(database: str, redis_url: str) -> None:
    env = {"DATABASE_POOL_SIZE": "1", "DEPENDENCY_TIMEOUT_SECONDS": "2"}
    async with scene(database, redis_url, **env) as on:
        holder = await asyncpg.connect(database)
        items = {"items": [{"body": 0} for _ in range(50)]}

        async def batch() -> Answer:
            return await on.client.call("POST", "/api/functions/nap/invoke-batch", json=items)

        try:
            async with holder.transaction():
                await holder.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
                answers = await asyncio.gather(*(on.accept(0) for _ in range(10)), *(batch() for _ in range(3)))
                assert {(answer.status, answer.json["code"]) for answer in answers} == {(503, "dependency_down")}
        finally:
            await holder.close()
        assert await on.rows("SELECT id FROM jobs WHERE kind = 'invoke'") == []
        await on.accept_many(5, 0)
        assert len((await batch()).json["items"]) == 50
        await on.all_ended(15)
        on.nothing_exited()
        await on.one_outcome_each()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that a few megabytes fill."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=150m,mode=0711", "tmpfs", folder], capture_output=True)
    if done.returncode:
        lacks(f"no file system can be mounted here: {done.stderr!r}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


async def test_f14_full_disk_refuses_and_accepts_nothing_in_part(small_disk: Path, redis_url: str) -> None:
    async with EmbeddedPostgres(small_disk / "postgres") as postgres:
        await migrate(postgres.dsn)
        async with scene(postgres.dsn, redis_url) as on:
            ballast = small_disk / "ballast"
            with ballast.open("wb") as file:
                free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
                file.write(b"x" * (free - 1_000_000))
            items = {"items": [{"body": 0, "query": {"x": os.urandom(20_000).hex()}} for _ in range(20)]}
            accepted: list[str] = []

            async def batch() -> Answer:
                answer = await on.client.call("POST", "/api/functions/nap/invoke-batch", json=items)
                if answer.status == 202:
                    accepted.extend(item["job_id"] for item in answer.json["items"])
                return answer

            answer = await batch()
            for _ in range(100):
                if answer.status != 202:
                    break
                answer = await batch()
            assert (answer.status, answer.json["code"]) == (503, "dependency_down"), answer
            ballast.unlink()
            if not postgres.running:  # it could not even write its own log
                await postgres.start()

            async def serves() -> bool:
                return (await batch()).status == 202

            await until(serves, 30, on.platform.logs)
            on.accepted += accepted
            rows = await on.rows("SELECT id FROM jobs WHERE kind = 'invoke'")
            assert {str(row["id"]) for row in rows} == set(accepted), "a refused batch was accepted in part"
            await on.all_ended(60)
            on.nothing_exited()
            await on.one_outcome_each()


async def test_f18_clocks_that_jump_by_an_hour_expire_no_lease_early_or_late_and_delay_no_job(
    database: str, redis_url: str, tmp_path: Path
) -> None:
    clock = WallClock(tmp_path)
    async with scene(database, redis_url, workers=2) as on:
        # Not of the workers, whose own sleeps the library breaks: to them it is as if theirs had jumped the other way.
        on.platform.change(**clock.env)
        for name in ("api", "scheduler"):
            await on.platform.terminate(name)
            on.platform.start(name)
        on.platform.change(LD_PRELOAD="")
        await on.platform.ready()

        async def shift() -> float:
            answer = await on.client.call("GET", "/api/health")
            return parsedate_to_datetime(answer.headers["Date"]).timestamp() - time.time()

        async def jump(to: str) -> None:
            clock.move(to)

            async def jumped() -> bool:
                return abs(await shift() - float(to)) < 60

            await until(jumped, 10, on.platform.logs)
            login = {"email": on.client.email, "password": "correct horse battery"}
            on.client.token = (await on.client.call("POST", "/api/auth/login", json=login)).json["access_token"]

        lost: set[str] = set()
        for number, to in enumerate(("+3600", "-3600", "+0"), 3):
            await on.accept_many(3, LEASE_S + 1)
            # One worker dies as the clock jumps: neither sooner nor later than else is it missed.
            killed_at = time.monotonic()
            dead = await on.kill_worker(await on.busy())
            lost |= dead
            await jump(to)
            on.platform.start(f"worker-{number}")

            async def again(dead: set[str] = dead) -> bool:
                held = [jobs for name, jobs in (await on.holders()).items() if name in on.platform.processes]
                ended = {job for job, row in (await on.jobs()).items() if row["finished_at"]}
                return dead <= ended.union(*held)

            await until(again, killed_at + LEASE_S + 5 - time.monotonic(), on.platform.logs)
            async with Load(on, asynchronous=1, synchronous=1) as load:
                await load.served(LEASE_S * 5)
            assert {answer.status for answer in load.accepts} == {202}
            assert {answer.status for answer in load.invokes} == {200}
            await on.all_ended(15)
            # Whatever the API holds the time to be, a delay is as long as its caller said.
            for headers in ({}, {"Idempotency-Key": f"after{to}"}):
                asked_at = time.monotonic()
                answer = await on.client.call("POST", LATER, json={"body": 0}, headers=headers)
                assert answer.status == 202, answer
                job = await on.client.job(answer.json["job_id"], wait=15)
                assert job["status"] == "succeeded", job
                assert DELAY_S <= time.monotonic() - asked_at < DELAY_S + 5
        assert lost
        assert {job for job, row in (await on.jobs()).items() if row["attempt"] > 1} == lost
        assert on.platform.log("scheduler").read_text().count("worker lost") == 3
        on.nothing_exited()
        await on.one_outcome_each()
