"""What functions are sent and answer cannot be read in Redis or Postgres; keys change while everything serves."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from shared.embedded.redis import EmbeddedRedis
from shared.postgres.pool import Pool
from shared.postgres.rotation import Rotated, Rotation
from shared.sealing import Keyring, Part, new_key
from tests.client import Answer, Client
from tests.deployment import ROOT, Platform
from tests.integration.conftest import listening

CODE = """
import logging, time

def handler(event, context):
    print("printed", event["body"]["secret"])
    context.progress(0.5, event["body"]["secret"])
    context.logger.info("logged " + event["body"]["secret"])
    if event["body"].get("sleep"):
        time.sleep(event["body"]["sleep"])
    if event["body"].get("fail"):
        raise ValueError("failed over " + event["body"]["secret"])
    return {"answered": event["body"]["secret"]}
"""
EVENT = {"query": {"q": "1"}, "headers": {"X-Name": "2"}, "path": "/p"}

StartPlatform = Callable[..., Any]


def key(name: str) -> str:
    return f"{name}:{new_key().partition(':')[2]}"


@pytest.fixture
async def start(database: str, redis_url: str) -> AsyncIterator[StartPlatform]:
    """Starts a platform with the given keys."""
    async with AsyncExitStack() as stack:

        async def begin(keys: str, **env: str) -> Platform:
            env = {"ENCRYPTION_KEYS": keys} | env
            one = Platform(database_url=database, redis_url=redis_url, engine="process", env=env)
            return await stack.enter_async_context(one)

        yield begin


async def change_keys(platform: Platform, keys: str, *names: str) -> None:
    """Stop the processes in good order and start them with other keys."""
    platform.change(ENCRYPTION_KEYS=keys)
    for name in names or ("api", "worker-1"):
        await platform.terminate(name)
        platform.start(name)
    await (platform.ready() if "worker-1" in platform.processes else listening(platform))


def rotate(platform: Platform) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", "rotate-keys"],
        env=platform.env | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        cwd=platform.folder,
    )


async def call(client: Client, secret: str, *, prefer: str | None = None, query: str = "", **body: Any) -> Answer:
    event = {**EVENT, "body": {"secret": secret, **body}, "headers": {"X-Name": secret}, "query": {"q": secret}}
    headers = {"Prefer": prefer} if prefer else {}
    return await client.call("POST", f"/api/functions/tell/invoke{query}", json=event, headers=headers)


async def accepted(client: Client, secret: str, **rest: Any) -> str:
    answer = await call(client, secret, prefer="respond-async", **rest)
    assert answer.status == 202, answer
    return str(answer.json["job_id"])


async def deployed(platform: Platform, stack: AsyncExitStack, **settings: Any) -> Client:
    client = await stack.enter_async_context(platform.client())
    await client.register()
    answer = await client.deploy("tell", {"main.py": CODE}, settings={"timeout_s": 20, **settings})
    assert answer.status == 201, answer
    return client


async def webhook_secret(client: Client, *, rotate: bool = False) -> str:
    path = "/api/webhook-secret" + ("/rotate" if rotate else "")
    return str((await client.call("POST" if rotate else "GET", path)).json["secret"])


async def everything_in_postgres(database: str) -> str:
    """Every row of every table, columns of bytes also as the text that they may hold."""
    connection = await asyncpg.connect(database)
    tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    found = []
    for (table,) in tables:
        for row in await connection.fetch(f"SELECT * FROM {table}"):
            found += [value.decode("latin-1") if isinstance(value, bytes) else str(value) for value in row]
    await connection.close()
    return "\n".join(found)


def everything_of_redis(server: EmbeddedRedis) -> bytes:
    """All that it wrote to disk: every command that it was ever given."""
    return b"".join(path.read_bytes() for path in sorted(server.folder.rglob("data/**/*")) if path.is_file())


async def exercise(client: Client, secret: str) -> list[str]:
    """Every way in which something of a caller's gets anywhere; the jobs."""
    ended = []
    for fail in (False, True):
        answer = await call(client, secret, fail=fail)
        assert (answer.status, answer.json["success"]) == (200, not fail), answer
        ended.append(answer.json["job_id"])
        ended.append(await accepted(client, secret, fail=fail))
    batch = {"items": [{"body": {"secret": secret}}] * 2}
    answer = await client.call("POST", "/api/functions/tell/invoke-batch", json=batch)
    ended += [item["job_id"] for item in answer.json["items"]]
    ended.append((await call(client, secret, query="?delay=1")).json["job_id"])
    headers = {"Idempotency-Key": secrets.token_hex(8)}
    event = {"body": {"secret": secret}}
    ended.append((await client.call("POST", "/api/functions/tell/invoke", json=event, headers=headers)).json["job_id"])
    for job in ended:
        assert (await client.job(job, wait=15))["status"] in ("succeeded", "failed")
    answer = await client.call("POST", f"/api/jobs/{ended[2]}/redrive")
    ended.append(answer.json["job_id"])
    assert (await client.job(ended[-1], wait=15))["reason"] == "handler_error"
    # These stay: one that runs, one that waits for it, and one that is due later.
    running = await accepted(client, secret, sleep=8)
    while (progress := (await client.job(running))["progress"]) is None:
        await asyncio.sleep(0.02)
    assert progress["message"] == secret
    await accepted(client, secret)
    await call(client, secret, query="?delay=300")
    return ended


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "without keys"])
async def test_nothing_of_a_caller_s_can_be_read_in_redis_or_postgres(
    start: StartPlatform, database: str, redis_server: EmbeddedRedis, sealed: bool
) -> None:
    secret = f"canary{secrets.token_hex(12)}"
    async with AsyncExitStack() as stack:
        platform = await start(key("a") if sealed else "")
        client = await deployed(platform, stack, concurrency=1)
        jobs = await exercise(client, secret)
        signing = [await webhook_secret(client, rotate=rotate) for rotate in (False, True)]
        readable = await everything_in_postgres(database)
        on_disk = everything_of_redis(redis_server)
        assert all(job in readable for job in jobs)
        assert b"cp:progress:" in on_disk
        assert jobs[0].encode() in on_disk
        # Where nothing is sealed both have it, so that not to find it means something.
        assert (secret in readable, secret.encode() in on_disk) == (not sealed, not sealed)
        assert [one in readable for one in signing] == [not sealed, not sealed]
        assert await webhook_secret(client) == signing[1]
        for job in jobs[:2]:
            document = await client.job(job)
            assert (document["result"], document["missing"]) == ({"answered": secret}, None)
        failed = await client.job(jobs[2])
        assert failed["error"]["message"] == f"Function execution failed: failed over {secret}"
        listed = (await client.call("GET", "/api/jobs?status=succeeded")).json["items"]
        assert {"answered": secret} in [job["result"] for job in listed]
        logs = (await client.call("GET", f"/api/functions/tell/logs?job_id={jobs[0]}")).json["items"]
        assert sorted(line["message"].strip() for line in logs) == [f"logged {secret}", f"printed {secret}"]
        (record,) = (await client.call("GET", f"/api/functions/tell/invocations?job_id={jobs[2]}")).json["items"]
        assert record["request"]["headers"] == {"x-name": secret}
        assert record["request"]["query"] == {"q": secret}
        assert record["logs"]["errors"][0]["message"] == failed["error"]["message"]
        assert record["logs"]["container"]["stdout"] == f"printed {secret}\n"


