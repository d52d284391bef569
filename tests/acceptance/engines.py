"""Engines for tests: really running ones, with a version whose code is ``tests/acceptance/functions``."""

from __future__ import annotations

import asyncio
import atexit
import io
import os
import shutil
import tarfile
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, ClassVar

import orjson
import pytest
from aiodocker import Docker, DockerError

from shared.artifacts import LocalStore
from shared.artifacts.store import file_sha256
from shared.layers import LayerKind, LayerRef, VersionLayers
from worker.build.layer import LayerWriter, artifact_layer, in_thread, runtime_layer
from worker.build.layer_store import LayerStore
from worker.build.recipe import Recipe, known_runtimes, load_recipe
from worker.config import EngineConfig
from worker.engine.docker import DockerEngine
from worker.engine.process import ProcessEngine
from worker.engine.process.namespaces import NONE, Namespaces
from worker.engine.process.program import base_identity
from worker.sandbox.attached import AttachedSandbox
from worker.sandbox.contract import Call, CallOutcome, GenericSpec, SandboxSpec, generic_spec
from worker.sandbox.generic import AttachedGeneric
from worker.sandbox.log import LogEntry
from worker.sandbox.tail import Progress, Tail

FUNCTIONS = Path(__file__).with_name("functions")
BASE_IMAGE = "python:3.11-slim"
# Not a file of its own: nothing that checks this repository could read it.
BROKEN_SYNTAX = "def handler(event, context):\n    return (\n"


# Read once, before any test has an event loop: tests ask for recipes where the platform asks in a thread.
for _runtime in known_runtimes():
    load_recipe(_runtime)


@dataclass(kw_only=True)
class Bench:
    """An open engine, and short ways to use it."""

    engine: DockerEngine | ProcessEngine
    config: EngineConfig
    layers: VersionLayers
    generic: bool = False  # sandboxes are made from generic sandboxes
    user_id: uuid.UUID = field(default_factory=uuid.uuid4)
    started: list[AttachedSandbox] = field(default_factory=list)

    @property
    def on_podman(self) -> bool:
        return isinstance(self.engine, DockerEngine) and self.engine.on_podman

    def spec(self, handler: str, **changes: Any) -> SandboxSpec:
        spec = SandboxSpec(
            version_id=uuid.uuid4(),
            function_id=uuid.uuid4(),
            user_id=self.user_id,
            function_name="tested",
            version=3,
            runtime="python",
            handler=handler if not handler or ":" in handler else f"main:{handler}",
            layers=self.layers,
            memory_mb=128,
            tmp_mb=32,
            cpus=1.0,
            timeout_ms=5000,
        )
        return replace(spec, **changes)

    async def start(self, handler: str, **changes: Any) -> AttachedSandbox:
        spec = self.spec(handler, **changes)
        sandbox = await (self.specialized(spec) if self.generic else self.engine.start(spec))
        self.started.append(sandbox)
        return sandbox

    async def start_generic(self, **changes: Any) -> AttachedGeneric:
        size = GenericSpec(runtime="python", foundation=self.layers.foundation, memory_mb=128, tmp_mb=32, cpus=1.0)
        generic = await self.engine.start_generic(replace(size, **changes))
        assert generic is not None
        return generic

    async def specialized(self, spec: SandboxSpec) -> AttachedSandbox:
        assert await self.engine.prepare(spec)
        generic = await self.engine.start_generic(generic_spec(spec))
        assert generic is not None
        return await generic.specialize(spec)

    async def run(self, handler: str, body: Any = None, **changes: Any) -> CallOutcome:
        """One call in a sandbox of its own."""
        names = {"timeout_ms", "max_result_bytes", "max_log_bytes", "query"}
        for_call = {name: changes[name] for name in names if name in changes}
        for_spec = {name: value for name, value in changes.items() if name not in names - {"timeout_ms"}}
        sandbox = await self.start(handler, **for_spec)
        return await sandbox.call(call(body, **for_call))


