"""What is kept of versions on a machine: it goes when nobody wants it, within a budget, and never from under anyone."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from engines import BASE_IMAGE, Bench, call, engine_config, short_dir

from tests.client import pack
from tests.deployment import remove_images
from worker.build.layer import Layer
from worker.build.plan import BuildPlan, BuiltImage
from worker.config import EngineConfig
from worker.engine.docker import DockerEngine
from worker.engine.docker.image import Image, Images
from worker.engine.docker.image_gc import DEPENDENCIES, FUNCTION, RUNTIME, half_made_tag
from worker.engine.process import ProcessEngine
from worker.sandbox.contract import SandboxSpec

__all__ = ["engine_config", "short_dir"]

CODE = "def handler(event, context):\n    return event['body']\n"
OF_LATE_S = 3600.0
MEBIBYTE = 1024**2


class Depot:
    """An open engine, versions that it built, and what Postgres would say of them."""

    def __init__(self, config: EngineConfig, name: str) -> None:
        self.config = config
        self.name = name
        self.standing: dict[UUID, str | None] = {}
        self.asked: set[UUID] = set()
        self.engine = self.new_engine(config)

    def new_engine(self, config: EngineConfig) -> DockerEngine | ProcessEngine:
        return DockerEngine(config) if self.name == "docker" else ProcessEngine(config)

    def plan(self, code: str = CODE, files: Mapping[str, str] | None = None) -> BuildPlan:
        path = self.config.data_dir / f"{uuid4().hex}.tar.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pack({"main.py": code, **(files or {})}))
        return BuildPlan(
            version_id=uuid4(),
            function_id=uuid4(),
            user_id=uuid4(),
            runtime="python",
            handler="main:handler",
            artifact=path,
            artifact_sha256="",
            timeout_s=100,
            memory_mb=512,
            max_unpacked_bytes=100 * MEBIBYTE,
            max_log_bytes=64 * 1024,
        )

    async def build(self, plan: BuildPlan | None = None) -> tuple[UUID, BuiltImage]:
        plan = plan or self.plan()
        built = await self.engine.build(plan, lambda _: None)
        self.standing[plan.version_id] = built.ref
        return plan.version_id, built

    async def answer(self, versions: frozenset[UUID]) -> Mapping[UUID, str | None]:
        self.asked |= versions
        return {version: image for version, image in self.standing.items() if version in versions}

    async def collect_garbage(self) -> int:
        return await self.engine.collect_garbage(self.answer)

    async def here(self, *built: BuiltImage) -> list[bool]:
        return [await self.engine.has_image(one.ref) for one in built]

    async def run(self, version: UUID, built: BuiltImage, body: object) -> bytes | None:
        spec = self.spec(version, built)
        sandbox = await self.engine.start(spec)
        try:
            outcome = await sandbox.call(call(body))
        finally:
            await sandbox.destroy()
        assert outcome.reason is None, outcome
        return outcome.result

    def spec(self, version: UUID, built: BuiltImage) -> SandboxSpec:
        bench = Bench(engine=self.engine, config=self.config, image=built.ref)
        return bench.spec("handler", version_id=version)

    def age(self, *names: str, by_s: float = 2 * OF_LATE_S) -> None:
        """As if these, or all that there are, had been used so much earlier."""
        roots = ("images",) if self.name == "docker" else ("versions", "dependencies")
        for root in roots:
            for path in (self.config.data_dir / root).glob("*"):
                if not names or f"sha256:{path.name}" in names or path.name in names:
                    at = path.stat().st_mtime - by_s
                    os.utime(path, (at, at))

    def kept(self) -> int:
        """How many images or folders of versions and their dependencies there are."""
        if self.name == "docker":
            return len(_names(self.config.installation, FUNCTION, DEPENDENCIES))
        roots = (self.config.data_dir / "versions", self.config.data_dir / "dependencies")
        return sum(not path.name.startswith(".") for root in roots if root.is_dir() for path in root.iterdir())


def _names(installation: str, *repositories: str) -> list[str]:
    label = f"label=containerpub.installation={installation}"
    done = subprocess.run(
        ["docker", "images", "--no-trunc", "--filter", label, "--format", "{{.Repository}}:{{.Tag}}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in done.stdout.split() if name.rpartition(":")[0] in repositories]


async def docker(*arguments: str, content: bytes | None = None) -> str:
    done = await asyncio.to_thread(
        subprocess.run, ["docker", *arguments], input=content, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


async def opened(config: EngineConfig, name: str) -> AsyncIterator[Depot]:
    depot = Depot(config, name)
    await depot.engine.open()
    try:
        yield depot
    finally:
        await depot.engine.close()
        if name == "docker":
            await asyncio.to_thread(remove_images, config.installation)


@pytest.fixture
def config(engine_config: EngineConfig) -> EngineConfig:
    return replace(engine_config, image_in_use_s=OF_LATE_S, image_disk_bytes=0)


@pytest.fixture(params=["process", pytest.param("docker", marks=pytest.mark.docker)])
async def depot(request: pytest.FixtureRequest, config: EngineConfig) -> AsyncIterator[Depot]:
    async for one in opened(config, request.param):
        yield one


@pytest.fixture
async def docker_depot(config: EngineConfig) -> AsyncIterator[Depot]:
    async for one in opened(config, "docker"):
        yield one


def with_budget(depot: Depot, budget: int) -> None:
    """From now on the engine of ``depot`` is one with a disk budget, as after a restart of its worker."""
    depot.config = replace(depot.config, image_disk_bytes=budget)
    depot.engine = depot.new_engine(depot.config)


async def test_f21_images_of_versions_that_do_not_stand_go_and_others_stay(depot: Depot) -> None:
    (gone, goes), (_, stays) = [await depot.build() for _ in range(2)]
    assert await depot.collect_garbage() == 0
    assert depot.asked == set(depot.standing)
    del depot.standing[gone]
    assert await depot.collect_garbage() == 1
    assert await depot.here(goes, stays) == [False, True]
    assert await depot.collect_garbage() == 0


async def test_an_image_that_a_sandbox_runs_from_stays_until_it_ends(depot: Depot) -> None:
    version, built = await depot.build()
    sandbox = await depot.engine.start(depot.spec(version, built))
    depot.standing.clear()
    await depot.engine.remove_image(built.ref)
    assert await depot.collect_garbage() == 0
    assert (await sandbox.call(call(1))).result == b"1"
    await sandbox.pause()
    assert await depot.collect_garbage() == 0
    await sandbox.unpause()
    assert (await sandbox.call(call(2))).result == b"2"
    await sandbox.destroy()
    assert await depot.collect_garbage() == 1
    assert await depot.here(built) == [False]


async def test_over_the_budget_the_least_recently_used_go_also_after_a_restart(depot: Depot) -> None:
    versions = [await depot.build(depot.plan(CODE + f"# {number}\n" + "#" * MEBIBYTE)) for number in range(3)]
    await depot.collect_garbage()  # what was used is written down
    depot.age()
    await depot.engine.close()
    # All three take a bit more than 3 MiB, the runtime's own side included.
    with_budget(depot, int(2.5 * MEBIBYTE))
    await depot.engine.open()
    assert await depot.run(*versions[0], 1) == b"1"
    assert await depot.collect_garbage() == 1
    assert sum(await depot.here(*(built for _, built in versions))) == 2
    assert await depot.here(versions[0][1]) == [True]
    assert await depot.collect_garbage() == 0


async def test_over_the_budget_what_was_used_of_late_stays_and_what_went_is_built_again_alike(depot: Depot) -> None:
    plan = depot.plan()
    version, built = await depot.build(plan)
    await depot.engine.close()
    with_budget(depot, 1)
    await depot.engine.open()
    await depot.collect_garbage()
    assert await depot.here(built) == [True]
    depot.age()
    sandbox = await depot.engine.start(depot.spec(version, built))
    depot.age()
    await depot.collect_garbage()
    assert await depot.here(built) == [True]
    await sandbox.destroy()
    depot.age()
    assert await depot.collect_garbage() >= 1
    assert await depot.here(built) == [False]
    assert (await depot.engine.build(plan, lambda _: None)).ref == built.ref
    assert await depot.run(version, built, "again") == b'"again"'


async def test_dependencies_stay_as_long_as_a_version_stands_on_them(depot: Depot) -> None:
    plan = depot.plan("import idna\n" + CODE, {"requirements.txt": "idna==3.10\n"})
    version, built = await depot.build(plan)
    assert depot.kept() == 2
    await depot.engine.close()
    with_budget(depot, 1)
    await depot.engine.open()
    depot.age()
    sandbox = await depot.engine.start(depot.spec(version, built))
    await depot.collect_garbage()
    assert depot.kept() == 2
    await sandbox.destroy()
    depot.age()
    await depot.collect_garbage()
    assert depot.kept() == 0
    await depot.build(plan)
    assert await depot.run(version, built, 3) == b"3"


async def test_another_installations_images_are_not_ours_to_remove(depot: Depot) -> None:
    version, built = await depot.build()
    theirs = replace(depot.config, installation=f"test-{uuid4()}", image_disk_bytes=1, worker_id="theirs")
    if depot.name == "process":
        # They share an engine; folders of data they do not.
        theirs = replace(theirs, data_dir=depot.config.data_dir / "theirs")
    async for other in opened(theirs, depot.name):
        gone, goes = await other.build()
        other.age()
        del other.standing[gone]
        assert await other.collect_garbage() >= 1
        assert await other.here(goes) == [False]
        assert other.asked == {gone}
    assert await depot.run(version, built, 5) == b"5"


@pytest.mark.docker
async def test_f21_what_a_dead_worker_left_half_made_goes_and_a_living_ones_stays(docker_depot: Depot) -> None:
    version, built = await docker_depot.build()
    tags = {worker: half_made_tag(version, worker) for worker in ("dead", "living", docker_depot.config.worker_id)}
    for tag in tags.values():
        await docker("tag", built.ref, f"{FUNCTION}:{tag}")
    assert await docker_depot.engine.sweep(frozenset({"living"})) == 1
    left = _names(docker_depot.config.installation, FUNCTION)
    assert sorted(left) == sorted(
        f"{FUNCTION}:{tag}" for tag in (str(version), tags["living"], tags[docker_depot.config.worker_id])
    )
    assert await docker_depot.engine.sweep(frozenset({"living"})) == 0


@pytest.mark.docker
async def test_b9_labels_of_ours_on_a_foreign_image_prove_nothing(docker_depot: Depot) -> None:
    """Named as nothing of ours, named as ours by another installation, and without any name."""
    version = uuid4()
    ours = f"containerpub.installation={docker_depot.config.installation}"
    spoofs = [
        (f"containerpub-test/spoof:{version}", ours),
        (f"{FUNCTION}:{version}", "containerpub.installation=test-another"),
        (f"{FUNCTION}:latest", ours),
        ("", ours),
    ]
    ids = []
    try:
        for name, label in spoofs:
            changes = ("--change", f"LABEL {label}", "--change", f"LABEL containerpub.version={version}")
            ids.append(await docker("import", *changes, "-", *filter(None, [name]), content=_tar({"spoof": name})))
        docker_depot.config = replace(docker_depot.config, image_disk_bytes=1)
        assert await docker_depot.collect_garbage() == 0
        assert await docker_depot.engine.sweep(frozenset()) == 0
        assert [await docker_depot.engine.has_image(one) for one in ids] == [True] * len(ids)
    finally:
        await docker("rmi", "--force", *ids)


@pytest.mark.docker
async def test_a_name_that_an_operator_gave_keeps_the_image(docker_depot: Depot) -> None:
    version, built = await docker_depot.build()
    name = f"containerpub-test/kept:{version}"
    await docker("tag", built.ref, name)
    del docker_depot.standing[version]
    try:
        assert await docker_depot.collect_garbage() == 1
        assert await docker_depot.here(built) == [True]
        assert await docker_depot.collect_garbage() == 0
    finally:
        await docker("rmi", name)


@pytest.mark.docker
async def test_an_image_that_lost_its_name_goes_unless_its_version_knows_it(docker_depot: Depot) -> None:
    version, built = await docker_depot.build()
    other, later = await docker_depot.build(docker_depot.plan(CODE + "# later\n"))
    await docker("tag", later.ref, f"{FUNCTION}:{version}")  # takes the name from the first
    docker_depot.age()
    assert await docker_depot.collect_garbage() == 0
    assert await docker_depot.here(built, later) == [True, True]
    docker_depot.standing[version] = later.ref
    assert await docker_depot.collect_garbage() == 1
    assert await docker_depot.here(built, later) == [False, True]
    assert other in docker_depot.standing


@pytest.fixture
def own_base(tmp_path: Path) -> Iterator[str]:
    """A base image that nobody else builds on, so that no layer on top of it is shared."""
    name = f"containerpub-test/base:{uuid4().hex}"
    (tmp_path / "unlike").write_text(name)
    (tmp_path / "Dockerfile").write_text(f"FROM {BASE_IMAGE}\nCOPY unlike /unlike\n")
    subprocess.run(["docker", "build", "--quiet", "--tag", name, str(tmp_path)], check=True, capture_output=True)
    yield name
    subprocess.run(["docker", "rmi", name], check=True, capture_output=True)


@pytest.mark.docker
@pytest.mark.parametrize("gone", [RUNTIME, DEPENDENCIES])
async def test_f26_what_is_pruned_under_a_running_build_is_made_again(
    config: EngineConfig, own_base: str, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the last layer is to stand on goes at the worst moment."""
    stack = Images.stack
    pruned: list[str] = []

    async def prune_then_stack(
        images: Images, parent: Image, layer: Layer, name: str, tag: str, labels: Mapping[str, str]
    ) -> Image:
        if name == FUNCTION and not pruned:
            pruned.append(parent.id)
            await docker("rmi", "--force", parent.id)
        return await stack(images, parent, layer, name, tag, labels)

    monkeypatch.setattr(Images, "stack", prune_then_stack)
    async for depot in opened(replace(config, base_images={"python": own_base}), "docker"):
        files = {"requirements.txt": "idna==3.10\n"} if gone == DEPENDENCIES else {}
        version, built = await depot.build(depot.plan(files=files))
        assert pruned
        assert await depot.run(version, built, 7) == b"7"


def _tar(files: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode()) + 32
            archive.addfile(entry, io.BytesIO(os.urandom(32) + text.encode()))
    return buffer.getvalue()
