"""A version consists of the same bytes on every machine, wherever it was built and whatever a machine has lost."""

from __future__ import annotations

import asyncio
import hashlib
import io
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from engines import BASE_IMAGE, Bench, call, engine_config, new_layers, short_dir, store_in

from shared.artifacts import LocalStore
from shared.layers import LayerKind, VersionLayers
from tests.client import pack
from tests.deployment import remove_images
from worker.build.layer import LayerWriter
from worker.build.layer_store import LayerStore
from worker.build.plan import BuildPlan, BuiltVersion
from worker.build.recipe import load_recipe
from worker.config import EngineConfig
from worker.engine.docker import DockerEngine
from worker.engine.docker.image import Images
from worker.engine.process import ProcessEngine
from worker.errors import LayerUnavailable
from worker.sandbox.contract import SandboxSpec

__all__ = ["engine_config", "short_dir"]

CODE = "import idna\ndef handler(event, context):\n    return idna.encode(event['body']).decode()\n"
FILES = {"main.py": CODE, "requirements.txt": "idna==3.10\n"}
MEBIBYTE = 1024**2


@dataclass(kw_only=True)
class Machine:
    """A worker's engine with a disk of its own."""

    engine: DockerEngine | ProcessEngine
    config: EngineConfig

    async def build(self, files: Mapping[str, str], user: UUID | None = None) -> BuiltVersion:
        path = self.config.data_dir / f"{uuid4().hex}.tar.gz"
        path.write_bytes(pack(dict(files)))
        plan = BuildPlan(
            version_id=uuid4(),
            function_id=uuid4(),
            user_id=user or uuid4(),
            runtime="python",
            handler="main:handler",
            artifact=path,
            artifact_sha256="",
            timeout_s=100,
            memory_mb=512,
            max_unpacked_bytes=100 * MEBIBYTE,
            max_log_bytes=64 * 1024,
        )
        return await self.engine.build(plan, lambda _: None)

    def spec(self, layers: VersionLayers) -> SandboxSpec:
        return Bench(engine=self.engine, config=self.config, layers=layers).spec("handler")

    async def run(self, layers: VersionLayers, body: object) -> bytes | None:
        sandbox = await self.engine.start(self.spec(layers))
        try:
            outcome = await sandbox.call(call(body))
        finally:
            await sandbox.destroy()
        assert outcome.reason is None, outcome
        return outcome.result

    def forget_code(self) -> None:
        """As an operator's hand would."""
        for tree in (self.config.data_dir / "code").glob("*/*/tree"):
            shutil.rmtree(tree.parent, ignore_errors=True)  # spares may be made there meanwhile

    def code(self) -> dict[str, str]:
        """Digests of all files of versions on this machine."""
        found = {}
        for tree in (self.config.data_dir / "code").glob("*/*/tree"):
            for path in tree.rglob("*"):
                if path.is_file():
                    found[f"{path.relative_to(tree)}"] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found


@asynccontextmanager
async def machine(name: str, config: EngineConfig, layers: LayerStore) -> AsyncIterator[Machine]:
    engine: DockerEngine | ProcessEngine
    engine = DockerEngine(config, layers) if name == "docker" else ProcessEngine(config, layers)
    await engine.open()
    try:
        yield Machine(engine=engine, config=config)
    finally:
        await engine.close()
        if name == "docker":
            await asyncio.to_thread(remove_images, config.installation)


@pytest.fixture(params=["process", pytest.param("docker", marks=pytest.mark.docker)])
def engine_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return store_in(tmp_path / "store")


@pytest.fixture
def layers(engine_name: str, store: LocalStore) -> LayerStore:
    # Base images are large: those who look at them have a store of their own.
    return new_layers(store if engine_name == "process" else None)


async def test_what_one_machine_built_runs_on_another_that_shares_but_the_store(
    engine_name: str, engine_config: EngineConfig, layers: LayerStore, short_dir: Path
) -> None:
    other = replace(engine_config, data_dir=short_dir / "other", worker_id="other", index_hosts=())
    async with machine(engine_name, engine_config, layers) as here, machine(engine_name, other, layers) as there:
        built = await here.build(FILES)
        assert await there.run(built.layers, "münchen") == b'"xn--mnchen-3ya"'
        assert await here.run(built.layers, "münchen") == b'"xn--mnchen-3ya"'
        assert here.code() == there.code()
        # Nor is anything installed again, where nothing can be: the index is closed to the other machine.
        again = await there.build(FILES | {"main.py": CODE + "# changed\n"})
        assert again.layers.of(LayerKind.DEPENDENCIES) == built.layers.of(LayerKind.DEPENDENCIES)


async def test_code_that_was_removed_by_hand_comes_back(
    engine_name: str, engine_config: EngineConfig, layers: LayerStore
) -> None:
    async with machine(engine_name, engine_config, layers) as here:
        built = await here.build(FILES)
        before = here.code()
        here.forget_code()
        assert await here.run(built.layers, "ü") == b'"xn--tda"'
        assert here.code().items() <= before.items()