async def test_keys_change_while_jobs_run(start: StartPlatform, pool: Pool) -> None:
    old, new = key("old"), key("new")
    async with AsyncExitStack() as stack:
        platform = await start(old)
        client = await deployed(platform, stack)
        jobs = [await accepted(client, f"before-{number}", fail=number % 2 == 0) for number in range(20)]
        jobs += [(await call(client, "waited", fail=fail)).json["job_id"] for fail in (False, True)]
        for job in jobs:
            await client.job(job, wait=20)
        before = {job: await client.job(job) for job in jobs}
        signing = await webhook_secret(client)
        await change_keys(platform, f"{new},{old}")
        stop = asyncio.Event()

        async def go_on() -> list[str]:
            made = []
            while not stop.is_set():
                answer = await call(client, "meanwhile")
                assert (answer.status, answer.json["result"]) == (200, {"answered": "meanwhile"}), answer
                made += [answer.json["job_id"], await accepted(client, "meanwhile")]
            return made

        working = asyncio.create_task(go_on())
        done = await asyncio.to_thread(rotate, platform)
        assert (done.returncode, done.stderr) == (0, ""), done
        assert done.stdout.startswith("sealed anew: 22 jobs, 22 invocations, 44 log entries, 1 webhook"), done.stdout
        stop.set()
        made = await working
        assert made
        # The old key is gone, and nothing needs it.
        await change_keys(platform, new)
        for job in (*jobs, *made):
            document = await client.job(job, wait=10)
            assert document["missing"] is None
            if job in before:
                assert {**document, "timings": None} == {**before[job], "timings": None}
            else:
                assert document["result"] == {"answered": "meanwhile"}
        again = await Rotation(pool, Keyring.parse(new)).run_once()
        assert again == Rotated()
        assert await webhook_secret(client) == signing
        new_job = (await client.call("POST", f"/api/jobs/{jobs[0]}/redrive")).json["job_id"]
        assert (await client.job(new_job, wait=10))["error"]["message"].endswith("failed over before-0")


