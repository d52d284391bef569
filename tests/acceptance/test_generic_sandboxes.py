"""Generic sandboxes: sandboxes that are started before it is known whose they will be."""

from __future__ import annotations

import asyncio
import errno
import io
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import cast

import orjson
import psutil
import pytest
from engines import (
    Bench,
    bench,
    call,
    docker_bench,
    docker_bench_of,
    engine_config,
    new_layers,
    on_foundation,
    short_dir,
)

from shared.layers import LayerKind, LayerRef, VersionLayers
from worker.build.layer import LayerWriter
from worker.build.recipe import load_recipe
from worker.config import EngineConfig
from worker.engine.docker import DockerEngine
from worker.errors import EngineUnavailable, LayerUnavailable
from worker.sandbox.contract import generic_spec

pytestmark = pytest.mark.every_way
__all__ = ["bench", "docker_bench", "engine_config", "short_dir"]


@pytest.mark.podman
async def test_a_generic_becomes_a_function_of_any_version_of_its_runtime_and_size(bench: Bench) -> None:
    generics = [await bench.start_generic() for _ in range(2)]
    assert all(generic.usable for generic in generics)
    await bench.engine.prepare(bench.spec("echo"))
    one, other = [
        await generic.specialize(bench.spec(name)) for generic, name in zip(generics, ("echo", "count"), strict=True)
    ]
    assert (await one.call(call("a"))).result == b'"a"'
    assert (await other.call(call())).result == b"1"
    assert not any(generic.usable for generic in generics)


async def test_a_generic_of_another_size_runtime_base_or_network_is_refused_and_stays(bench: Bench) -> None:
    generic = await bench.start_generic()
    other_base = replace(bench.layers, base="another")
    others: list[dict[str, object]] = [{"memory_mb": 64}, {"cpus": 0.5}, {"runtime": "node"}, {"network": "egress"}]
    for changed in (*others, {"layers": other_base}):
        with pytest.raises(ValueError):
            await generic.specialize(bench.spec("echo", **changed))
    assert generic.usable
    await generic.destroy()
    await generic.destroy()
    assert not generic.usable
    assert _folders(bench) == []


async def test_a_generic_that_died_is_not_usable_and_not_specialized(bench: Bench) -> None:
    generic = await bench.start_generic()
    await bench.engine.prepare(bench.spec("echo"))
    if isinstance(bench.engine, DockerEngine):
        await bench.engine._client().docker.containers.container(f"containerpub-{generic.id}").kill()
    else:
        (file,) = bench.config.socket_dir.glob(f"*/{generic.id}/pid")
        for process in psutil.Process(int(file.read_text().split()[0])).children(recursive=True)[:1]:
            process.kill()
    async with asyncio.timeout(5):
        while generic.usable:
            await asyncio.sleep(0.01)
    with pytest.raises(EngineUnavailable):
        await generic.specialize(bench.spec("echo"))
    assert _folders(bench) == []


async def test_a_runtime_without_generics_says_so(bench: Bench) -> None:
    assert await bench.engine.start_generic(generic_spec(bench.spec("echo", runtime="dart"))) is None
    assert not await bench.engine.prepare(bench.spec("echo", runtime="dart"))


async def test_a_version_that_is_nowhere_cannot_be_prepared(bench: Bench) -> None:
    absent = LayerRef(kind=LayerKind.CODE, digest="0" * 64, size_bytes=1)
    with pytest.raises(LayerUnavailable):
        await bench.engine.prepare(bench.spec("echo", layers=VersionLayers(base=bench.layers.base, layers=(absent,))))


@pytest.mark.parametrize(
    ("name", "value"), [("PYTHONHASHSEED", "7"), ("TZ", "Asia/Tokyo"), ("PYTHONPATH", "/function/more"), ("LANG", "C")]
)
async def test_variables_that_count_at_the_start_of_a_program_count(bench: Bench, name: str, value: str) -> None:
    spec = bench.spec("describe_start", env=((name, value),))
    plain = await (await bench.engine.start(spec)).call(call(name))
    special = await (await bench.specialized(spec)).call(call(name))
    assert special.reason is None, special
    assert special.result == plain.result
    assert special.logs == plain.logs