@pytest.mark.parametrize("kind", [LayerKind.CODE, LayerKind.DEPENDENCIES])
async def test_a_flipped_byte_in_the_store_is_noticed_and_never_run(
    engine_config: EngineConfig, store: LocalStore, kind: LayerKind
) -> None:
    async with machine("process", engine_config, new_layers(store)) as here:
        built = await here.build(FILES)
        here.forget_code()
        layer = built.layers.of(kind)
        assert layer is not None
        file = store._path(f"layers/{layer.digest}")
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        with pytest.raises(LayerUnavailable) as caught:
            await here.run(built.layers, "ü")
        assert caught.value.reason == "artifact_missing"
        assert layer.digest[:12] in caught.value.message
        # The next deploy of the same content mends it.
        if kind is LayerKind.CODE:
            assert (await here.build(FILES)).layers == built.layers
            assert await here.run(built.layers, "ü") == b'"xn--tda"'


async def test_without_the_store_what_is_here_runs_and_the_rest_is_a_dependencys_fault(
    engine_config: EngineConfig, store: LocalStore, tmp_path: Path
) -> None:
    user = uuid4()
    async with machine("process", engine_config, new_layers(store)) as here:
        built = await here.build(FILES, user)
        other = await here.build(FILES | {"main.py": CODE + "# other\n"}, user)
        spec = replace(here.spec(built.layers), user_id=user)
        here.forget_code()
        await here.engine.prepare(spec)
        (tmp_path / "store").rename(tmp_path / "away")
        sandbox = await here.engine.start(spec)
        assert (await sandbox.call(call("ü"))).result == b'"xn--tda"'
        with pytest.raises(LayerUnavailable) as caught:
            await here.engine.start(replace(spec, version_id=uuid4(), layers=other.layers))
        assert caught.value.reason == "dependency_down"


@pytest.fixture
def own_base(tmp_path: Path) -> Iterator[str]:
    """A base image that no other test builds on."""
    name = f"containerpub-test/base:{uuid4().hex}"
    (tmp_path / "unlike").write_text(name)
    (tmp_path / "Dockerfile").write_text(f"FROM {BASE_IMAGE}\nCOPY unlike /unlike\n")
    subprocess.run(["docker", "build", "--quiet", "--tag", name, str(tmp_path)], check=True, capture_output=True)
    yield name
    subprocess.run(["docker", "rmi", "--force", name], check=False, capture_output=True)


@pytest.mark.docker
async def test_a_base_image_that_is_gone_or_was_renamed_comes_out_of_the_store(
    engine_config: EngineConfig, own_base: str
) -> None:
    config = replace(engine_config, base_images={"python": own_base})
    async with machine("docker", config, new_layers()) as here:
        assert isinstance(here.engine, DockerEngine)
        built = await here.build(FILES)
        image = await here.engine._parts.runtimes.of(load_recipe("python"), built.layers.foundation)
        for name in (image.id, own_base):
            subprocess.run(["docker", "rmi", "--force", name], check=True, capture_output=True)
        assert not await here.engine.has(here.spec(built.layers))
        # The name means another image now.
        subprocess.run(["docker", "tag", BASE_IMAGE, own_base], check=True)
        assert await here.run(built.layers, "ü") == b'"xn--tda"'
        again = await here.engine._parts.runtimes.of(load_recipe("python"), built.layers.foundation)
        assert again.id == image.id
        # Both go once nothing is started from them any more, the base after what stands on it.
        tight = replace(config, image_disk_bytes=1, image_in_use_s=-1.0)
        async with machine("docker", tight, new_layers()) as later:
            assert await later.engine.collect_garbage(_nothing_stands) >= 2
            assert isinstance(later.engine, DockerEngine)
            images = Images(later.engine._client(), tight)
            assert [await images.find(one) for one in (image.id, built.layers.base)] == [None, None]


@pytest.mark.docker
async def test_a_version_of_an_earlier_release_runs_on_that_releases_runtime(engine_config: EngineConfig) -> None:
    layers = new_layers()
    async with machine("docker", engine_config, layers) as here:
        built = await here.build(
            {"main.py": "import os\ndef handler(e, c): return os.path.exists('/containerpub/old')\n"}
        )
        # Its runtime layer as an earlier release made it: this release's, and one file more.
        writer = LayerWriter()
        for folder in ("function", "dependencies"):
            writer.folder(folder)
        for file in load_recipe("python").files:
            writer.add(file.path, io.BytesIO(file.content), len(file.content))
        writer.add("containerpub/old", io.BytesIO(b""), 0)
        with (layer := writer.finish()).file:
            earlier = await layers.keep(LayerKind.RUNTIME, layer)
        changed = tuple(earlier if one.kind is LayerKind.RUNTIME else one for one in built.layers.layers)
        assert await here.run(built.layers, None) == b"false"
        assert await here.run(replace(built.layers, layers=changed), None) == b"true"


async def _nothing_stands(versions: frozenset[UUID]) -> Mapping[UUID, str | None]:
    return {}