async def test_what_was_never_sealed_is_read_and_sealed_by_a_rotation(
    start: StartPlatform, database: str, pool: Pool
) -> None:
    secret = f"canary{secrets.token_hex(12)}"
    async with AsyncExitStack() as stack:
        platform = await start("")
        client = await deployed(platform, stack)
        good, bad = await accepted(client, secret), await accepted(client, secret, fail=True)
        later = (await call(client, secret, query="?delay=300")).json["job_id"]
        for job in (good, bad):
            await client.job(job, wait=10)
        signing = await webhook_secret(client)
        for process in ("api", "worker-1"):
            assert "is not sealed: ENCRYPTION_KEYS is empty" in platform.log(process).read_text()
        refused = await asyncio.to_thread(rotate, platform)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "ENCRYPTION_KEYS is empty" in refused.stderr
        await change_keys(platform, key("first"))
        assert (await client.job(good))["result"] == {"answered": secret}
        assert secret in await everything_in_postgres(database)
        done = await asyncio.to_thread(rotate, platform)
        assert done.stdout == "sealed anew: 3 jobs, 2 invocations, 4 log entries, 1 webhook secrets\n", done
        readable = await everything_in_postgres(database)
        assert (secret in readable, signing in readable) == (False, False)
        assert await webhook_secret(client) == signing
        assert (await client.job(good))["result"] == {"answered": secret}
        assert secret in (await client.job(bad))["error"]["message"]
        lines = (await client.call("GET", "/api/functions/tell/logs")).json["items"]
        assert {line["message"].strip() for line in lines} == {f"logged {secret}", f"printed {secret}"}
        assert (await client.call("POST", f"/api/jobs/{later}/cancel")).status == 200


async def test_a_job_that_waited_through_a_rotation_runs(start: StartPlatform, pool: Pool) -> None:
    old, new = key("old"), key("new")
    async with AsyncExitStack() as stack:
        platform = await start(old)
        client = await deployed(platform, stack)
        await platform.terminate("worker-1")
        job = await accepted(client, "waited long")
        await change_keys(platform, f"{new},{old}", "api")
        # Nothing is on its way that only a worker could end, so none is needed.
        done = await asyncio.to_thread(rotate, platform)
        assert (done.returncode, done.stdout) == (
            0,
            "sealed anew: 1 jobs, 0 invocations, 0 log entries, 0 webhook secrets\n",
        ), done
        platform.change(ENCRYPTION_KEYS=new)
        platform.start("worker-1")
        await change_keys(platform, new, "api")
        assert (await client.job(job, wait=20))["result"] == {"answered": "waited long"}


async def test_with_a_wrong_key_jobs_are_there_without_what_they_ended_with(start: StartPlatform, pool: Pool) -> None:
    right, wrong = key("right"), key("wrong")
    async with AsyncExitStack() as stack:
        platform = await start(right)
        client = await deployed(platform, stack)
        headers = {"Idempotency-Key": "once"}
        event = {"body": {"secret": "x"}}
        path = "/api/functions/tell/invoke"
        good = (await client.call("POST", path, json=event, headers=headers)).json["job_id"]
        bad = await accepted(client, "y", fail=True)
        assert (await client.job(bad, wait=10))["status"] == "failed"
        signing = await webhook_secret(client)
        await platform.terminate("worker-1")
        waiting = await accepted(client, "z")
        await change_keys(platform, wrong, "api")
        platform.start("worker-1")

        answer = await client.call("GET", "/api/webhook-secret")
        assert (answer.status, answer.json["code"]) == (503, "unreadable")
        document = await client.job(good)
        assert (document["status"], document["result"], document["missing"]) == ("succeeded", None, "unreadable")
        document = await client.job(bad)
        assert (document["reason"], document["error"], document["missing"]) == ("handler_error", None, "unreadable")
        replayed = await client.call("POST", path, json=event, headers=headers)
        assert (replayed.status, replayed.json["code"], replayed.json["job_id"]) == (503, "unreadable", good)
        redriven = await client.call("POST", f"/api/jobs/{bad}/redrive")
        assert (redriven.status, redriven.json["code"], redriven.json["job_id"]) == (503, "unreadable", bad)
        assert '"right", which is not among ENCRYPTION_KEYS' in redriven.json["detail"]
        lines = (await client.call("GET", f"/api/functions/tell/logs?job_id={good}")).json["items"]
        assert {line["message"] for line in lines} == {
            'It is sealed with the key "right", which is not among ENCRYPTION_KEYS.'
        }
        records = (await client.call("GET", f"/api/functions/tell/invocations?job_id={bad}")).json["items"]
        assert "which is not among" in records[0]["logs"]["errors"][0]["message"]
        # It is tried again for a while, as whenever something that is needed is away.
        while (document := await client.job(waiting))["status"] in ("queued", "running"):
            await asyncio.sleep(0.05)
        assert (document["status"], document["reason"]) == ("scheduled", None), document

        done = await asyncio.to_thread(rotate, platform)
        assert done.returncode == 1
        for job, part in ((good, "result"), (bad, "payload"), (bad, "error"), (waiting, "payload")):
            assert f"left as it is: {part} of {job}." in done.stderr
        assert "left as it is: webhook secret of " in done.stderr
        assert "which is not among ENCRYPTION_KEYS" in done.stderr

        # Another secret does without the one that cannot be read.
        fresh = await webhook_secret(client, rotate=True)
        assert fresh not in (signing, await webhook_secret(client, rotate=True))

        await change_keys(platform, f"{wrong},{right}")
        assert (await client.job(waiting, wait=20))["result"] == {"answered": "z"}
        assert (await client.job(good))["result"] == {"answered": "x"}
        assert (await client.call("POST", f"/api/jobs/{bad}/redrive")).status == 202