async def test_the_environment_is_that_of_a_plain_start(bench: Bench) -> None:
    spec = bench.spec("environment", env=(("GREETING", "hello"), ("PYTHONUNBUFFERED", "1")))
    found = []
    for sandbox in (await bench.engine.start(spec), await bench.specialized(spec)):
        outcome = await sandbox.call(call())
        assert outcome.result is not None
        env = orjson.loads(outcome.result)
        # A host's name is of no fixed shape, but both have one or none.
        env = {key: "" if key == "HOSTNAME" else value.replace(sandbox.id, "ID") for key, value in env.items()}
        found.append(env)
    assert found[0] == found[1]


async def test_garbage_is_collected_as_usual_or_as_the_function_says(bench: Bench) -> None:
    for bench.generic in (False, True):
        assert (await bench.run("collector:usual")).result == b"[700,10,10]"
        assert (await bench.run("collector:own", env=(("THRESHOLD", "4000"),))).result == b"[4000,10,10]"


async def test_a_cancelled_specialization_leaves_nothing(bench: Bench) -> None:
    await bench.engine.prepare(bench.spec("echo"))
    for delay_s in (0.0, 0.005):
        generic = await bench.start_generic()
        becoming = asyncio.ensure_future(generic.specialize(bench.spec("sleep")))
        await asyncio.sleep(delay_s)
        becoming.cancel()
        (became,) = await asyncio.gather(becoming, return_exceptions=True)
        if not isinstance(became, BaseException):
            await became.destroy()
        assert not generic.usable
        assert _folders(bench) == []


@pytest.mark.podman
@pytest.mark.docker
async def test_code_is_read_only_and_belongs_to_somebody_else(docker_bench: Bench) -> None:
    docker_bench.generic = True
    for folder in ("/function", "/dependencies"):
        assert (await docker_bench.run("write_file", [f"{folder}/new", 1])).result == str(errno.EROFS).encode()
    assert (await docker_bench.run("write_file", ["/function/main.py", 1])).result == str(errno.EROFS).encode()
    outcome = await docker_bench.run("describe_files", "/function")
    assert outcome.result is not None
    files = orjson.loads(outcome.result)
    assert files["main.py"] == [0o100644, False]
    assert len(files) > 5
    assert (await docker_bench.run("list_folder", "/dependencies")).result == b"[]"


@pytest.mark.podman
@pytest.mark.docker
async def test_an_unprepared_version_is_the_engines_fault_once(docker_bench: Bench) -> None:
    spec = docker_bench.spec("echo")
    generic = await docker_bench.start_generic()
    with pytest.raises(EngineUnavailable, match="not on this machine yet"):
        await generic.specialize(spec)
    assert _folders(docker_bench) == []
    assert await docker_bench.engine.prepare(spec)
    sandbox = await (await docker_bench.start_generic()).specialize(spec)
    assert (await sandbox.call(call(1))).result == b"1"


@pytest.mark.docker
async def test_dependencies_are_there_shared_by_one_user_and_by_nobody_else(docker_bench: Bench) -> None:
    versions = [await _with_dependency(docker_bench, number) for number in range(2)]
    mallory = uuid.uuid4()
    inodes = []
    for number, user in ((0, docker_bench.user_id), (1, docker_bench.user_id), (0, mallory)):
        spec = docker_bench.spec("main:use", layers=versions[number], user_id=user)
        sandbox = await docker_bench.specialized(spec)
        outcome = await sandbox.call(call())
        assert outcome.reason is None, outcome
        assert outcome.result == b'["from a package",%d]' % number
        (file,) = docker_bench.config.data_dir.glob(f"sandboxes/*/{sandbox.id}/dependencies/package/__init__.py")
        inodes.append(file.stat().st_ino)
    assert inodes[0] == inodes[1] != inodes[2]


