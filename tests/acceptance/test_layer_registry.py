"""Layers in a registry beside the artifact store: a second copy that is pushed and pulled by digest."""

from __future__ import annotations

import io
import shutil
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import pytest
from built_images import service_images
from registry import Registry, registry

from shared.artifacts import ArtifactCorrupt, ArtifactMissing, LocalStore, layer_key
from shared.errors import Unavailable
from shared.layers import LayerKind, LayerRef
from shared.postgres.blobs import Blobs
from shared.postgres.pool import Pool
from shared.scratch import Scratch
from tests.deployment import Platform
from worker.build.layer_registry import LayerRegistry
from worker.build.layer_store import LayerStore
from worker.consume.blob_sweep import BlobSweep

CODE = "import idna\ndef handler(event, context):\n    return idna.__name__\n"

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def image() -> str:
    return service_images()["REGISTRY_IMAGE"]


@pytest.fixture(scope="module")
def running(image: str) -> Iterator[Registry]:
    with registry(image) as one:
        yield one


@pytest.fixture
async def scratch(tmp_path: Path) -> AsyncIterator[Scratch]:
    made = Scratch(tmp_path / "data")
    await made.open()
    yield made
    await made.close()


@pytest.fixture
def layers(running: Registry, scratch: Scratch) -> LayerRegistry:
    return LayerRegistry(f"http://{running.address}/team", scratch, timeout_s=30)


def content() -> tuple[str, bytes]:
    """A digest, and what has it: longer than a chunk, and never the same twice."""
    made = uuid4().bytes * 100_000
    return sha256(made).hexdigest(), made


async def test_a_layer_is_found_under_its_own_digest_and_read_back(
    running: Registry, layers: LayerRegistry, tmp_path: Path
) -> None:
    digest, made = content()
    file = io.BytesIO(made)
    await layers.push(digest, file)
    await layers.push(digest, file)  # again: nothing is sent
    assert not file.closed
    base = f"http://{running.address}/v2/team/containerpub/layers"
    assert urllib.request.urlopen(f"{base}/blobs/sha256:{digest}", timeout=10).read() == made
    assert urllib.request.urlopen(f"{base}/tags/list", timeout=10).read().count(f"sha256-{digest}".encode()) == 1
    await layers.pull(digest, tmp_path / "pulled")
    assert (tmp_path / "pulled").read_bytes() == made


async def test_what_is_not_there_or_not_as_it_was_is_told_apart_and_not_written(
    running: Registry, layers: LayerRegistry, tmp_path: Path
) -> None:
    digest, made = content()
    with pytest.raises(ArtifactMissing, match=digest[:12]):
        await layers.pull(digest, tmp_path / "pulled")
    await layers.push(digest, io.BytesIO(made))
    # As long as before, and no byte as it was.
    path = f"/var/lib/registry/docker/registry/v2/blobs/sha256/{digest[:2]}/{digest}/data"
    running.run(f"head -c {len(made)} /dev/zero > {path}")
    with pytest.raises(ArtifactCorrupt, match=digest[:12]):
        await layers.pull(digest, tmp_path / "pulled")
    assert list(tmp_path.glob("*pulled*")) == []


async def test_a_deleted_layer_is_gone_with_what_kept_it(running: Registry, layers: LayerRegistry) -> None:
    digest, made = content()
    await layers.push(digest, io.BytesIO(made))
    await layers.delete(digest)
    await layers.delete(digest)
    # Of Debian's package, and of the official image.
    debian, official = "docker-registry garbage-collect /tmp/registry.yml", "/entrypoint.sh garbage-collect"
    running.run(f"if command -v docker-registry; then {debian}; else {official} /etc/distribution/config.yml; fi")
    assert digest not in running.blobs()


async def test_a_registry_that_does_not_answer_fails_in_time(image: str, scratch: Scratch, tmp_path: Path) -> None:
    digest, made = content()
    with registry(image) as mine:
        layers = LayerRegistry(f"http://{mine.address}", scratch, timeout_s=3)
        mine.stop()
        began = time.monotonic()
        with pytest.raises(Unavailable, match=mine.address):
            await layers.push(digest, io.BytesIO(made))
        with pytest.raises(Unavailable, match=mine.address):
            await layers.pull(digest, tmp_path / "pulled")
        assert time.monotonic() - began < 15
        mine.go_on()
        await layers.push(digest, io.BytesIO(made))
    with pytest.raises(Unavailable, match="ConnectionError"):
        await layers.delete(digest)


