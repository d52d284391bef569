"""What the artifact store keeps: as long as anything needs it, and not for long after that."""

from __future__ import annotations

import asyncio
import io
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from shared.artifacts import LocalStore, artifact_key, layer_key
from shared.functions import FunctionSettings
from shared.layers import LayerKind, LayerRef, VersionLayers
from shared.postgres.blobs import Blobs
from shared.postgres.functions import Deploy, Functions
from shared.postgres.pool import Pool
from shared.postgres.versions import Versions
from tests.seeds import new_user
from worker.build.layer import LayerWriter
from worker.build.layer_store import LayerStore
from worker.consume.blob_sweep import BlobSweep

NOW = timedelta(0)
SETTINGS = FunctionSettings(runtime="python", handler="main:handler", timeout_s=1, memory_mb=64, cpus=1)


class House:
    """A store, and what Postgres knows of it."""

    def __init__(self, pool: Pool, store: LocalStore, user: UUID, folder: Path) -> None:
        self.pool, self.store, self.user, self.folder = pool, store, user, folder
        self.blobs, self.functions, self.versions = Blobs(pool), Functions(pool), Versions(pool)
        self.layers = LayerStore(store, self.blobs)

    async def layer(self, kind: LayerKind, content: bytes) -> LayerRef:
        writer = LayerWriter()
        writer.add(f"{kind}/file", io.BytesIO(content), len(content))
        with (layer := writer.finish()).file:
            return await self.layers.keep(kind, layer)

    async def artifact(self, content: bytes) -> str:
        """As an upload puts it."""
        digest = sha256(content).hexdigest()
        source = self.folder / digest
        source.write_bytes(content)
        await self.blobs.claim_artifact(digest, len(content))
        await self.store.put(artifact_key(digest), source)
        return digest

    async def deploy(self, name: str, artifact: str, *layers: LayerRef) -> Deploy:
        made = await self.functions.deploy(
            user=self.user, name=name, artifact_sha256=artifact, artifact_bytes=1, settings=SETTINGS
        )
        built = VersionLayers(base="sha256:base", layers=layers)
        assert await self.versions.activate(made.version_id, layers=built, analysis={})
        return made

    def sweep(self, *, young: timedelta = NOW, resolved: timedelta = NOW) -> BlobSweep:
        return BlobSweep(self.pool, self.blobs, self.store, None, "sweeper", young=young, resolved=resolved)

    async def here(self, *layers: LayerRef) -> list[bool]:
        return [await self.store.exists(layer_key(layer.digest)) for layer in layers]


@pytest.fixture
async def house(pool: Pool, tmp_path: Path) -> House:
    store = LocalStore(tmp_path / "store")
    await store.open()
    return House(pool, store, await new_user(pool), tmp_path)


async def test_a_version_is_read_back_with_its_layers_in_order(house: House) -> None:
    layers = [await house.layer(kind, b"x") for kind in (LayerKind.RUNTIME, LayerKind.DEPENDENCIES, LayerKind.CODE)]
    made = await house.deploy("one", await house.artifact(b"a"), *layers)
    expected = VersionLayers(base="sha256:base", layers=tuple(layers))
    runnable = await house.versions.runnable(made.version_id)
    assert runnable is not None
    assert (runnable.built, runnable.layers) == (True, expected)
    version = await house.versions.get(made.function_id, 1)
    assert version is not None
    assert version.layers == expected
    assert (await house.versions.list(made.function_id, before=5, limit=5))[0].layers == expected


async def test_a_version_of_an_earlier_release_is_recorded_once_and_the_first_wins(house: House, pool: Pool) -> None:
    made = await house.deploy("one", await house.artifact(b"a"))
    await pool.execute("UPDATE versions SET base = NULL, image = 'sha256:old'")
    before = await house.versions.runnable(made.version_id)
    assert before is not None
    assert (before.built, before.layers) == (True, None)
    built = [
        VersionLayers(base=f"sha256:{name}", layers=(await house.layer(LayerKind.CODE, name.encode()),))
        for name in ("one", "two")
    ]
    took = await asyncio.gather(
        *(house.versions.record_layers(made.version_id, layers=one, instead_of=None) for one in built)
    )
    assert sorted(took) == [False, True]
    recorded = await house.versions.runnable(made.version_id)
    assert recorded is not None
    assert recorded.layers == built[took.index(True)]


