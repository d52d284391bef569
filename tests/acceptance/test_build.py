"""A version becomes startable, or is rejected with a sentence; foreign build code hurts nobody."""

from __future__ import annotations

import asyncio
import io
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from aiodocker import Docker

from shared.layers import LayerKind, VersionLayers
from tests.acceptance.engines import Bench, new_layers, remove_images, store_in
from worker.build.build_log import BuildLog
from worker.build.builds import Builds
from worker.build.code_cache import CodeCache
from worker.build.layer import LayerWriter, UnsafeEntry, installed_layer
from worker.build.plan import BuildPlan, BuildRejected, BuiltVersion
from worker.build.recipe import load_recipe
from worker.build.requirements import Requirements
from worker.config import EngineConfig
from worker.engine.docker import DockerEngine
from worker.engine.docker.client import EngineClient
from worker.engine.docker.hardening import container_config, mounts, seccomp_profile
from worker.engine.docker.image import Images
from worker.engine.docker.install import Installer
from worker.engine.process import ProcessEngine
from worker.errors import EngineUnavailable

HANDLER = b"def handler(event, context):\n    return 1\n"
MEBIBYTE = 1024 * 1024
EXAMPLES = Path(__file__).parents[2] / "examples"


def artifact(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / f"{uuid4().hex}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return path


class Plans:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(
        self,
        files: dict[str, bytes],
        *,
        handler: str = "main:handler",
        timeout_s: float = 100,
        memory_mb: int = 512,
        max_unpacked_bytes: int = 250 * MEBIBYTE,
        max_log_bytes: int = 256 * 1024,
    ) -> BuildPlan:
        return BuildPlan(
            version_id=uuid4(),
            function_id=uuid4(),
            user_id=uuid4(),
            runtime="python",
            handler=handler,
            artifact=artifact(self._folder, files),
            artifact_sha256="",
            timeout_s=timeout_s,
            memory_mb=memory_mb,
            max_unpacked_bytes=max_unpacked_bytes,
            max_log_bytes=max_log_bytes,
        )


@pytest.fixture
def plan(tmp_path: Path) -> Plans:
    return Plans(tmp_path)


@pytest.fixture
def config(tmp_path: Path) -> EngineConfig:
    return EngineConfig(
        installation=f"test-{uuid4().hex[:12]}",
        worker_id="builder",
        socket_dir=Path(f"/tmp/cp-{uuid4().hex[:8]}"),
        data_dir=tmp_path / "data",
    )


@pytest.fixture
async def docker(config: EngineConfig) -> AsyncIterator[Docker]:
    async with Docker() as client:
        yield client
        left = await client.containers.list(
            all=True, filters={"label": [f"containerpub.installation={config.installation}"]}
        )
        await remove_images(client, [f"containerpub.installation={config.installation}"])
    assert left == []
    assert [entry for entry in config.socket_dir.rglob("*") if entry.name.startswith("b")] == []
    for folder in sorted(config.socket_dir.rglob("*"), reverse=True):
        folder.rmdir()
    if config.socket_dir.exists():
        config.socket_dir.rmdir()


def engine_client(docker: Docker) -> EngineClient:
    return EngineClient(docker, 60.0)


@pytest.fixture
async def builder(docker: Docker, config: EngineConfig) -> AsyncIterator[DockerEngine]:
    async with opened(config) as made:
        yield made


@asynccontextmanager
async def opened(config: EngineConfig) -> AsyncIterator[DockerEngine]:
    made = DockerEngine(config, new_layers())
    await made.open()
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
async def process(config: EngineConfig) -> AsyncIterator[ProcessEngine]:
    made = ProcessEngine(config, new_layers())
    await made.open()
    yield made
    await made.close()


async def run_version(docker: Docker, engine: DockerEngine, built: BuiltVersion, code: str) -> str:
    """What ``code`` prints in a container as hardened as a sandbox, with all that the version consists of."""
    recipe = load_recipe("python")
    image = await engine._parts.runtimes.of(recipe, built.layers.foundation)
    spec = Bench(engine=engine, config=engine._config, layers=built.layers).spec("")
    name = uuid4().hex[:16]
    folders = await engine._with_code(name, recipe, spec)
    try:
        return await run(docker, image.id, code, mounts(folders))
    finally:
        await asyncio.to_thread(shutil.rmtree, engine._code_folders.home(name))


async def run(docker: Docker, image: str, code: str, folders: Mapping[str, str] | None = None) -> str:
    """What ``code`` prints in a container as hardened as a sandbox, from ``image``."""
    settings = container_config(
        image=image,
        uid=65_534,
        argv=["python3", "-c", code],
        working_dir="/function",
        env={"PYTHONPATH": "/dependencies:/function:/containerpub/sdk"},
        labels={},
        binds=[],
        memory_mb=256,
        tmp_mb=64,
        cpus=1.0,
        seccomp=await asyncio.to_thread(seccomp_profile),
        oci_runtime=None,
        folders=folders,
    )
    container = await docker.containers.create(settings | {"AttachStdout": True, "AttachStderr": True})
    try:
        stream = container.attach(stdout=True, stderr=True)
        try:
            await stream.__aenter__()
            await container.start()
            output = b""
            while (message := await stream.read_out()) is not None:
                output += message.data
        finally:
            await stream.close()
        await container.wait()
        return output.decode()
    finally:
        await container.delete(force=True, v=True)


def ignore(_: str) -> None:
    pass


@pytest.mark.docker
async def test_a_function_without_dependencies_becomes_layers(
    docker: Docker, builder: DockerEngine, plan: Plans
) -> None:
    files = {"main.py": HANDLER, "data/words.txt": "wörter".encode(), "pkg/__init__.py": b"X = 2\n"}
    built = await builder.build(plan(files), ignore)
    kinds = [layer.kind for layer in built.layers.layers]
    assert kinds == [LayerKind.BASE, LayerKind.RUNTIME, LayerKind.CODE]
    assert built.analysis["handler"] == "main:handler"
    assert built.analysis["files"] == 2
    output = await run_version(
        docker,
        builder,
        built,
        "import main, pkg, os, stat, containerpub\n"
        "print(main.handler({}, None), pkg.X, open('/function/data/words.txt').read())\n"
        "for path in ('/function', '/function/main.py', '/dependencies', '/containerpub/serve.py'):\n"
        "    found = os.stat(path); print(found.st_uid, found.st_gid, oct(stat.S_IMODE(found.st_mode)))\n",
    )
    assert output.splitlines() == ["1 2 wörter", "0 0 0o755", "0 0 0o644", "0 0 0o755", "0 0 0o644"]


@pytest.mark.docker
async def test_the_same_plan_gives_the_same_layers_on_another_machine(
    builder: DockerEngine, config: EngineConfig, plan: Plans, tmp_path: Path
) -> None:
    """Which shares nothing with the first: neither its disk nor its store."""
    once = plan({"main.py": HANDLER, "requirements.txt": b"idna==3.10\n"})
    first = await builder.build(once, ignore)
    elsewhere = replace(config, data_dir=tmp_path / "elsewhere", worker_id="elsewhere")
    other = DockerEngine(elsewhere, new_layers(await asyncio.to_thread(store_in, tmp_path / "store")))
    await other.open()
    try:
        assert await other.build(once, ignore) == first
    finally:
        await other.close()


@pytest.mark.docker
async def test_an_engine_that_wants_every_layer_gets_the_image_by_its_builder(
    docker: Docker, config: EngineConfig, plan: Plans
) -> None:
    images = Images(engine_client(docker), config)
    base = await images.base(load_recipe("python").base_image)
    writer = LayerWriter()
    writer.add("function/main.py", io.BytesIO(HANDLER), len(HANDLER))
    labels = {"containerpub.installation": config.installation}
    layer = writer.finish()
    with layer.file:
        made = await images._build(base, layer, "containerpub/function", uuid4().hex, {"Labels": labels})
    assert made.diff_ids[:-1] == base.diff_ids
    configured = {"Labels": labels, "Cmd": ["python3", "<<main"]}
    again = await images._build(made, None, "containerpub/function", uuid4().hex, configured)
    assert (again.diff_ids, again.command) == (made.diff_ids, ("python3", "<<main"))
    assert await run(docker, made.id, "import main; print(main.handler({}, None))") == "1\n"


@pytest.mark.docker
async def test_compiled_dependencies_work_in_a_hardened_container_and_are_installed_once(
    docker: Docker, builder: DockerEngine, plan: Plans
) -> None:
    # no other run has asked for exactly this
    requirements = (EXAMPLES / "numbers" / "requirements.txt").read_bytes() + f"--no-binary {uuid4().hex}\n".encode()
    main = (EXAMPLES / "numbers" / "main.py").read_bytes()
    log: list[str] = []
    # two at a time share one installation
    first, second = await asyncio.gather(
        builder.build(plan({"main.py": main, "requirements.txt": requirements}), log.append),
        builder.build(
            plan({"main.py": main + b"# changed\n", "requirements.txt": b"# x\n" + requirements}), log.append
        ),
    )
    assert log.count("installing dependencies") == 1
    assert sum(line.startswith("dependencies are unchanged: layer ") for line in log) == 1
    assert first.layers.of(LayerKind.DEPENDENCIES) == second.layers.of(LayerKind.DEPENDENCIES)
    assert first.layers.of(LayerKind.CODE) != second.layers.of(LayerKind.CODE)
    output = await run_version(
        docker, builder, first, "import main; print(main.handler({'body': None}, None)['solution'])"
    )
    assert output == "[2.0, 3.0]\n"
    compiled = await run_version(docker, builder, first, "import numpy, os; print(os.path.exists(numpy.__cached__))")
    assert compiled == "True\n"

    log.clear()
    third = await builder.build(plan({"main.py": HANDLER, "requirements.txt": requirements}), log.append)
    (line,) = log
    assert line.startswith("dependencies are unchanged: layer ")
    assert third.layers.of(LayerKind.DEPENDENCIES) == first.layers.of(LayerKind.DEPENDENCIES)


REJECTED_SOURCES = [
    ({"main.py": b"def handler(:\n"}, "main:handler", "main.py:1: "),
    ({"main.py": b"import pkg.broken\n", "pkg/broken.py": b"x = 1\n\nreturn 2\n"}, "main:handler", "pkg/broken.py:3: "),
    ({"main.py": b"x = 1\n"}, "main:handler", "main.py:1: there is no 'handler'"),
    ({"other.py": HANDLER}, "main:handler", "main.py:1: there is no such file"),
    ({"other.py": HANDLER}, "other.handler",
     "other.py:1: the handler 'other.handler' is written 'other:handler' here"),
    ({"main.py": b"x = '\x00'\n"}, "main:handler", "main.py:1: "),
    ({"main.py": b"# -*- coding: no-such -*-\n"}, "main:handler", "main.py:1: "),
    ({"main.py": b"x = " + b"(" * 100_000}, "main:handler", "main.py:1: "),
    ({"main.py": b"x = " + b"-" * 3_000_000 + b"1"}, "main:handler", ""),
    ({"main.py": b"x = " + b"a." * 1_000_000 + b"a"}, "main:handler", ""),
    ({"main.py": b"from containerpub import function\n@function\ndef a(e, c): 0\n@function\ndef b(e, c): 0\n"},
     "", "main.py:1: more than one @function"),
    ({}, "", "main.py:1: there is no such file"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "handler", "message"), REJECTED_SOURCES)
async def test_source_that_cannot_run_is_rejected_with_its_place(
    process: ProcessEngine, plan: Plans, files: dict[str, bytes], handler: str, message: str
) -> None:
    with pytest.raises(BuildRejected) as caught:
        await process.build(plan(files, handler=handler), ignore)
    assert caught.value.reason == "analysis_rejected"
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(
    ("files", "handler", "found"),
    [
        ({"main.py": HANDLER}, "", "main:handler"),
        ({"app.py": HANDLER}, "", "app:handler"),
        ({"main.py": b"import containerpub\n@containerpub.function\nasync def go(e, c): 0\n"}, "", "main:go"),
        ({"pkg/mod.py": b"class A:\n    def run(self, e, c): 0\na = A()\n"}, "pkg.mod:a.run", "pkg.mod:a.run"),
        ({"pkg/__init__.py": b"from .x import handler\n", "pkg/x.py": HANDLER}, "pkg:handler", "pkg:handler"),
        ({"main.py": b"from x import *\n", "x.py": HANDLER}, "main:handler", "main:handler"),
        (
            {"main.py": b"try:\n    import x\nexcept ImportError:\n    handler = print\n"},
            "main:handler",
            "main:handler",
        ),
    ],
)
async def test_handlers_are_found_without_running_anything(
    process: ProcessEngine, plan: Plans, files: dict[str, bytes], handler: str, found: str
) -> None:
    built = await process.build(plan(files, handler=handler), ignore)
    assert built.analysis["handler"] == found


async def test_files_and_the_index_that_requirements_name_are_followed(process: ProcessEngine, plan: Plans) -> None:
    asked = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
    index = await asyncio.to_thread(subprocess.check_output, [sys.executable, "-c", asked], text=True)
    files = {
        "main.py": b"import idna\n" + HANDLER,
        "requirements.txt": f"--index-url={index.strip()}/\n-r requirements/prod.txt\n".encode(),
        "requirements/prod.txt": b"-c ../limits.txt\nidna\n",
        "limits.txt": b"idna==3.6\n",
    }
    log: list[str] = []
    built = await process.build(plan(files), log.append)
    assert "Successfully installed idna-3.6" in log
    assert built.layers.of(LayerKind.DEPENDENCIES) is not None


async def test_b11_another_index_is_refused_before_anything_is_fetched(process: ProcessEngine, plan: Plans) -> None:
    log: list[str] = []
    files = {"main.py": HANDLER, "requirements.txt": b"idna\n--extra-index-url https://evil.example/simple\n"}
    with pytest.raises(
        BuildRejected, match=r"requirements\.txt:2: https://evil\.example/simple is not the index in use"
    ):
        await process.build(plan(files), log.append)
    assert not any("idna" in line for line in log)


async def test_packages_of_a_pyproject_are_installed_and_warnings_stand_in_the_log(
    process: ProcessEngine, plan: Plans
) -> None:
    project = b'[project]\nname = "mine"\ndependencies = ["idna==3.7"]\n'
    files = {"main.py": HANDLER, "pyproject.toml": project, "uv.lock": b"", "old.py": b"print 1\n"}
    log: list[str] = []
    built = await process.build(plan(files), log.append)
    assert "Successfully installed idna-3.7" in log
    warnings = built.analysis["warnings"]
    assert isinstance(warnings, list)
    assert [line for line in log if line.startswith("warning: ")] == [f"warning: {one}" for one in warnings]
    assert [one.split(" ")[0] for one in warnings] == ["old.py:1:", "the", "uv.lock"]


@pytest.mark.docker
async def test_b11_a_forbidden_requirement_is_build_failed(builder: DockerEngine, plan: Plans) -> None:
    files = {"main.py": HANDLER, "requirements.txt": b"numpy\n--index-url https://evil.example/simple\n"}
    with pytest.raises(BuildRejected, match=r"requirements\.txt:2: ") as caught:
        await builder.build(plan(files), ignore)
    assert caught.value.reason == "build_failed"


@pytest.mark.docker
async def test_a_package_that_does_not_exist_is_build_failed_with_the_reason(
    builder: DockerEngine, plan: Plans
) -> None:
    files = {"main.py": HANDLER, "requirements.txt": b"containerpub-no-such-package-9f3a==99.99\n"}
    with pytest.raises(BuildRejected, match="containerpub-no-such-package") as caught:
        await builder.build(plan(files), ignore)
    assert caught.value.reason == "build_failed"


@pytest.mark.docker
async def test_with_no_index_host_allowed_nothing_is_reached(docker: Docker, config: EngineConfig, plan: Plans) -> None:
    closed = replace(config, index_hosts=())
    log: list[str] = []
    async with opened(closed) as engine:
        with pytest.raises(BuildRejected):
            await engine.build(plan({"main.py": HANDLER, "requirements.txt": b"idna==3.10\n"}), log.append)
    assert any("is not a host of the package index" in line for line in log)


@pytest.mark.docker
async def test_b4_a_build_over_its_time_is_killed_and_leaves_no_container(
    builder: DockerEngine, docker: Docker, config: EngineConfig, plan: Plans
) -> None:
    with pytest.raises(BuildRejected, match="took longer than 1 s"):
        await builder.build(plan({"main.py": HANDLER, "requirements.txt": b"numpy==2.2.5\n"}, timeout_s=1), ignore)
    assert not await docker.containers.list(
        all=True, filters={"label": [f"containerpub.installation={config.installation}"]}
    )


@pytest.mark.docker
async def test_an_absent_base_image_is_the_platforms_fault_and_says_what_to_do(
    docker: Docker, config: EngineConfig, plan: Plans
) -> None:
    absent = replace(config, base_images={"python": "localhost:1/no/such:image"})
    async with opened(absent) as engine:
        with pytest.raises(EngineUnavailable, match="make images"):
            await engine.build(plan({"main.py": HANDLER}), ignore)


async def test_a_version_over_the_bound_is_build_failed(
    process: ProcessEngine, config: EngineConfig, plan: Plans
) -> None:
    process._builder._config = replace(config, max_image_bytes=MEBIBYTE)
    with pytest.raises(BuildRejected, match="The version takes 2 MB, and 1 are allowed") as caught:
        await process.build(plan({"main.py": HANDLER, "large": bytes(2 * MEBIBYTE)}), ignore)
    assert caught.value.reason == "build_failed"


def sdist(setup: str) -> str:
    """An install script that makes a source package with ``setup`` as its setup.py, and then installs that.

    The policy lets no local package through, so the hostile one is put where the installation's pip finds it.
    """
    return (
        "import io, os, sys, tarfile\n"
        "def put(archive, name, text):\n"
        "    entry = tarfile.TarInfo(name); entry.size = len(text); archive.addfile(entry, io.BytesIO(text))\n"
        "with tarfile.open('/tmp/evil-1.0.tar.gz', 'w:gz') as archive:\n"
        f"    put(archive, 'evil-1.0/setup.py', {setup.encode()!r})\n"
        "    put(archive, 'evil-1.0/PKG-INFO', b'Metadata-Version: 1.0\\nName: evil\\nVersion: 1.0\\n')\n"
        "with open('/tmp/requirements.txt', 'w') as wanted:\n"
        "    wanted.write('--no-build-isolation /tmp/evil-1.0.tar.gz')\n"
        "sys.argv[1] = '/tmp/requirements.txt'\n"
    )


class Hostile:
    """Runs a hostile setup.py the way an installation would."""

    def __init__(self, docker: Docker, config: EngineConfig) -> None:
        self.log: list[str] = []
        self._docker, self._config = docker, config

    async def install(self, setup: str, plan: BuildPlan) -> None:
        recipe = load_recipe("python")
        assert recipe.install is not None
        head, future, rest = recipe.install.source.partition("from __future__ import annotations\n")
        prepared = sdist(setup).replace("--no-build-isolation ", "")
        script = head + future + prepared + rest.replace('"--no-input"', '"--no-input", "--no-build-isolation"')
        base = await Images(engine_client(self._docker), self._config).base(recipe.base_image)

        async def install() -> BuiltVersion:
            layer = await Installer(engine_client(self._docker), self._config).install(
                plan,
                replace(recipe, install=replace(recipe.install, source=script)),
                base,
                Requirements(lines=("unused",)),
                BuildLog(self.log.append, plan.max_log_bytes),
            )
            layer.file.close()
            return BuiltVersion(layers=VersionLayers(base="", layers=()))

        await Builds().run(plan, install())


@pytest.fixture
def hostile(docker: Docker, config: EngineConfig) -> Hostile:
    return Hostile(docker, replace(config, index_hosts=()))


@pytest.mark.docker
async def test_b10_a_setup_script_reaches_no_listener_of_the_host(hostile: Hostile, plan: Plans) -> None:
    hits = 0

    def reached(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal hits
        hits += 1
        writer.close()

    server = await asyncio.start_server(reached, "0.0.0.0", 0)
    port = server.sockets[0].getsockname()[1]
    setup = (
        "import socket\n"
        f"for host in ('127.0.0.1', '172.17.0.1', '169.254.169.254', '1.1.1.1'):\n"
        f"    try:\n        socket.create_connection((host, {port}), 2)\n        print('REACHED', host)\n"
        "    except OSError as error:\n        print('closed', host, error)\n"
        "for host in ('127.0.0.1', '172.17.0.1', 'localhost'):\n"
        "    proxy = socket.socket(socket.AF_UNIX)\n"
        "    proxy.connect('/run/containerpub/s')\n"
        f"    proxy.sendall(('CONNECT %s:{port} HTTP/1.1\\r\\n\\r\\n' % host).encode())\n"
        "    print('ANSWER', proxy.recv(100)[:12])\n"
        "raise SystemExit('the end')\n"
    )
    with pytest.raises(BuildRejected) as caught:
        await hostile.install(setup, plan({}))
    server.close()
    assert caught.value.reason == "build_failed"
    text = "\n".join(hostile.log)
    assert text.count("closed") == 4
    assert text.count("ANSWER b'HTTP/1.1 403'") == 3
    assert "REACHED" not in text
    assert hits == 0


@pytest.mark.docker
async def test_b1_a_fork_bomb_in_a_setup_script_is_build_failed_and_bounded(hostile: Hostile, plan: Plans) -> None:
    setup = (
        "import os, time\n"
        "children = []\n"
        "try:\n"
        "    for _ in range(5000):\n"
        "        child = os.fork()\n"
        "        if child == 0:\n            time.sleep(600); os._exit(0)\n"
        "        children.append(child)\n"
        "except OSError as error:\n    print('stopped', error)\n"
        "print('COUNT', len(children))\n"
        # they hold the pipe that pip reads from; who lets them live waits for the deadline instead
        "for child in children[:-KEPT or None]:\n    os.kill(child, 9)\n"
        "raise SystemExit(1)\n"
    )
    before = len(psutil.pids())
    with pytest.raises(BuildRejected, match="exit code 1") as caught:
        await hostile.install(setup.replace("KEPT", "0"), plan({}, timeout_s=60))
    assert caught.value.reason == "build_failed"
    counts = [int(line.split()[-1]) for line in hostile.log if line.strip().startswith("COUNT")]
    assert counts
    assert 0 < counts[0] < 256
    with pytest.raises(BuildRejected, match="took longer than 5 s") as caught:
        await hostile.install(setup.replace("KEPT", "100"), plan({}, timeout_s=5))
    assert caught.value.reason == "build_failed"
    assert len(psutil.pids()) < before + 60


@pytest.mark.docker
async def test_b2_a_memory_bomb_in_a_setup_script_is_build_failed(hostile: Hostile, plan: Plans) -> None:
    setup = "held = []\nwhile True:\n    held.append(bytearray(b'x') * 8_000_000)\n"
    with pytest.raises(BuildRejected, match="memory") as caught:
        await hostile.install(setup, plan({}, memory_mb=128, timeout_s=60))
    assert caught.value.reason == "build_failed"


@pytest.mark.docker
async def test_b3_a_setup_script_cannot_fill_a_disk(hostile: Hostile, plan: Plans) -> None:
    setup = (
        "import os\n"
        "for folder in ('/', '/usr', '/var/tmp', '/run/containerpub', '/dev/shm', '/tmp', '/dependencies'):\n"
        "    size = 0\n"
        "    try:\n"
        "        with open(folder + '/filler', 'wb') as file:\n"
        "            while True:\n                size += file.write(b'x' * 65536)\n                file.flush()\n"
        "    except OSError as error:\n        print('FILLED', folder, size, error.errno)\n"
        "    if size:\n        os.unlink(folder + '/filler')\n"
        "raise SystemExit(1)\n"
    )
    with pytest.raises(BuildRejected):
        await hostile.install(setup, plan({}, max_unpacked_bytes=20 * MEBIBYTE))
    filled = {words[1]: int(words[2]) for line in hostile.log if (words := line.split())[:1] == ["FILLED"]}
    assert filled.keys() == {"/", "/usr", "/var/tmp", "/run/containerpub", "/dev/shm", "/tmp", "/dependencies"}
    assert sum(filled.values()) < 150 * MEBIBYTE
    assert filled["/"] == filled["/usr"] == filled["/var/tmp"] == filled["/run/containerpub"] == 0


@pytest.mark.docker
async def test_b13_a_build_log_is_capped_and_cleaned(hostile: Hostile, plan: Plans) -> None:
    setup = (
        "import sys\n"
        "print('\\x1b[31mred\\x1b[0m \\x1b]0;title\\x07 \\x00 end')\n"
        "for _ in range(20_000):\n    print('x' * 500)\n"
        "raise SystemExit(1)\n"
    )
    with pytest.raises(BuildRejected):
        await hostile.install(setup, plan({}, max_log_bytes=10_000))
    assert sum(len(line) + 1 for line in hostile.log) < 10_100
    assert hostile.log[-1] == "[log truncated]"
    assert all(line.isprintable() for line in hostile.log)


@pytest.mark.docker
async def test_a_cancelled_build_ends_at_once_and_leaves_nothing(
    hostile: Hostile, plan: Plans, docker: Docker, config: EngineConfig
) -> None:
    setup = "import sys, time\nprint('ASLEEP', flush=True)\ntime.sleep(600)\n"
    asleep = asyncio.Event()

    class Log(list[str]):
        def append(self, line: str) -> None:
            super().append(line)
            if "Preparing" in line or "Processing" in line or "ASLEEP" in line:
                asleep.set()

    hostile.log = Log()
    task = asyncio.create_task(hostile.install(setup, plan({})))
    await asleep.wait()
    started = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - started < 10
    # the fixture asserts that no container and no folder is left


def ustar(*entries: tuple[str, bytes, bytes]) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, kind, content in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.size, entry.linkname = kind, len(content), "/etc/passwd"
            archive.addfile(entry, io.BytesIO(content))
    out.seek(0)
    return out


FILE, FOLDER = tarfile.REGTYPE, tarfile.DIRTYPE


@pytest.mark.parametrize(
    "stream",
    [
        ustar(("../x", FILE, b"")),
        ustar(("a/../../x", FILE, b"")),
        ustar(("/etc/x", FILE, b"")),
        ustar(("a//b", FILE, b"")),
        ustar(("./a", FILE, b"")),
        ustar(("a\nb", FILE, b"")),
        ustar(("a\x1bb", FILE, b"")),
        ustar(("a\\b", FILE, b"")),
        ustar(("a", FILE, b""), ("a", FILE, b"")),
        ustar(("a", FILE, b""), ("a/b", FILE, b"")),
        ustar(("a/b", FILE, b""), ("a", FILE, b"")),
        ustar(("a", tarfile.CHRTYPE, b"")),
        ustar(("a", tarfile.FIFOTYPE, b"")),
        ustar(("a", b"x", b"10 path=b\n")),
        ustar(("a", b"L", b"long\0")),
        ustar(("a", b"S", b"")),
        ustar(("a", FILE, b"x" * 2000)),
        io.BytesIO(b""),
        io.BytesIO(b"x" * 512),
        io.BytesIO(ustar(("a", FILE, b"x" * 900)).getvalue()[:1000]),
        io.BytesIO(ustar(("a", FILE, b"x")).getvalue().replace(b"00000000001\0", b"-0000000001\0", 1)),
    ],
)
def test_a_hostile_stream_of_installed_files_is_refused(stream: io.BytesIO) -> None:
    stream.seek(0)
    with pytest.raises(UnsafeEntry):
        installed_layer(stream, "dependencies", 1000, ignore)


def test_links_among_installed_files_are_left_out_and_said_so() -> None:
    notes: list[str] = []
    stream = ustar(("a", tarfile.SYMTYPE, b""), ("b", tarfile.LNKTYPE, b""), ("c/d", FILE, b"x"))
    layer = installed_layer(stream, "dependencies", 1000, notes.append)
    with layer.file, tarfile.open(fileobj=layer.file) as archive:
        assert archive.getnames() == ["dependencies", "dependencies/c", "dependencies/c/d"]
        assert {(entry.uid, entry.gid, entry.mode) for entry in archive if entry.isreg()} == {(0, 0, 0o644)}
    assert len(notes) == 2


async def test_the_process_engine_installs_equal_dependencies_once(
    process: ProcessEngine, config: EngineConfig, plan: Plans
) -> None:
    log: list[str] = []
    once = plan({"main.py": HANDLER, "requirements.txt": b"idna==3.10\n"})
    first = await process.build(once, log.append)
    assert await process.build(once, log.append) == first
    other = await process.build(plan({"main.py": HANDLER, "requirements.txt": b"idna == 3.10"}), log.append)
    assert log.count("installing dependencies") == 1
    assert other.layers.of(LayerKind.DEPENDENCIES) == first.layers.of(LayerKind.DEPENDENCIES)
    code = config.data_dir / "code"
    assert next(code.glob("*/*/tree/main.py")).read_bytes() == HANDLER
    assert list(code.glob("*/*/tree/idna/__init__.py"))
    await process._code.close()  # spares are made meanwhile
    assert list(code.glob("*/.making-*")) == []


async def test_what_a_killed_worker_left_half_made_is_swept(process: ProcessEngine, config: EngineConfig) -> None:
    gone = CodeCache(config.data_dir.absolute() / "code", "gone", 1)
    await asyncio.to_thread(gone.open)
    left = [await asyncio.to_thread(cache.scratch) for cache in (gone, process._cache)]
    assert await process.sweep(frozenset({"gone"})) == 0
    assert await process.sweep(frozenset()) == 1
    assert [path.exists() for path in left] == [False, True]
    left[1].rmdir()


async def test_the_process_engine_kills_an_installation_over_its_time(process: ProcessEngine, plan: Plans) -> None:
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(BuildRejected, match="took longer"):
        await process.build(plan({"main.py": HANDLER, "requirements.txt": b"numpy==2.2.6\n"}, timeout_s=0.5), ignore)
    assert set(psutil.Process().children(recursive=True)) <= before
