"""One suite for every artifact store: a folder, and S3 as a real server process speaks it."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import re
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

import aioboto3
import pytest

from shared.artifacts import (
    ArtifactCorrupt,
    ArtifactMissing,
    ArtifactStore,
    LocalStore,
    StoreConfig,
    artifact_key,
    layer_key,
    open_store,
    payload_name,
    payload_owner,
)
from shared.artifacts.s3 import PART_BYTES, S3Store
from shared.errors import Misconfigured, Unavailable
from tests.s3server import S3Server

TIMEOUT_S = 30.0
AWAY_TIMEOUT_S = 3.0
"""Where a test waits for it."""
BUCKET = "artifacts"
ACCOUNT = "123456789012"
CREDENTIALS = {"aws_access_key_id": "id", "aws_secret_access_key": "secret", "region_name": "us-east-1"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3") / "server.log")
    server.start()
    yield server
    server.kill()


class Backend(Protocol):
    """A store, and the means to do to it from behind what the store's interface does not allow."""

    store: ArtifactStore

    async def overwrite(self, key: str, content: bytes) -> None: ...

    async def written_at(self, key: str) -> object:
        """Something that changes whenever the stored content is written."""

    async def left_overs(self) -> list[str]:
        """What is neither an artifact nor the store's own structure."""

    async def go_down(self) -> None: ...

    async def come_back(self) -> None: ...


class LocalBackend:
    def __init__(self, folder: Path, store: LocalStore) -> None:
        self.folder, self.store = folder, store

    def path(self, key: str) -> Path:
        kind, _, digest = key.partition("/")
        return self.folder / kind / digest[:2] / digest

    async def overwrite(self, key: str, content: bytes) -> None:
        self.path(key).write_bytes(content)

    async def written_at(self, key: str) -> object:
        info = self.path(key).stat()
        return info.st_ino, info.st_mtime_ns

    async def left_overs(self) -> list[str]:
        return [str(p) for p in self.folder.rglob("*") if p.is_file() and not re.fullmatch("[0-9a-f]{64}", p.name)]

    async def go_down(self) -> None:
        self.store._timeout_s = AWAY_TIMEOUT_S
        self.folder.rename(self.folder.with_name("unmounted"))

    async def come_back(self) -> None:
        self.store._timeout_s = TIMEOUT_S
        self.folder.with_name("unmounted").rename(self.folder)


class S3Backend:
    def __init__(self, server: S3Server, client: Any, store: S3Store) -> None:
        self.server, self.client, self.store = server, client, store

    async def overwrite(self, key: str, content: bytes) -> None:
        await self.client.put_object(Bucket=BUCKET, Key=key, Body=content)

    async def written_at(self, key: str) -> object:
        return (await self.client.head_object(Bucket=BUCKET, Key=key))["VersionId"]

    async def left_overs(self) -> list[str]:
        uploads = await self.client.list_multipart_uploads(Bucket=BUCKET)
        return [upload["Key"] for upload in uploads.get("Uploads", [])]

    async def go_down(self) -> None:
        self.store._timeout_s = AWAY_TIMEOUT_S
        self.server.signal(signal.SIGSTOP)  # accepts connections, never answers

    async def come_back(self) -> None:
        self.store._timeout_s = TIMEOUT_S
        self.server.signal(signal.SIGCONT)


def s3_config(server: S3Server, folder: Path) -> StoreConfig:
    return StoreConfig(
        functions_dir=folder,
        s3_bucket_name=BUCKET,
        s3_endpoint=server.url,
        s3_access_key_id="id",
        s3_secret_access_key="secret",
        s3_account_id=ACCOUNT,
        timeout_s=TIMEOUT_S,
    )


async def make_bucket(client: Any) -> None:
    await client.create_bucket(Bucket=BUCKET)
    await client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})


