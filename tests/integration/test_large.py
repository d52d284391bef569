"""Large payloads and results go to the artifact store, and nobody notices."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from redis.asyncio import Redis

from shared.artifacts import LocalStore
from shared.errors import ArtifactMissing, Unreadable
from shared.ids import new_id
from shared.payload_store import PayloadStore
from shared.postgres.pool import Pool
from shared.sealing import Keyring, Part, new_key
from tests.client import Answer, Client
from tests.deployment import Platform
from worker.consume.payload_sweep import PayloadSweep

INLINE = 2000
CODE = """
def handler(event, context):
    if event["body"].get("fail"):
        raise ValueError("no")
    return event["body"]["fill"] * event["body"].get("times", 1)
"""


@pytest.fixture
async def platform(database: str, redis_url: str, request: pytest.FixtureRequest) -> AsyncIterator[Platform]:
    env = {"INLINE_BYTES": str(INLINE), "ENCRYPTION_KEYS": getattr(request, "param", new_key())}
    async with Platform(database_url=database, redis_url=redis_url, engine="process", env=env) as running:
        yield running


@pytest.fixture
async def client(platform: Platform) -> AsyncIterator[Client]:
    async with platform.client() as one:
        await one.register()
        assert (await one.deploy("fill", {"main.py": CODE})).status == 201
        yield one


def texts_of(platform: Platform) -> list[Path]:
    return sorted(path for path in (platform.folder / "artifacts" / "texts").rglob("*") if path.is_file())


async def call(client: Client, fill: str, *, prefer: str | None = None, **body: Any) -> Answer:
    event = {"body": {"fill": fill, **body}, "path": "/large"}
    headers = {"Prefer": prefer} if prefer else {}
    return await client.call("POST", "/api/functions/fill/invoke", json=event, headers=headers)


async def accepted(client: Client, fill: str, **body: Any) -> str:
    answer = await call(client, fill, prefer="respond-async", **body)
    assert answer.status == 202, answer
    return str(answer.json["job_id"])


@pytest.mark.parametrize("platform", [new_key(), ""], indirect=True, ids=["sealed", "without keys"])
async def test_large_payloads_and_results_come_back_as_they_were(
    platform: Platform, client: Client, pool: Pool, redis: Redis
) -> None:
    large = secrets.token_hex(INLINE)
    waited = await call(client, large)
    assert (waited.status, waited.json["result"]) == (200, large)
    assert (await client.job(waited.json["job_id"], wait=5))["result"] == large
    job = await accepted(client, large)
    assert (await client.job(job, wait=10))["result"] == large
    # A small call with a large answer, and the other way round.
    assert (await call(client, "ab", times=INLINE)).json["result"] == "ab" * INLINE
    assert (await call(client, "", pad=large)).json["result"] == ""
    failed = await accepted(client, large, fail=True)
    assert (await client.job(failed, wait=10))["reason"] == "handler_error"
    sizes = await pool.fetch("SELECT octet_length(payload), octet_length(result) FROM jobs WHERE kind = 'invoke'")
    assert all((size or 0) < INLINE for row in sizes for size in row)
    names = [path.name for path in texts_of(platform)]
    assert sum(".payload-" in name for name in names) == 4
    assert sum(".result-" in name for name in names) == 3
    kept = b"".join(path.read_bytes() for path in texts_of(platform))
    assert (large.encode() in kept) == (platform.env["ENCRYPTION_KEYS"] == "")
    (record,) = (await client.call("GET", f"/api/functions/fill/invocations?job_id={failed}")).json["items"]
    assert record["request"] == {"method": "POST", "path": "/large"}


async def test_a_list_leaves_large_results_out(client: Client) -> None:
    small, large = await accepted(client, "x"), await accepted(client, "x", times=2 * INLINE)
    for job in (small, large):
        await client.job(job, wait=10)
    listed = {job["id"]: job for job in (await client.call("GET", "/api/jobs")).json["items"]}
    assert (listed[small]["result"], listed[small]["missing"]) == ("x", None)
    assert (listed[large]["result"], listed[large]["missing"]) == (None, "large")
    assert (await client.job(large))["result"] == "x" * 2 * INLINE


async def test_a_batch_and_an_idempotent_call_may_be_large_too(platform: Platform, client: Client) -> None:
    fills = ["a" * 2 * INLINE, "b", "c" * 2 * INLINE]
    batch = {"items": [{"body": {"fill": fill}} for fill in fills]}
    answer = await client.call("POST", "/api/functions/fill/invoke-batch", json=batch)
    for fill, item in zip(fills, answer.json["items"], strict=True):
        assert (await client.job(item["job_id"], wait=10))["result"] == fill
    for _ in range(2):
        event, headers = {"body": {"fill": fills[0]}}, {"Idempotency-Key": "large"}
        answer = await client.call("POST", "/api/functions/fill/invoke", json=event, headers=headers)
        assert (answer.status, answer.json["result"]) == (200, fills[0])


async def test_what_repeats_a_job_has_a_payload_of_its_own(platform: Platform, client: Client) -> None:
    failed = await accepted(client, "y" * 2 * INLINE, fail=True)
    await client.job(failed, wait=10)
    before = texts_of(platform)
    new = (await client.call("POST", f"/api/jobs/{failed}/redrive")).json["job_id"]
    assert (await client.job(new, wait=10))["reason"] == "handler_error"
    for path in before:
        path.unlink()
    third = (await client.call("POST", f"/api/jobs/{new}/redrive")).json["job_id"]
    assert (await client.job(third, wait=10))["reason"] == "handler_error"
    # What is lost holds up nobody.
    for path in texts_of(platform):
        path.unlink()
    lost = await client.call("POST", f"/api/jobs/{third}/redrive")
    assert (lost.status, lost.json["code"], lost.json["job_id"]) == (503, "artifact_missing", third)
    other = await accepted(client, "x", fail=True)
    await client.job(other, wait=10)
    answer = await client.call("POST", "/api/jobs/redrive")
    assert [item["redrive_of"] for item in answer.json["items"]] == [other]


async def test_f17_with_the_store_away_large_calls_are_refused_and_small_ones_served(
    platform: Platform, client: Client, pool: Pool
) -> None:
    large = "w" * 2 * INLINE
    job = await accepted(client, large)
    await client.job(job, wait=10)
    count = await pool.fetchval("SELECT count(*) FROM jobs")
    store = platform.folder / "artifacts" / "texts"
    store.rename(store.with_name("unmounted"))
    for prefer in (None, "respond-async", "wait=5"):
        refused = await call(client, large, prefer=prefer)
        assert (refused.status, refused.json["code"]) == (503, "dependency_down"), refused
    assert await pool.fetchval("SELECT count(*) FROM jobs") == count, "nothing was accepted"
    assert (await call(client, "small")).json["result"] == "small"
    document = await client.job(job)
    assert (document["status"], document["result"], document["missing"]) == ("succeeded", None, "away")
    # A function that ran is not run again for a store that is away.
    grown = await call(client, "v", times=2 * INLINE)
    assert (grown.status, grown.json["result"]) == (200, "v" * 2 * INLINE)
    store.with_name("unmounted").rename(store)
    assert (await client.job(job))["result"] == large
    assert (await call(client, large)).json["result"] == large


async def test_f17_a_job_whose_payload_is_away_is_tried_again(platform: Platform, client: Client) -> None:
    large = "u" * 2 * INLINE
    await platform.terminate("worker-1")
    job = await accepted(client, large)
    store = platform.folder / "artifacts" / "texts"
    (path,) = texts_of(platform)
    path.rename(platform.folder / "put-aside")
    platform.start("worker-1")
    while (document := await client.job(job))["status"] in ("queued", "running"):
        await asyncio.sleep(0.05)
    assert (document["status"], document["attempt"]) == ("scheduled", 1)
    (platform.folder / "put-aside").rename(store / path.parent.name / path.name)
    assert (await client.job(job, wait=30))["result"] == large


async def test_texts_go_with_what_they_are_of(
    platform: Platform, client: Client, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = "t" * 2 * INLINE
    good, bad = await accepted(client, large), await accepted(client, large, fail=True)
    waited = (await call(client, large)).json["job_id"]
    for job in (good, bad, waited):
        await client.job(job, wait=10)

    def left() -> set[tuple[str, str]]:
        return {(path.name.split(".")[0], path.name.split(".")[1].split("-")[0]) for path in texts_of(platform)}

    everything = {(job, part) for job in (good, bad, waited) for part in ("payload", "result")} - {(bad, "result")}
    assert left() == everything
    store = LocalStore(platform.folder / "artifacts")
    sweep = PayloadSweep(pool, store, "test")
    assert await sweep.run_once() == 0, "they are young"
    monkeypatch.setattr("worker.consume.payload_sweep.YOUNG", timedelta(0))
    assert await sweep.run_once() == 2
    assert left() == {(good, "result"), (bad, "payload"), (waited, "result")}
    assert (await client.job(good))["result"] == large
    await pool.execute("UPDATE jobs SET result = NULL WHERE id = $1", UUID(good))
    await pool.execute("DELETE FROM jobs WHERE id = $1", UUID(bad))
    assert await sweep.run_once() == 2
    assert left() == {(waited, "result")}


async def test_one_worker_an_hour_sweeps(pool: Pool, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    await store.open()
    one, other = (PayloadSweep(pool, store, name) for name in ("one", "other"))
    assert [await one._is_ours(), await other._is_ours(), await one._is_ours()] == [True, False, True]


@pytest.mark.parametrize("keys", [new_key(), ""], ids=["sealed", "without keys"])
async def test_a_reference_leads_to_its_own_job_only(tmp_path: Path, keys: str) -> None:
    store = LocalStore(tmp_path / "store")
    await store.open()
    payload_store = PayloadStore(Keyring.parse(keys), store, inline_bytes=10)
    mine, other = new_id(), new_id()
    kept = await payload_store.put(b'"larger than ten"', mine, Part.PAYLOAD)
    assert await payload_store.get(kept, mine, Part.PAYLOAD) == b'"larger than ten"'
    for job, part in ((other, Part.PAYLOAD), (mine, Part.RESULT)):
        with pytest.raises(Unreadable):
            await payload_store.get(kept, job, part)
    (path,) = [path for path in (tmp_path / "store" / "texts").rglob("*") if path.is_file()]
    if keys:
        path.write_bytes(b"something else entirely")
        with pytest.raises(Unreadable, match="not the payload of this job"):
            await payload_store.get(kept, mine, Part.PAYLOAD)
    path.unlink()
    with pytest.raises(ArtifactMissing):
        await payload_store.get(kept, mine, Part.PAYLOAD)


async def test_a_change_of_keys_leaves_the_store_alone(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    await store.open()
    old, new, job = Keyring.parse(new_key().replace(":", "-old:")), Keyring.parse(new_key()), new_id()
    kept = await PayloadStore(old, store, inline_bytes=10).put(b'"larger than ten"', job, Part.RESULT)
    reference = old.open(kept, job, Part.RESULT)
    resealed = new.seal(reference, job, Part.RESULT)
    assert await PayloadStore(new, store, inline_bytes=10).get(resealed, job, Part.RESULT) == b'"larger than ten"'