async def test_a_password_goes_by_tls_alone(
    image: str, scratch: Scratch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, made = content()
    folder = tmp_path / "conf"
    folder.mkdir()
    with registry(image, folder=folder, password="right") as mine:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(folder / "ca.pem"))
        url = f"https://{mine.address}"
        await LayerRegistry(url, scratch, user="team", password="right").push(digest, io.BytesIO(made))
        await LayerRegistry(url, scratch, user="team", password="right").pull(digest, tmp_path / "pulled")
        with pytest.raises(Unavailable, match=r"user or password") as told:
            await LayerRegistry(url, scratch, user="team", password="wrong").push(digest, io.BytesIO(made))
        assert "wrong" not in str(told.value)
        with pytest.raises(Unavailable, match=r"user or password"):
            await LayerRegistry(url, scratch).pull(digest, tmp_path / "pulled")
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
        with pytest.raises(Unavailable, match="SSLError"):
            await LayerRegistry(url, scratch, user="team", password="right").push(digest, io.BytesIO(made))


async def test_what_the_store_lost_comes_from_the_registry_and_what_that_lost_goes_there_again(
    pool: Pool, layers: LayerRegistry, tmp_path: Path
) -> None:
    store = LocalStore(tmp_path / "store")
    await store.open()
    kept = LayerStore(store, Blobs(pool), layers)
    digest, made = content()
    key = f"dependencies {uuid4()}"

    async def make() -> LayerRef:
        return await kept.keep_file(LayerKind.DEPENDENCIES, io.BytesIO(made), digest, len(made))

    ref, known = await kept.single_flight(key, make)
    assert (ref.digest, known) == (digest, False)
    await store.delete(layer_key(digest))
    await kept.fetch(ref, tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == made
    shutil.rmtree(tmp_path / "store")  # away, and not empty
    await kept.fetch(ref, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == made

    await store.open()
    await store.put(layer_key(digest), io.BytesIO(made))
    await layers.delete(digest)
    assert await kept.single_flight(key, make) == (ref, True)
    await layers.pull(digest, tmp_path / "pulled")

    now = timedelta(0)
    assert await BlobSweep(pool, Blobs(pool), store, layers, "sweeper", young=now, resolved=now).run_once() == 1
    assert not await store.exists(layer_key(digest))
    with pytest.raises(ArtifactMissing):
        await layers.pull(digest, tmp_path / "swept")


async def test_a_version_whose_layers_are_only_in_the_registry_runs(
    database: str, redis_url: str, running: Registry
) -> None:
    env = {"DOCKER_REGISTRY": f"{running.address}/whole", "SANDBOX_IDLE_SECONDS": "0.2", "SANDBOX_GENERICS": "0"}
    env |= {"ARTIFACT_TIMEOUT_SECONDS": "5"}
    platform = Platform(database_url=database, redis_url=redis_url, engine="process", env=env)
    async with platform, platform.client() as client:
        await client.register()
        deployed = await client.deploy("needy", {"main.py": CODE, "requirements.txt": "idna\n"}, prefer="wait=120")
        assert deployed.status == 201, (deployed, platform.logs())
        await platform.terminate("worker-1")
        for folder in (Path(platform.env["FUNCTIONS_DIR"], "layers"), Path(platform.env["DATA_DIR"], "code")):
            shutil.rmtree(folder)
        Path(platform.env["FUNCTIONS_DIR"], "layers").mkdir()
        platform.start("worker-2")
        answer = await client.invoke("needy", prefer="wait=60")
        assert (answer.status, answer.json.get("result")) == (200, "idna"), (answer, platform.logs())
        assert "taking a layer's second copy" in platform.log("worker-2").read_text()

        running.stop()
        try:
            refused = await client.deploy("other", {"main.py": CODE.replace("idna", "json")}, prefer="wait=60")
            assert (refused.status, refused.json["code"]) == (503, "dependency_down"), refused
            assert running.address in refused.json["detail"]
            assert (await client.invoke("needy")).status == 200
        finally:
            running.go_on()
        again = await client.deploy("other", {"main.py": CODE.replace("idna", "json")}, prefer="wait=60")
        assert again.status == 201, (again, platform.logs())