@pytest.fixture(params=["local", "s3"])
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    folder = tmp_path / "artifacts"
    if request.param == "local":
        store = await open_store(StoreConfig(functions_dir=folder, timeout_s=TIMEOUT_S))
        assert isinstance(store, LocalStore)
        yield LocalBackend(folder, store)
        await store.close()
        return
    server: S3Server = request.getfixturevalue("server")
    store = await open_store(s3_config(server, folder))
    assert isinstance(store, S3Store)
    async with aioboto3.Session().client("s3", endpoint_url=server.url, **CREDENTIALS) as client:
        await make_bucket(client)
        yield S3Backend(server, client, store)
        versions = await client.list_object_versions(Bucket=BUCKET)
        for version in [*versions.get("Versions", []), *versions.get("DeleteMarkers", [])]:
            await client.delete_object(Bucket=BUCKET, Key=version["Key"], VersionId=version["VersionId"])
        await client.delete_bucket(Bucket=BUCKET)
    await store.close()
    assert not folder.exists()


def artifact(tmp_path: Path, content: bytes) -> tuple[str, Path]:
    source = tmp_path / f"source-{hashlib.sha256(content).hexdigest()[:8]}"
    source.write_bytes(content)
    return artifact_key(hashlib.sha256(content).hexdigest()), source


SIZES = [0, 1, PART_BYTES, 2 * PART_BYTES + 17]