@pytest.mark.docker
async def test_without_the_same_data_folder_on_the_engines_side_starts_say_so(
    engine_config: EngineConfig, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A path that leads each process to a place of its own.
    monkeypatch.chdir(short_dir)
    elsewhere = Path("/proc/self/cwd/elsewhere")
    async for one in docker_bench_of(replace(engine_config, data_dir=elsewhere)):
        with pytest.raises(EngineUnavailable, match="the same DATA_DIR"):
            await one.engine.start(one.spec("echo"))
        with pytest.raises(EngineUnavailable, match="the same DATA_DIR"):
            await one.start_generic()
        listed = (
            await cast(DockerEngine, one.engine)
            ._client()
            .docker.containers.list(
                all=1, filters=orjson.dumps({"label": [f"containerpub.worker={engine_config.worker_id}"]}).decode()
            )
        )
        assert listed == []
        assert _folders(one) == []


@pytest.mark.docker
async def test_f21_a_sweep_takes_the_generics_of_dead_workers(docker_bench: Bench) -> None:
    dead = DockerEngine(replace(docker_bench.config, worker_id=f"dead-{uuid.uuid4()}"), new_layers())
    await dead.open()
    generic = await dead.start_generic(generic_spec(docker_bench.spec("echo")))
    assert generic is not None
    own = await docker_bench.start_generic()
    try:
        assert len(_folders(docker_bench)) == 4
        assert await docker_bench.engine.sweep(frozenset()) >= 3  # a container, and two folders
        async with asyncio.timeout(5):
            while generic.usable:
                await asyncio.sleep(0.01)
        assert own.usable
        assert {folder.name for folder in _folders(docker_bench)} == {own.id}
    finally:
        await dead.close()


@pytest.mark.docker
async def test_a_first_call_through_a_generic_is_far_faster_than_through_a_start(docker_bench: Bench) -> None:
    spec = docker_bench.spec("echo")
    assert await docker_bench.engine.prepare(spec)
    plain, special = [], []
    for _ in range(5):
        generic = await docker_bench.start_generic()
        started = time.perf_counter()
        sandbox = await generic.specialize(spec)
        assert (await sandbox.call(call(1))).result == b"1"
        special.append(time.perf_counter() - started)
        started = time.perf_counter()
        other = await docker_bench.engine.start(spec)
        assert (await other.call(call(1))).result == b"1"
        plain.append(time.perf_counter() - started)
        await asyncio.gather(sandbox.destroy(), other.destroy())
    assert sorted(special)[2] < sorted(plain)[2] / 2


async def _with_dependency(bench: Bench, number: int) -> VersionLayers:
    """A version with a package, and code that differs by ``number``."""
    layers = bench.engine._code._layers
    package = LayerWriter()
    source = b"said = 'from a package'\n"
    package.add("dependencies/package/__init__.py", io.BytesIO(source), len(source))
    package.add("dependencies/" + "/".join(["a" * 90] * 4) + "/long.txt", io.BytesIO(b"x"), 1)
    code = LayerWriter()
    text = f"import package\ndef use(event, context):\n    return [package.said, {number}]\n".encode()
    code.add("function/main.py", io.BytesIO(text), len(text))
    own = []
    for kind, layer in ((LayerKind.DEPENDENCIES, package.finish()), (LayerKind.CODE, code.finish())):
        with layer.file:
            own.append(await layers.keep(kind, layer))
    return await on_foundation(bench.engine, layers, load_recipe("python"), *own)


def _folders(bench: Bench) -> list[Path]:
    """Folders of sandboxes and generic sandboxes."""
    sandboxes = [folder for folder in bench.config.socket_dir.glob("*/*") if folder.is_dir()]
    return [*sandboxes, *bench.config.data_dir.glob("sandboxes/*/*")]
