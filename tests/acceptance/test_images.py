"""Images on a machine: they go when nobody wants them, within a budget, and never from under anyone."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import tarfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from engines import BASE_IMAGE, Bench, call, engine_config, new_layers, short_dir

from tests.client import pack
from tests.deployment import remove_images
from worker.build.plan import BuildPlan, BuiltVersion
from worker.config import DockerfileConfig, EngineConfig
from worker.engine.docker import DockerEngine
from worker.engine.docker.image import Images
from worker.engine.docker.image_gc import FUNCTION, half_made_tag
from worker.sandbox.contract import SandboxSpec

pytestmark = pytest.mark.docker
__all__ = ["engine_config", "short_dir"]

OF_LATE_S = 3600.0
FILES = {
    "Dockerfile": f"FROM {BASE_IMAGE}\nCOPY main.py /main.py\nCMD python3 /main.py\n",
    "main.py": "import json, os\njson.dump({'body': 'ran'}, open(os.environ['CONTAINERPUB_RESULT_FILE'], 'w'))\n",
}


class Depot:
    """An open engine, versions that their Dockerfiles made, and what Postgres would say of them."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.standing: dict[UUID, str | None] = {}
        self.asked: set[UUID] = set()
        self.engine = DockerEngine(config, new_layers())

    async def build(self) -> tuple[UUID, BuiltVersion]:
        path = self.config.data_dir / f"{uuid4().hex}.tar.gz"
        path.write_bytes(pack(FILES | {"unlike": uuid4().hex}))
        plan = BuildPlan(
            version_id=uuid4(),
            function_id=uuid4(),
            user_id=uuid4(),
            runtime="dockerfile",
            handler="",
            artifact=path,
            artifact_sha256="",
            timeout_s=100,
            memory_mb=512,
            max_unpacked_bytes=100 * 1024**2,
            max_log_bytes=64 * 1024,
        )
        built = await self.engine.build(plan, lambda _: None)
        self.standing[plan.version_id] = built.layers.base
        return plan.version_id, built

    async def answer(self, versions: frozenset[UUID]) -> Mapping[UUID, str | None]:
        self.asked |= versions
        return {version: image for version, image in self.standing.items() if version in versions}

    async def collect_garbage(self) -> int:
        return await self.engine.collect_garbage(self.answer)

    def spec(self, version: UUID, built: BuiltVersion) -> SandboxSpec:
        bench = Bench(engine=self.engine, config=self.config, layers=built.layers)
        return bench.spec("", version_id=version, runtime="dockerfile")

    async def here(self, *built: BuiltVersion) -> list[bool]:
        return [await self.engine.has(self.spec(uuid4(), one)) for one in built]

    async def run(self, version: UUID, built: BuiltVersion) -> bytes | None:
        sandbox = await self.engine.start(self.spec(version, built))
        try:
            outcome = await sandbox.call(call(None))
        finally:
            await sandbox.destroy()
        assert outcome.reason is None, outcome
        return outcome.result

    def age(self) -> None:
        """As if all had been used so much earlier."""
        for path in (self.config.data_dir / "images").glob("*"):
            at = path.stat().st_mtime - 2 * OF_LATE_S
            os.utime(path, (at, at))