async def test_a_rotation_that_was_stopped_goes_on_with_what_is_left(
    start: StartPlatform, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = key("old"), key("new")
    both = Keyring.parse(f"{new},{old}")
    async with AsyncExitStack() as stack:
        platform = await start(old)
        client = await deployed(platform, stack)
        jobs = [await accepted(client, str(number), fail=True) for number in range(9)]
        for job in jobs:
            await client.job(job, wait=20)
        monkeypatch.setattr("shared.postgres.rotation._MOST_ROWS", 2)
        monkeypatch.setattr("shared.postgres.rotation._PAGE", 4)
        monkeypatch.setattr("shared.postgres.rotation._RECORDS_PAGE", 4)
        before = await rows(pool)
        broken = await pool.fetchval("SELECT id FROM jobs WHERE id = $1", UUID(jobs[4]))
        await pool.execute("UPDATE jobs SET payload = set_byte(payload, 60, 0) WHERE id = $1", broken)
        damaged = (await rows(pool))[broken]

        class Interrupted(Exception):
            pass

        steps = 0
        whole = Rotation._seal_jobs

        async def twice(self: Rotation, connection: Any, ids: Any) -> None:
            nonlocal steps
            steps += 1
            if steps == 3:
                raise Interrupted
            await whole(self, connection, ids)

        with monkeypatch.context() as patched:
            patched.setattr(Rotation, "_seal_jobs", twice)
            with pytest.raises(Interrupted):
                await Rotation(pool, both).run_once()
        rest = await Rotation(pool, both).run_once()
        assert (rest.jobs, rest.invocations, rest.logs) == (6, 9, 18), "three were done before"
        assert [(job, part) for job, part, _ in rest.unreadable] == [(broken, Part.PAYLOAD)]
        after = await rows(pool)
        assert after[broken]["payload"] == damaged["payload"], "what cannot be opened stays as it is"
        opener = Keyring.parse(new)
        for job, row in after.items():
            for part in (Part.PAYLOAD, Part.ERROR):
                if (job, part) != (broken, Part.PAYLOAD):
                    earlier = Keyring.parse(old).open(before[job][part.value], job, part)
                    assert opener.open(row[part.value], job, part) == earlier


async def rows(pool: Pool) -> dict[UUID, Any]:
    found = await pool.fetch("SELECT id, payload, result, error FROM jobs WHERE kind = 'invoke'")
    return {row["id"]: row for row in found}


async def test_what_is_moved_to_another_job_is_not_shown(start: StartPlatform, pool: Pool) -> None:
    async with AsyncExitStack() as stack:
        platform = await start(key("a"))
        client = await deployed(platform, stack)
        mine, other = await accepted(client, "mine"), await accepted(client, "other")
        for job in (mine, other):
            await client.job(job, wait=10)
        await pool.execute(
            "UPDATE jobs SET result = (SELECT result FROM jobs WHERE id = $1) WHERE id = $2", UUID(other), UUID(mine)
        )
        document = await client.job(mine)
        assert (document["result"], document["missing"]) == (None, "unreadable")


def test_malformed_keys_are_refused_at_the_start(tmp_path: Path) -> None:
    for module in ("api", "worker", "scheduler"):
        done = subprocess.run(
            [sys.executable, "-m", module],
            env={"ENCRYPTION_KEYS": "a:dG9vIHNob3J0", "JWT_SECRET": secrets.token_hex(32), "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 2
        assert 'ENCRYPTION_KEYS: Value error, key 1 ("a") has 9 bytes and must have 32' in done.stderr
        assert "dG9v" not in done.stderr