def call(
    body: Any = None,
    *,
    timeout_ms: int = 5000,
    max_result_bytes: int = 6 * 1024**2,
    max_log_bytes: int = 256 * 1024,
    attempt: int = 1,
    query: dict[str, str] | None = None,
    tail: Tail | None = None,
) -> Call:
    event = {"body": body, "query": query or {}, "headers": {}, "method": "POST", "path": "/"}
    return Call(
        job_id=uuid.uuid4(),
        attempt=attempt,
        event=orjson.dumps(event),
        timeout_ms=timeout_ms,
        max_result_bytes=max_result_bytes,
        max_log_bytes=max_log_bytes,
        tail=tail,
    )


class Subscriber:
    """Looks on one call from its beginning, and reads what is new whenever told that something is."""

    def __init__(self) -> None:
        self.heard = asyncio.Event()
        self.entries: list[LogEntry] = []
        self.progress: list[Progress] = []
        self.tail = Tail(self._changed)
        self.tail.subscribe()

    def _changed(self, tail: Tail) -> None:
        self.entries += tail.news()
        if tail.progress is not None and tail.progress not in self.progress[-1:]:
            self.progress.append(tail.progress)
        if self.entries:
            self.heard.set()


def text(outcome: CallOutcome, stream: str) -> str:
    return "".join(entry.message for entry in outcome.logs if entry.stream == stream)


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A folder with a short path: pytest's own are too long for Unix sockets."""
    folder = Path(mkdtemp(prefix="cp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def engine_config(short_dir: Path) -> EngineConfig:
    return EngineConfig(
        installation=f"test-{uuid.uuid4()}",
        worker_id=f"worker-{uuid.uuid4()}",
        socket_dir=short_dir / "s",
        data_dir=short_dir / "d",
    )


@pytest.fixture
async def bench(request: pytest.FixtureRequest, engine_config: EngineConfig) -> AsyncIterator[Bench]:
    """Each engine in turn, also with sandboxes that were generic sandboxes before."""
    engine, _, way = request.param.partition("-")
    if engine != "process":
        async for one in docker_bench_of(on_engine(request, engine, engine_config)):
            one.generic = way == "generic"
            yield one
    else:
        # Alone: as on a kernel that grants no namespaces.
        async for one in process_bench_of(engine_config, NONE if way == "alone" else None):
            one.generic = way == "generic"
            yield one


@pytest.fixture
async def docker_bench(request: pytest.FixtureRequest, engine_config: EngineConfig) -> AsyncIterator[Bench]:
    async for one in docker_bench_of(on_engine(request, getattr(request, "param", "docker"), engine_config)):
        yield one


def on_engine(request: pytest.FixtureRequest, engine: str, config: EngineConfig) -> EngineConfig:
    """``config`` for Docker, or for the Podman of this run."""
    return replace(config, docker_host=request.getfixturevalue("podman_host")) if engine == "podman" else config


class MemoryLedger:
    """What all workers of a test know of layers. What a base image was saved as holds for all tests."""

    _bases: ClassVar[dict[str, LayerRef]] = {}

    def __init__(self) -> None:
        self._resolved: dict[str, LayerRef] = {}

    async def claim(self, layer: LayerRef) -> None:
        """Nothing is collected here."""

    async def resolved(self, key: str) -> LayerRef | None:
        return self._of(key).get(key)

    async def resolve(self, key: str, layer: LayerRef, *, lost: LayerRef | None = None) -> LayerRef:
        if lost is not None and self._of(key).get(key) == lost:
            del self._of(key)[key]
        return self._of(key).setdefault(key, layer)

    def _of(self, key: str) -> dict[str, LayerRef]:
        return self._bases if key.startswith("base ") else self._resolved


@cache
def common_store() -> LocalStore:
    """A store for all tests of this process, so that base images are saved once."""
    folder = Path(mkdtemp(prefix="cp-store-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return store_in(folder)


def store_in(folder: Path) -> LocalStore:
    store = LocalStore(folder)
    # By a thread, as the store does it: a test may be running on an event loop.
    making = threading.Thread(target=store._prepare, args=(threading.Event(),))
    making.start()
    making.join()
    return store


def new_layers(store: LocalStore | None = None) -> LayerStore:
    return LayerStore(store or common_store(), MemoryLedger())


async def keep_code(engine: DockerEngine | ProcessEngine, layers: LayerStore, folder: Path) -> VersionLayers:
    """A version with the test functions, put together as builds do it, but without the checks that some of the
    functions would not pass."""
    recipe = await asyncio.to_thread(load_recipe, "python")
    artifact = folder / "functions.tar.gz"
    artifact.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(artifact, mode="w:gz") as archive:
        for path in sorted(FUNCTIONS.iterdir()):
            if path.is_file():
                _add(archive, path.name, path.read_bytes())
        _add(archive, "broken_syntax.py", BROKEN_SYNTAX)
    with (await in_thread(artifact_layer, artifact, "function")).file as file:
        digest = await asyncio.to_thread(file_sha256, file)
        code = await layers.keep_file(LayerKind.CODE, file, digest, file.tell())
    return await on_foundation(engine, layers, recipe, code)


async def code_of(bench: Bench, files: dict[str, str]) -> VersionLayers:
    """A version of these files."""
    writer = LayerWriter()
    for name, content in files.items():
        data = content.encode()
        writer.add(f"function/{name}", io.BytesIO(data), len(data))
    with (layer := writer.finish()).file:
        code = await bench.engine._code._layers.keep(LayerKind.CODE, layer)
    return await on_foundation(bench.engine, bench.engine._code._layers, load_recipe("python"), code)


async def on_foundation(
    engine: DockerEngine | ProcessEngine, layers: LayerStore, recipe: Recipe, *own: LayerRef
) -> VersionLayers:
    layer = await in_thread(runtime_layer, recipe)
    runtime = await layers.keep(LayerKind.RUNTIME, layer)
    layer.file.close()
    if isinstance(engine, ProcessEngine):
        return VersionLayers(base=await asyncio.to_thread(base_identity, recipe), layers=(runtime, *own))
    foundation = await engine._parts.runtimes.current(recipe)
    return VersionLayers(base=foundation.base.id, layers=(runtime, *own))


async def process_bench_of(config: EngineConfig, namespaces: Namespaces | None = None) -> AsyncIterator[Bench]:
    layers = new_layers()
    engine = ProcessEngine(config, layers, namespaces)
    await engine.open()
    try:
        yield Bench(engine=engine, config=config, layers=await keep_code(engine, layers, config.data_dir))
    finally:
        await engine.close()


def engine_socket() -> Path:
    """Where this machine's container engine listens."""
    return Path(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://"))


async def docker_bench_of(config: EngineConfig) -> AsyncIterator[Bench]:
    layers = new_layers()
    engine = DockerEngine(config, layers)
    await engine.open()
    try:
        yield Bench(engine=engine, config=config, layers=await keep_code(engine, layers, config.data_dir))
    finally:
        await engine.close()


def _add(archive: tarfile.TarFile, name: str, content: str | bytes) -> None:
    data = content.encode() if isinstance(content, str) else content
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    entry.mode = 0o644
    archive.addfile(entry, io.BytesIO(data))


async def remove_images(docker: Docker, labels: list[str]) -> None:
    """Remove the images that have these labels; no engine lets go of one that another stands on."""
    while images := await docker.images.list(filters={"label": labels}):
        refused = []
        for image in images:
            try:
                await docker.images.delete(image["Id"], force=True)
            except DockerError as error:
                refused.append(error)
        if len(refused) == len(images):
            raise refused[0]