async def test_two_workers_that_resolve_at_once_end_with_the_first_ones_layer(house: House) -> None:
    """Unpinned requirements give one worker these packages and the other those."""
    both_made = asyncio.Barrier(2)

    async def install(content: bytes) -> LayerRef:
        layer = await house.layer(LayerKind.DEPENDENCIES, content)
        await both_made.wait()
        return layer

    key = f"dependencies {uuid4()}"
    ends = await asyncio.gather(*(house.layers.single_flight(key, lambda c=c: install(c)) for c in (b"1.0", b"2.0")))  # type: ignore[misc]
    assert ends[0] == ends[1]
    assert ends[0][1] is False

    async def never() -> LayerRef:
        raise AssertionError("it is resolved")

    assert await house.layers.single_flight(key, never) == (ends[0][0], True)


async def test_a_resolution_whose_layer_the_store_lost_is_made_anew(house: House) -> None:
    key = "dependencies x"
    first, _ = await house.layers.single_flight(key, lambda: house.layer(LayerKind.DEPENDENCIES, b"1.0"))
    await house.store.delete(layer_key(first.digest))
    second, known = await house.layers.single_flight(key, lambda: house.layer(LayerKind.DEPENDENCIES, b"2.0"))
    assert not known
    assert second != first
    assert await house.here(second) == [True]


async def test_only_what_nothing_needs_goes(house: House) -> None:
    shared, kept, gone = [await house.layer(LayerKind.CODE, content) for content in (b"shared", b"kept", b"gone")]
    resolved, _ = await house.layers.single_flight("dependencies y", lambda: house.layer(LayerKind.DEPENDENCIES, b"y"))
    artifacts = [await house.artifact(content) for content in (b"a", b"b")]
    await house.deploy("kept", artifacts[0], shared, kept)
    deleted = await house.deploy("deleted", artifacts[1], shared, gone)
    await house.functions.delete(house.user, deleted.function_id)
    # Nothing yet: all of it was claimed a moment ago.
    assert await house.sweep(young=timedelta(hours=1)).run_once() == 0
    assert await house.sweep(resolved=timedelta(hours=1)).run_once() == 2
    assert await house.here(shared, kept, gone, resolved) == [True, True, False, True]
    assert [await house.store.exists(artifact_key(one)) for one in artifacts] == [True, False]
    assert await house.sweep().run_once() == 1
    assert await house.here(resolved) == [False]
    assert await house.sweep().run_once() == 0


async def test_r15_a_claim_comes_before_a_collection_and_keeps_the_blob_or_after_it_and_puts_it_again(
    house: House,
) -> None:
    layer = await house.layer(LayerKind.CODE, b"equal")
    removing, go_on = asyncio.Event(), asyncio.Event()

    async def remove(kind: str, digest: str) -> None:
        removing.set()
        await go_on.wait()
        await house.store.delete(layer_key(digest))

    collecting = asyncio.create_task(house.blobs.collect(layer.digest, datetime.now(UTC), remove))
    await removing.wait()
    # An equal layer is deployed while the collection of it is at it.
    deploying = asyncio.create_task(house.layer(LayerKind.CODE, b"equal"))
    waiting, _ = await asyncio.wait((deploying,), timeout=0.2)
    assert not waiting
    go_on.set()
    assert await collecting
    assert await deploying == layer
    assert await house.here(layer) == [True]
    # And the other way round: what was claimed in time is not removed.
    before = datetime.now(UTC)
    await house.blobs.claim(layer)
    assert not await house.blobs.collect(layer.digest, before, remove)
    assert await house.here(layer) == [True]


async def test_deploys_and_collections_at_once_never_leave_a_version_without_its_layers(house: House) -> None:
    contents = [bytes([number]) for number in range(4)]

    async def deploy(number: int) -> None:
        content = contents[number % len(contents)]
        artifact = await house.artifact(content)
        await house.deploy(f"f{number}", artifact, await house.layer(LayerKind.CODE, content))
        if number % 3:
            function = await house.functions.get(house.user, f"f{number}")
            assert function is not None
            await house.functions.delete(house.user, function.id)

    async def collect() -> None:
        while True:
            # A grace of next to nothing: claims and collections meet all the time.
            await house.sweep(young=timedelta(milliseconds=200)).run_once()

    collecting = asyncio.create_task(collect())
    for start in range(0, 60, 6):
        await asyncio.gather(*(deploy(number) for number in range(start, start + 6)))
    collecting.cancel()
    await asyncio.gather(collecting, return_exceptions=True)
    standing = await house.pool.fetch(
        "SELECT v.id, v.artifact_sha256 FROM versions v JOIN functions f ON f.id = v.function_id "
        "WHERE f.deleted_at IS NULL"
    )
    assert len(standing) == 20
    for row in standing:
        version = await house.versions.runnable(row["id"])
        assert version is not None
        assert version.layers is not None
        assert [layer.kind for layer in version.layers.layers] == [LayerKind.CODE]
        assert await house.here(*version.layers.layers) == [True]
        assert await house.store.exists(artifact_key(row["artifact_sha256"]))
