"""Engines with a version of the node runtime, whose code is ``tests/acceptance/node_functions``."""

from __future__ import annotations

import asyncio
import io
import shutil
import tarfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import mkdtemp

import orjson
import pytest
from engines import Bench, new_layers

from shared.layers import VersionLayers
from worker.build.plan import BuildPlan, BuiltVersion
from worker.config import EngineConfig
from worker.engine.docker import DockerEngine
from worker.sandbox.contract import CallOutcome, SandboxSpec

FUNCTIONS = Path(__file__).with_name("node_functions")
MEBIBYTE = 1024 * 1024


class Node(Bench):
    """An engine with a version of the node runtime, at the platform's default size."""

    def spec(self, handler: str, **changes: object) -> SandboxSpec:
        return super().spec(handler, **({"runtime": "node", "cpus": 0.5} | changes))


class Builder:
    """Builds versions, and remembers what is to be cleared away."""

    def __init__(self, engine: DockerEngine, config: EngineConfig, folder: Path) -> None:
        self.log: list[str] = []
        self.bench = Node(engine=engine, config=config, layers=VersionLayers(base="", layers=()))
        self._engine, self._folder = engine, folder

    async def build(self, files: dict[str, bytes], handler: str = "main:echo") -> BuiltVersion:
        return await self._engine.build(plan_of(archive(self._folder, files), handler), self.log.append)


@pytest.fixture(scope="module")
def node_layers() -> Iterator[VersionLayers]:
    """A version that is built once, as every version is."""
    folder = Path(mkdtemp(prefix="cp"))
    config = EngineConfig(
        installation=f"test-{uuid.uuid4()}",
        worker_id=f"worker-{uuid.uuid4()}",
        socket_dir=folder / "s",
        data_dir=folder / "d",
    )
    files = {str(path.relative_to(FUNCTIONS)): path.read_bytes() for path in FUNCTIONS.rglob("*") if path.is_file()}

    async def build() -> VersionLayers:
        engine = DockerEngine(config, new_layers())
        await engine.open()
        try:
            return (await engine.build(plan_of(archive(folder, files)), print)).layers
        finally:
            await engine.close()

    yield asyncio.run(build())
    shutil.rmtree(folder)


@pytest.fixture(params=["start", "generic"])
async def node(
    request: pytest.FixtureRequest, engine_config: EngineConfig, node_layers: VersionLayers
) -> AsyncIterator[Node]:
    """Each sandbox started for its function, or made from a generic sandbox."""
    engine = DockerEngine(engine_config, new_layers())
    await engine.open()
    try:
        yield Node(engine=engine, config=engine_config, layers=node_layers, generic=request.param == "generic")
    finally:
        await engine.close()


@pytest.fixture
async def builder(engine_config: EngineConfig, tmp_path: Path) -> AsyncIterator[Builder]:
    engine = DockerEngine(engine_config, new_layers())
    await engine.open()
    builder = Builder(engine, engine_config, tmp_path)
    try:
        yield builder
    finally:
        await asyncio.gather(*(sandbox.destroy() for sandbox in builder.bench.started))
        await engine.close()


@pytest.fixture(params=[pytest.param("docker", marks=pytest.mark.docker)])
async def node_engine(engine_config: EngineConfig) -> AsyncIterator[DockerEngine]:
    """Containers alone: the engine process would need a Node.js of this machine."""
    engine = DockerEngine(engine_config, new_layers())
    await engine.open()
    try:
        await asyncio.to_thread(engine_config.data_dir.mkdir, parents=True, exist_ok=True)
        yield engine
    finally:
        await engine.close()


def result(outcome: CallOutcome) -> object:
    assert outcome.result is not None, outcome
    return orjson.loads(outcome.result)


def plan_of(artifact: Path, handler: str = "main:echo") -> BuildPlan:
    return BuildPlan(
        version_id=uuid.uuid4(),
        function_id=uuid.uuid4(),
        user_id=uuid.uuid4(),
        runtime="node",
        handler=handler,
        artifact=artifact,
        artifact_sha256="",
        timeout_s=100,
        memory_mb=512,
        max_unpacked_bytes=100 * MEBIBYTE,
        max_log_bytes=256 * 1024,
    )


def archive(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / f"{uuid.uuid4().hex}.tar.gz"
    with tarfile.open(path, "w:gz") as out:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            out.addfile(entry, io.BytesIO(content))
    return path