@pytest.mark.parametrize("size", SIZES)
async def test_what_was_put_is_fetched(backend: Backend, tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    key, source = artifact(tmp_path, content)
    assert not await backend.store.exists(key)
    await backend.store.put(key, source)
    assert await backend.store.exists(key)
    target = tmp_path / "target"
    target.write_bytes(b"older")
    await backend.store.fetch(key, target)
    assert target.read_bytes() == content
    assert source.read_bytes() == content
    assert await backend.left_overs() == []
    assert {p for p in tmp_path.iterdir() if p.is_file()} == {source, target}


@pytest.mark.parametrize("size", [100, 2 * PART_BYTES])
async def test_an_equal_artifact_is_not_sent_again(backend: Backend, tmp_path: Path, size: int) -> None:
    key, source = artifact(tmp_path, os.urandom(size))
    await backend.store.put(key, source)
    written_at = await backend.written_at(key)
    await backend.store.put(key, source)
    assert await backend.written_at(key) == written_at


@pytest.mark.parametrize("size", [100, PART_BYTES + 1])
@pytest.mark.parametrize("damage", ["tampered", "truncated", "emptied", "extended"])
async def test_damage_is_noticed_and_a_put_mends_it(backend: Backend, tmp_path: Path, damage: str, size: int) -> None:
    content = os.urandom(size)
    key, source = artifact(tmp_path, content)
    await backend.store.put(key, source)
    flipped = bytes([content[0] ^ 1]) + content[1:]
    stored = {"tampered": flipped, "truncated": content[:-1], "emptied": b"", "extended": content + b"!"}[damage]
    await backend.overwrite(key, stored)
    target = tmp_path / "out" / "target"
    target.parent.mkdir()
    with pytest.raises(ArtifactCorrupt):
        await backend.store.fetch(key, target)
    assert list(target.parent.iterdir()) == []
    await backend.store.put(key, source)
    await backend.store.fetch(key, target)
    assert target.read_bytes() == content


@pytest.mark.parametrize("size", [0, 100, 2 * PART_BYTES + 17])
async def test_a_layer_comes_back_as_it_was_put_and_is_sent_once(backend: Backend, tmp_path: Path, size: int) -> None:
    content = os.urandom(size) + bytes(100_000)
    key = layer_key(hashlib.sha256(content).hexdigest())
    with tempfile.TemporaryFile() as source:
        source.write(content)
        await backend.store.put(key, source)
        written_at = await backend.written_at(key)
        await backend.store.put(key, source)
        assert await backend.written_at(key) == written_at
        assert not source.closed
    await backend.store.fetch(key, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == content
    with pytest.raises(ArtifactMissing):
        await backend.store.fetch(artifact_key(key.rpartition("/")[2]), tmp_path / "target")
    await backend.store.delete(key)
    assert not await backend.store.exists(key)


@pytest.mark.parametrize("damage", ["tampered", "truncated", "emptied", "other content"])
async def test_damage_of_a_layer_is_noticed_and_a_put_mends_it(backend: Backend, tmp_path: Path, damage: str) -> None:
    content = os.urandom(100_000)
    packed = gzip.compress(content, 1, mtime=0) if isinstance(backend, S3Backend) else content
    key = layer_key(hashlib.sha256(content).hexdigest())
    with tempfile.TemporaryFile() as source:
        source.write(content)
        await backend.store.put(key, source)
        stored = {
            "tampered": packed[:5000] + bytes([packed[5000] ^ 1]) + packed[5001:],
            "truncated": packed[:-1],
            "emptied": b"",
            "other content": gzip.compress(bytes(100_000), 1, mtime=0),
        }[damage]
        await backend.overwrite(key, stored)
        out = tmp_path / "out"
        out.mkdir()
        with pytest.raises(ArtifactCorrupt):
            await backend.store.fetch(key, out / "target")
        assert list(out.iterdir()) == []
        await backend.store.put(key, source)
    await backend.store.fetch(key, out / "target")
    assert (out / "target").read_bytes() == content


async def test_content_that_is_not_the_layers_is_refused(backend: Backend, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content")
    key = layer_key(hashlib.sha256(b"other").hexdigest())
    with pytest.raises(ArtifactCorrupt):
        await backend.store.put(key, source)
    assert not await backend.store.exists(key)


async def test_a_missing_artifact_is_told_apart(backend: Backend, tmp_path: Path) -> None:
    key, source = artifact(tmp_path, b"content")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ArtifactMissing):
        await backend.store.fetch(key, out / "target")
    assert list(out.iterdir()) == []
    await backend.store.delete(key)
    await backend.store.put(key, source)
    await backend.store.delete(key)
    assert not await backend.store.exists(key)
    with pytest.raises(ArtifactMissing):
        await backend.store.fetch(key, out / "target")


async def test_content_under_a_foreign_name_is_refused(backend: Backend, tmp_path: Path) -> None:
    key, _ = artifact(tmp_path, b"one")
    _, other = artifact(tmp_path, b"two")
    with pytest.raises(ArtifactCorrupt):
        await backend.store.put(key, other)
    assert not await backend.store.exists(key)
    assert await backend.left_overs() == []


async def test_puts_of_one_artifact_at_once_agree(backend: Backend, tmp_path: Path) -> None:
    content = os.urandom(PART_BYTES + 1000)
    key, source = artifact(tmp_path, content)
    await asyncio.gather(*(backend.store.put(key, source) for _ in range(8)))
    targets = [tmp_path / f"target-{n}" for n in range(8)]
    await asyncio.gather(*(backend.store.fetch(key, target) for target in targets))
    assert all(target.read_bytes() == content for target in targets)
    assert await backend.left_overs() == []


async def test_fetches_into_one_file_at_once_agree(backend: Backend, tmp_path: Path) -> None:
    key, source = artifact(tmp_path, b"content")
    await backend.store.put(key, source)
    target = tmp_path / "out" / "target"
    target.parent.mkdir()
    await asyncio.gather(*(backend.store.fetch(key, target) for _ in range(8)))
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    "key",
    [
        "",
        "sha256/",
        "sha256/" + "a" * 63,
        "sha256/" + "A" * 64,
        "sha256/" + "a" * 64 + "\n",
        "sha256/" + "a" * 32 + "/" + "a" * 31,
        "sha256/../../etc/passwd",
        "sha1/" + "a" * 64,
        "/sha256/" + "a" * 64,
    ],
)
async def test_a_key_is_a_digest(backend: Backend, tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError):
        await backend.store.put(key, tmp_path / "source")
    with pytest.raises(ValueError):
        await backend.store.fetch(key, tmp_path / "target")
    with pytest.raises(ValueError):
        await backend.store.exists(key)
    with pytest.raises(ValueError):
        await backend.store.delete(key)


async def test_f17_a_store_that_is_away_says_so_in_time_and_recovers(backend: Backend, tmp_path: Path) -> None:
    key, source = artifact(tmp_path, os.urandom(PART_BYTES + 1))
    other, other_source = artifact(tmp_path, b"other")
    await backend.store.check()
    await backend.store.put(key, source)
    out = tmp_path / "out"
    out.mkdir()
    await backend.go_down()
    started = time.monotonic()
    try:
        calls = await asyncio.gather(
            backend.store.check(),
            backend.store.put(other, other_source),
            backend.store.fetch(key, out / "target"),
            backend.store.exists(key),
            backend.store.delete(other),
            return_exceptions=True,
        )
    finally:
        await backend.come_back()
    assert time.monotonic() - started < AWAY_TIMEOUT_S + 3
    for answer in calls:
        assert type(answer) is Unavailable
        assert answer.__cause__ is not None
    assert list(out.iterdir()) == []
    await backend.store.check()
    await backend.store.put(other, other_source)
    await backend.store.fetch(key, out / "target")
    assert (out / "target").read_bytes() == source.read_bytes()
    assert await backend.left_overs() == []


async def test_f17_an_s3_server_that_died_and_came_back_empty_is_filled_again(tmp_path: Path) -> None:
    server = S3Server(tmp_path / "server.log")
    await asyncio.to_thread(server.start)
    store = await open_store(s3_config(server, tmp_path / "unused"))
    key, source = artifact(tmp_path, b"content")
    try:
        async with aioboto3.Session().client("s3", endpoint_url=server.url, **CREDENTIALS) as client:
            await make_bucket(client)
            await store.put(key, source)
            server.kill()
            with pytest.raises(Unavailable) as refused:
                await store.fetch(key, tmp_path / "target")
            assert type(refused.value) is Unavailable
            await asyncio.to_thread(server.start)
            with pytest.raises(Unavailable):
                await store.check()  # the bucket is gone
            with pytest.raises(Unavailable) as gone:
                await store.fetch(key, tmp_path / "target")
            assert type(gone.value) is Unavailable
            await make_bucket(client)
            await store.check()
            with pytest.raises(ArtifactMissing):
                await store.fetch(key, tmp_path / "target")
            await store.put(key, source)
            await store.fetch(key, tmp_path / "target")
    finally:
        await store.close()
        server.kill()


async def test_a_cancelled_put_in_parts_leaves_no_parts(server: S3Server, tmp_path: Path) -> None:
    key, source = artifact(tmp_path, os.urandom(4 * PART_BYTES))
    store = await open_store(s3_config(server, tmp_path / "unused"))
    async with aioboto3.Session().client("s3", endpoint_url=server.url, **CREDENTIALS) as client:
        await make_bucket(client)
        put = asyncio.create_task(store.put(key, source))
        while not (await client.list_multipart_uploads(Bucket=BUCKET)).get("Uploads"):
            assert not put.done(), "the upload was over before it could be cancelled"
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
        assert not (await client.list_multipart_uploads(Bucket=BUCKET)).get("Uploads")
        assert not await store.exists(key)
        await client.delete_bucket(Bucket=BUCKET)
    await store.close()


async def test_local_files_are_private_and_fanned_out(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "artifacts", timeout_s=TIMEOUT_S)
    await store.open()
    key, source = artifact(tmp_path, b"content")
    source.chmod(0o777)
    await store.put(key, source)
    digest = key.removeprefix("sha256/")
    stored = tmp_path / "artifacts" / "sha256" / digest[:2] / digest
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600
    for folder in (tmp_path / "artifacts", stored.parent.parent, stored.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


async def test_local_left_overs_of_a_killed_process_are_swept_at_the_next_start(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "artifacts", timeout_s=TIMEOUT_S)
    await store.open()
    incoming = tmp_path / "artifacts" / "incoming"
    old, young = incoming / "old", incoming / "young"
    old.write_bytes(b"")
    young.write_bytes(b"")
    os.utime(old, (0, 0))
    await store.open()
    assert list(incoming.iterdir()) == [young]


async def test_local_file_work_that_hangs_does_not_hang_the_caller(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "artifacts", timeout_s=0.2)
    await store.open()
    key, source = artifact(tmp_path, b"content")
    source.unlink()
    os.mkfifo(source)  # opening it blocks until somebody writes to it
    with pytest.raises(Unavailable) as hung:
        await store.put(key, source)
    assert isinstance(hung.value.__cause__, TimeoutError)
    with source.open("wb") as release:
        release.write(b"content")
    await asyncio.get_running_loop().shutdown_default_executor()
    assert [p for p in (tmp_path / "artifacts").rglob("*") if p.is_file()] == []


async def test_local_volume_that_was_never_mounted_is_not_filled(tmp_path: Path) -> None:
    folder = tmp_path / "artifacts"
    store = LocalStore(folder, timeout_s=TIMEOUT_S)
    await store.open()
    shutil.rmtree(folder)
    key, source = artifact(tmp_path, b"content")
    with pytest.raises(Unavailable):
        await store.put(key, source)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("account", "endpoint", "region", "owner"),
    [
        (ACCOUNT, None, "us-east-1", ACCOUNT),
        ("0123456789abcdef" * 2, "https://0123456789abcdef0123456789abcdef.r2.cloudflarestorage.com", "auto", None),
        (None, None, "us-east-1", None),
    ],
)
async def test_s3_account_ids_mean_what_they_look_like(
    account: str | None, endpoint: str | None, region: str, owner: str | None
) -> None:
    store = S3Store(bucket=BUCKET, access_key_id="id", secret_access_key="secret", account_id=account)
    await store.open()
    try:
        assert store.endpoint == endpoint
        assert store.region == region
        assert store.bucket_owner == owner
    finally:
        await store.close()


@pytest.mark.parametrize(
    ("account", "endpoint", "secret"),
    [("nobody", None, "secret"), (None, None, None), (None, "not a url", "secret")],
)
async def test_s3_settings_that_cannot_work_are_refused_at_the_start(
    account: str | None, endpoint: str | None, secret: str | None
) -> None:
    with pytest.raises(Misconfigured):
        await S3Store(
            bucket=BUCKET, access_key_id="id", secret_access_key=secret, endpoint=endpoint, account_id=account
        ).open()


def test_secrets_do_not_show() -> None:
    config = StoreConfig(functions_dir=Path("x"), s3_secret_access_key="hush", s3_session_token="hush")
    assert "hush" not in repr(config)


JOBS = [UUID(f"01939393-0000-7000-8000-{number:012x}") for number in range(3)]


async def names(store: ArtifactStore) -> list[str]:
    return sorted([name async for portion in store.payloads() for name, _ in portion])


@pytest.mark.parametrize("size", [0, 1, 300_000])
async def test_a_text_that_was_written_is_read(backend: Backend, size: int) -> None:
    content = os.urandom(size)
    name = payload_name(JOBS[0], "payload")
    await backend.store.write_text(name, b"before")
    await backend.store.write_text(name, content)
    assert await backend.store.read_text(name) == content
    assert payload_owner(name) == (JOBS[0], "payload")


async def test_texts_are_listed_with_the_time_of_their_writing_and_deleted(backend: Backend) -> None:
    assert await names(backend.store) == []
    written = sorted(payload_name(job, part) for job in JOBS for part in ("payload", "result"))
    for name in written:
        await backend.store.write_text(name, b"{}")
    assert await names(backend.store) == written
    async for portion in backend.store.payloads():
        for _, at in portion:
            assert abs((datetime.now(UTC) - at).total_seconds()) < 60
    await backend.store.delete_payloads(written[:4])
    await backend.store.delete_payloads(written[:4])
    assert await names(backend.store) == written[4:]
    with pytest.raises(ArtifactMissing):
        await backend.store.read_text(written[0])


async def test_more_texts_than_a_portion_are_all_listed(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("local", "s3"):
        monkeypatch.setattr(f"shared.artifacts.{module}.PAYLOADS_A_PORTION", 2)
    written = sorted(payload_name(JOBS[0], "payload") for _ in range(5))
    for name in written:
        await backend.store.write_text(name, b"{}")
    portions = [len(portion) async for portion in backend.store.payloads()]
    assert (max(portions), sum(portions)) == (2, 5)
    assert await names(backend.store) == written


@pytest.mark.parametrize(
    "name", ["", "texts/x", f"sha256/{'0' * 64}", f"texts/{JOBS[0]}/../../x-{'0' * 16}", f"texts/{JOBS[0]}/payload-1"]
)
async def test_a_text_has_the_name_of_its_job(backend: Backend, name: str) -> None:
    for call in (
        backend.store.write_text(name, b""),
        backend.store.read_text(name),
        backend.store.delete_payloads([name]),
    ):
        with pytest.raises(ValueError, match="a text's name is"):
            await call


async def test_f17_texts_of_a_store_that_is_away_are_not_taken_for_gone(backend: Backend) -> None:
    name = payload_name(JOBS[0], "result")
    await backend.store.write_text(name, b"{}")
    await backend.go_down()
    try:
        for call in (backend.store.write_text(name, b""), backend.store.read_text(name), names(backend.store)):
            with pytest.raises(Unavailable) as raised:
                await call
            assert not isinstance(raised.value, ArtifactMissing)
    finally:
        await backend.come_back()