async def docker(*arguments: str, content: bytes | None = None) -> str:
    done = await asyncio.to_thread(
        subprocess.run, ["docker", *arguments], input=content, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


async def opened(config: EngineConfig) -> AsyncIterator[Depot]:
    depot = Depot(config)
    await depot.engine.open()
    try:
        yield depot
    finally:
        await depot.engine.close()
        await asyncio.to_thread(remove_images, config.installation)


@pytest.fixture
def config(engine_config: EngineConfig) -> EngineConfig:
    return replace(engine_config, image_in_use_s=OF_LATE_S, image_disk_bytes=0, dockerfile=DockerfileConfig())


@pytest.fixture
async def depot(config: EngineConfig) -> AsyncIterator[Depot]:
    async for one in opened(config):
        yield one


async def test_f21_images_of_versions_that_do_not_stand_go_and_others_stay(depot: Depot) -> None:
    (gone, goes), (_, stays) = [await depot.build() for _ in range(2)]
    assert await depot.collect_garbage() == 0
    assert depot.asked == set(depot.standing)
    del depot.standing[gone]
    assert await depot.collect_garbage() == 1
    assert await depot.here(goes, stays) == [False, True]
    assert await depot.collect_garbage() == 0


async def test_an_image_that_went_is_loaded_from_the_store_and_is_the_same(depot: Depot) -> None:
    version, built = await depot.build()
    await docker("rmi", "--force", built.layers.base)
    assert await depot.here(built) == [False]
    assert await depot.run(version, built) == b'"ran"'
    assert await depot.here(built) == [True]
    # It has its name again, and is known as the version's.
    del depot.standing[version]
    depot.age()
    assert await depot.collect_garbage() == 1


async def test_what_an_earlier_release_left_goes_though_its_version_stands(depot: Depot) -> None:
    _, built = await depot.build()
    ours = ("--change", f"LABEL containerpub.installation={depot.config.installation}")
    other = uuid4()
    old = await docker(
        "import",
        *ours,
        "--change",
        f"LABEL containerpub.version={other}",
        "-",
        f"{FUNCTION}:{other}",
        content=_tar("a"),
    )
    packages = await docker("import", *ours, "-", f"containerpub/dependencies:{uuid4().hex}", content=_tar("b"))
    depot.standing[other] = "sha256:another"
    assert await depot.collect_garbage() == 2
    images = Images(depot.engine._client(), depot.config)
    assert [await images.find(one) for one in (old, packages)] == [None, None]
    assert await depot.here(built) == [True]


async def test_over_the_budget_what_is_used_stays_and_the_rest_comes_back(config: EngineConfig) -> None:
    async for depot in opened(replace(config, image_disk_bytes=1)):
        version, built = await depot.build()
        await depot.collect_garbage()
        assert await depot.here(built) == [True]
        sandbox = await depot.engine.start(depot.spec(version, built))
        depot.age()
        await depot.collect_garbage()
        assert await depot.here(built) == [True]
        await sandbox.destroy()
        depot.age()
        assert await depot.collect_garbage() >= 1
        assert await depot.here(built) == [False]
        assert await depot.run(version, built) == b'"ran"'


async def test_another_installations_images_are_not_ours_to_remove(depot: Depot) -> None:
    version, built = await depot.build()
    theirs = replace(depot.config, installation=f"test-{uuid4()}", image_disk_bytes=1, worker_id="theirs")
    async for other in opened(theirs):
        gone, goes = await other.build()
        other.age()
        del other.standing[gone]
        assert await other.collect_garbage() >= 1
        assert await other.here(goes) == [False]
        assert other.asked == {gone}
    assert await depot.run(version, built) == b'"ran"'


async def test_f21_what_a_dead_worker_left_half_made_goes_and_a_living_ones_stays(depot: Depot) -> None:
    version, built = await depot.build()
    tags = [half_made_tag(version, worker) for worker in ("dead", "living", depot.config.worker_id)]
    for tag in tags:
        await docker("tag", built.layers.base, f"{FUNCTION}:{tag}")
    assert await depot.engine.sweep(frozenset({"living"})) == 1
    names = await docker("images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}}", FUNCTION)
    left = [tag for tag in tags if f"{FUNCTION}:{tag}" in names.split()]
    assert left == tags[1:]
    assert await depot.engine.sweep(frozenset({"living"})) == 0


async def test_b9_labels_of_ours_on_a_foreign_image_prove_nothing(depot: Depot) -> None:
    """Named as nothing of ours, named as ours by another installation, and without any name."""
    version = uuid4()
    ours = f"containerpub.installation={depot.config.installation}"
    spoofs = [
        (f"containerpub-test/spoof:{version}", ours),
        (f"{FUNCTION}:{version}", "containerpub.installation=test-another"),
        (f"{FUNCTION}:latest", ours),
        ("containerpub/base:latest", ours),
        ("", ours),
    ]
    ids = []
    try:
        for name, label in spoofs:
            changes = ("--change", f"LABEL {label}", "--change", f"LABEL containerpub.version={version}")
            ids.append(await docker("import", *changes, "-", *filter(None, [name]), content=_tar(name)))
        depot.config = replace(depot.config, image_disk_bytes=1)
        assert await depot.collect_garbage() == 0
        assert await depot.engine.sweep(frozenset()) == 0
        images = Images(depot.engine._client(), depot.config)
        assert None not in [await images.find(one) for one in ids]
    finally:
        await docker("rmi", "--force", *ids)


async def test_a_name_that_an_operator_gave_keeps_the_image(depot: Depot) -> None:
    version, built = await depot.build()
    name = f"containerpub-test/kept:{version}"
    await docker("tag", built.layers.base, name)
    del depot.standing[version]
    try:
        assert await depot.collect_garbage() == 1
        assert await depot.here(built) == [True]
        assert await depot.collect_garbage() == 0
    finally:
        await docker("rmi", name)


def _tar(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("spoof")
        entry.size = len(name.encode()) + 32
        archive.addfile(entry, io.BytesIO(os.urandom(32) + name.encode()))
    return buffer.getvalue()
