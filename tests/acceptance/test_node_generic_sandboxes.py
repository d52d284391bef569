"""Generic sandboxes of the node runtime, beyond what ``test_node`` tries with every function from both."""

from __future__ import annotations

import asyncio
import errno
import time
import uuid
from collections.abc import AsyncIterator

import pytest
from engines import Bench, call, engine_config, new_layers, short_dir
from nodes import MEBIBYTE, Builder, Node, builder, node_layers, result

from shared.layers import VersionLayers
from worker.config import EngineConfig
from worker.engine.docker import DockerEngine
from worker.sandbox.attached import AttachedSandbox

__all__ = ["builder", "engine_config", "node_layers", "short_dir"]

pytestmark = pytest.mark.docker

USES_SDK = b"import { FunctionError } from 'containerpub';\nexport const handler = () => typeof FunctionError;\n"


@pytest.fixture
async def generics(node_layers: VersionLayers, engine_config: EngineConfig) -> AsyncIterator[Node]:
    engine = DockerEngine(engine_config, new_layers())
    await engine.open()
    try:
        yield Node(engine=engine, config=engine_config, layers=node_layers, generic=True)
    finally:
        await engine.close()


async def _both(bench: Bench, handler: str, **changes: object) -> tuple[AttachedSandbox, AttachedSandbox]:
    """A sandbox that was started plainly, and one that was a generic sandbox."""
    spec = bench.spec(handler, **changes)
    return await bench.engine.start(spec), await bench.specialized(spec)  # type: ignore[return-value]


async def test_the_environment_is_that_of_a_plain_start(generics: Node) -> None:
    changes = {"env": (("GREETING", "hello"), ("NODE_ENV", "production"), ("TZ", "Asia/Tokyo")), "memory_mb": 160}
    found = []
    for sandbox in await _both(generics, "start:describe", **changes):
        told = result(await sandbox.call(call()))
        assert isinstance(told, dict)
        assert told["env"].pop("HOSTNAME")
        found.append(told)
    assert found[0] == found[1]
    assert found[0]["hour"] == 9
    assert found[0]["env"]["FUNCTION_MAX_MEMORY_MB"] == "160"


@pytest.mark.parametrize("name", ["NODE_OPTIONS", "NODE_EXTRA_CA_CERTS", "LD_PRELOAD", "UV_THREADPOOL_SIZE", "LANG"])
async def test_who_sets_what_only_a_start_reads_gets_a_start(generics: Node, name: str) -> None:
    assert not await generics.engine.prepare(generics.spec("echo", env=((name, "x"),)))
    assert await generics.engine.prepare(generics.spec("echo", env=((f"MY_{name}", "x"), ("LANG", "C.UTF-8"))))


async def test_code_and_packages_are_read_only_and_belong_to_somebody_else(generics: Node) -> None:
    sandbox = await generics.start("writeFile")
    for path in ("/function/new", "/function/main.mjs", "/node_modules/new", "/node_modules/containerpub/index.js"):
        assert result(await sandbox.call(call(path))) == errno.errorcode[errno.EROFS], path
    listed = result(await (await generics.start("start:files")).call(call()))
    assert isinstance(listed, dict)
    assert listed["/function/main.mjs"] == [0o100644, False]
    assert listed["/node_modules/containerpub/package.json"] == [0o100644, False]
    folders = {name.split("/")[2] for name in listed if name.startswith("/node_modules/")}
    assert folders == {"containerpub"}


async def test_a_generic_has_met_no_code(generics: Node) -> None:
    generic = await generics.start_generic(runtime="node", cpus=0.5)
    for name in ("function", "node_modules"):
        (folder,) = generics.config.data_dir.glob(f"sandboxes/*/{generic.id}/{name}")
        assert list(folder.iterdir()) == []


async def test_users_share_no_files(builder: Builder) -> None:
    layers = (await builder.build({"main.mjs": USES_SDK}, handler="main:handler")).layers
    inodes = []
    for user in (builder.bench.user_id, builder.bench.user_id, uuid.uuid4()):
        sandbox = await builder.bench.specialized(builder.bench.spec("main:handler", layers=layers, user_id=user))
        assert result(await sandbox.call(call())) == "function"
        home = next(builder.bench.config.data_dir.glob(f"sandboxes/*/{sandbox.id}"))
        files = (home / "function/main.mjs", home / "node_modules/containerpub/index.js")
        inodes.append([file.stat().st_ino for file in files])
    assert inodes[0] == inodes[1]
    assert not set(inodes[0]) & set(inodes[2])


async def test_what_a_generic_has_loaded_leaves_the_function_its_memory(generics: Node) -> None:
    peaks = []
    for sandbox in await _both(generics, "echo"):
        outcome = await sandbox.call(call())
        assert outcome.peak_memory_bytes is not None
        peaks.append(outcome.peak_memory_bytes)
    assert peaks[1] - peaks[0] < 4 * MEBIBYTE
    assert peaks[1] < 64 * MEBIBYTE


async def test_a_first_call_through_a_generic_is_far_faster_than_through_a_start(generics: Node) -> None:
    spec = generics.spec("echo")
    assert await generics.engine.prepare(spec)
    plain, special = [], []
    for _ in range(5):
        generic = await generics.start_generic(runtime="node", cpus=0.5)
        started = time.perf_counter()
        sandbox = await generic.specialize(spec)
        assert (await sandbox.call(call(1))).result == b"1"
        special.append(time.perf_counter() - started)
        started = time.perf_counter()
        other = await generics.engine.start(spec)
        assert (await other.call(call(1))).result == b"1"
        plain.append(time.perf_counter() - started)
        await asyncio.gather(sandbox.destroy(), other.destroy())
    assert sorted(special)[2] < sorted(plain)[2] / 2
