"""Tenants' Dockerfiles: built by the engine's builder under caps, run as every other function, nothing left over."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import tarfile
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest
from aiodocker import Docker
from engines import BASE_IMAGE, call, engine_config, new_layers, short_dir, text

from tests.acceptance.engines import remove_images
from tests.client import Client
from tests.deployment import Platform
from worker.build.plan import BuildPlan, BuildRejected, BuiltVersion
from worker.config import DockerfileConfig, EngineConfig
from worker.engine.docker import DockerEngine
from worker.engine.docker.build import VersionBuilder
from worker.engine.docker.build_cap import BuildCaps, Machine
from worker.engine.docker.client import EngineClient
from worker.engine.docker.engine_build import LABEL_BUILD
from worker.engine.docker.hardening import LABEL_INSTALLATION, LABEL_SANDBOX, LABEL_WORKER
from worker.engine.docker.runtime_images import RuntimeImages
from worker.engine.process import ProcessEngine
from worker.errors import EngineUnavailable
from worker.sandbox.contract import CallOutcome, SandboxSpec

pytestmark = pytest.mark.docker

__all__ = ["engine_config", "short_dir"]

HEAD = f"FROM {BASE_IMAGE}\n"
MEBIBYTE = 1024 * 1024
# The result is what the expression of the event's body says, seen from inside the sandbox.
ECHO = """
import json, os, pathlib, sys
with open("/request.json") as file:
    expression = json.load(file)["body"]
with open("/result.json", "w") as file:
    json.dump({"body": eval(expression)}, file)
"""
ECHO_FILES = {"Dockerfile": HEAD + 'COPY main.py /app/\nCMD ["python3", "/app/main.py"]\n', "main.py": ECHO}
CGROUPS = Path("/sys/fs/cgroup")
TEMPLATE = Path(__file__).parents[2] / "runtimes" / "dockerfile" / "template"


def python(code: str) -> str:
    """A RUN of ``code``."""
    return f"RUN {json.dumps(['python3', '-c', code])}\n"


@dataclass(kw_only=True)
class Bench:
    """An engine that builds Dockerfiles."""

    engine: DockerEngine
    config: EngineConfig
    docker: Docker
    log: list[str] = field(default_factory=list)

    def plan(self, files: dict[str, str], **changes: Any) -> BuildPlan:
        artifact = self.config.data_dir / f"{uuid4().hex}.tar.gz"
        with tarfile.open(artifact, "w:gz") as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content.encode()), 0o644
                archive.addfile(entry, io.BytesIO(content.encode()))
        plan = BuildPlan(
            version_id=uuid4(),
            function_id=uuid4(),
            user_id=uuid4(),
            runtime="dockerfile",
            handler="",
            artifact=artifact,
            artifact_sha256="",
            timeout_s=60,
            memory_mb=256,
            max_unpacked_bytes=100 * MEBIBYTE,
            max_log_bytes=256 * 1024,
        )
        return replace(plan, **changes)

    async def build(self, files: dict[str, str] | str, **changes: Any) -> BuiltVersion:
        given = files if isinstance(files, dict) else {"Dockerfile": HEAD + files + "CMD x\n"}
        return await self.engine.build(self.plan(given, **changes), self.log.append)

    async def failure(self, files: dict[str, str] | str, **changes: Any) -> str:
        """Why a build failed."""
        with pytest.raises(BuildRejected) as caught:
            await self.build(files, **changes)
        assert caught.value.reason == "build_failed"
        return caught.value.message

    async def ask(self, built: BuiltVersion, expression: str, **changes: Any) -> Any:
        outcome = await self.run(built, expression, **changes)
        assert outcome.reason is None, outcome
        assert outcome.result is not None
        return orjson.loads(outcome.result)

    async def run(self, built: BuiltVersion, body: Any, **changes: Any) -> CallOutcome:
        sandbox = await self.engine.start(self.spec(built, **changes))
        try:
            return await sandbox.call(call(body))
        finally:
            await sandbox.destroy()

    def spec(self, built: BuiltVersion, **changes: Any) -> SandboxSpec:
        spec = SandboxSpec(
            version_id=uuid4(),
            function_id=uuid4(),
            user_id=uuid4(),
            function_name="tested",
            version=1,
            runtime="dockerfile",
            handler="",
            layers=built.layers,
            memory_mb=128,
            tmp_mb=32,
            cpus=1.0,
            timeout_ms=10_000,
        )
        return replace(spec, **changes)

    def reconfigured(self, **changes: Any) -> Bench:
        """The same engine's builder with other settings."""
        config = replace(self.config, **changes)
        engine = DockerEngine(config, new_layers())
        engine._opened = replace(self.engine._parts, builder=new_builder(self.docker, engine))
        return replace(self, engine=engine, config=config, log=[])

    async def base(self, *lines: str, name: str | None = "containerpub-test/base") -> str:
        """An image of the operator's, upon the usual one: its name, or its id."""
        recipe = io.BytesIO()
        with tarfile.open(fileobj=recipe, mode="w") as archive:
            content = "\n".join([f"FROM {BASE_IMAGE}", *lines]).encode()
            entry = tarfile.TarInfo("Dockerfile")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        recipe.seek(0)
        tag = None if name is None else f"{name}:{uuid4().hex[:12]}"
        labels = {LABEL_INSTALLATION: self.config.installation}
        said = await self.docker.images.build(fileobj=recipe, encoding="identity", tag=tag, labels=labels, rm=True)
        return tag or next(str(one["aux"]["ID"]) for one in said if "aux" in one)

    async def containers(self) -> list[dict[str, Any]]:
        filters = orjson.dumps({"label": [f"{LABEL_INSTALLATION}={self.config.installation}"]}).decode()
        found = await self.docker.containers.list(all=1, filters=filters)
        return [container._container for container in found]

    async def left(self) -> list[str]:
        """What builds have left: containers, images without a name, cgroups."""
        labels = [f"{LABEL_INSTALLATION}={self.config.installation}"]
        images = await self.docker.images.list(all=True, filters={"label": labels})
        left = [image["Id"] for image in images if LABEL_BUILD in image["Labels"]]
        left += [container["Id"] for container in await self.containers()]
        return left + [str(path) for path in self.cgroups()]

    def cgroups(self, file: str = "") -> list[Path]:
        """Those of our builds, in every hierarchy."""
        ours = f"containerpub-build/{self.caps._prefix_of()}*{file}"
        return [path for pattern in (ours, f"*/{ours}") for path in CGROUPS.glob(pattern)]

    @property
    def caps(self) -> BuildCaps:
        return BuildCaps(EngineClient(self.docker, 60.0), self.config)


def new_builder(docker: Docker, engine: DockerEngine) -> VersionBuilder:
    client = EngineClient(docker, 60.0)
    runtimes = RuntimeImages(client, engine._config, engine._layers, engine._cache)
    return VersionBuilder(client, engine._config, engine._layers, engine._cache, engine._code, runtimes)


@pytest.fixture
async def bench(engine_config: EngineConfig) -> AsyncIterator[Bench]:
    config = replace(engine_config, dockerfile=DockerfileConfig())
    config.data_dir.mkdir(parents=True, exist_ok=True)
    engine = DockerEngine(config, new_layers())
    await engine.open()
    async with Docker() as docker:
        bench = Bench(engine=engine, config=config, docker=docker)
        try:
            yield bench
            assert await bench.left() == []
        finally:
            await engine.close()
            labels = [f"{LABEL_INSTALLATION}={config.installation}"]
            await remove_images(docker, labels)


async def test_a_dockerfile_becomes_a_function_that_runs_as_nobody(bench: Bench) -> None:
    built = await bench.build(
        {
            "Dockerfile": f"FROM {BASE_IMAGE} AS build\n"
            "ARG WHO=Ada\n"
            "WORKDIR '/the work'\n"
            "COPY . ./\n"
            'RUN echo "hello $WHO" > greeting && chmod 4755 greeting && id -u\n'
            f"FROM {BASE_IMAGE}\n"
            "ENV GREETING=/app/greeting PATH=/app/bin:$PATH 'ODD=a \"b\" $c \\d'\n"
            "WORKDIR app\n"
            'COPY --from=build ["/the work/greeting", "/the work/main.py", "/the work/a b.txt", "./"]\n'
            'CMD ["python3", "main.py"]\n',
            "main.py": ECHO,
            "a b.txt": "spaces",
            ".dockerignore": "*\n",
        }
    )
    assert built.layers.base.startswith("sha256:")
    assert built.analysis == {"command": ["python3", "main.py"], "base_images": [BASE_IMAGE]}
    assert "0" in bench.log, "the build's own RUN is root"
    command = ["/bin/sh", "-c", 'echo "hello $WHO" > greeting && chmod 4755 greeting && id -u']
    assert f"Dockerfile:5: RUN {json.dumps(command)}" in bench.log
    seen = await bench.ask(
        built,
        "{'greeting': open(os.environ['GREETING']).read(), 'folder': os.getcwd(), 'files': sorted(os.listdir()),"
        " 'ids': os.getresuid() + os.getresgid(), 'env': dict(os.environ),"
        " 'status': dict(line.split(':\\t') for line in open('/proc/self/status').read().splitlines()),"
        " 'interfaces': os.listdir('/sys/class/net')}",
        env=(("GIVEN", "by the platform"), ("GREETING", "/app/greeting")),
    )
    assert seen["greeting"] == "hello Ada\n"
    assert (seen["folder"], seen["files"]) == ("/app", ["a b.txt", "greeting", "main.py"])
    assert seen["ids"] == seen["ids"][:1] * 6
    assert seen["ids"][0] in bench.config.sandbox_users
    assert seen["interfaces"] == ["lo"]
    assert (seen["status"]["CapBnd"], seen["status"]["NoNewPrivs"], seen["status"]["Seccomp"]) == ("0" * 16, "1", "2")
    assert seen["env"]["PATH"].startswith("/app/bin:/usr/local/bin")
    assert seen["env"]["ODD"] == 'a "b" $c \\d'
    assert (seen["env"]["GIVEN"], seen["env"]["CONTAINERPUB_RESTRICTED"]) == ("by the platform", "true")
    assert "WHO" not in seen["env"]
    outcome = await bench.run(built, "open('/app/x', 'w')")
    assert outcome.reason == "crashed", outcome
    assert "Read-only file system" in text(outcome, "stderr")


async def test_the_handler_stands_for_the_files_cmd(bench: Bench) -> None:
    files = {
        "Dockerfile": HEAD
        + 'COPY . /app/\nENTRYPOINT ["python3", "-c", "import sys; exec(open(sys.argv[1]).read())"]\n',
        "main.py": ECHO,
    }
    built = await bench.build(files, handler="'/app/main.py' 'a b'")
    assert await bench.ask(built, "sys.argv") == ["-c", "/app/main.py", "a b"]


async def test_a_version_is_built_once_a_machine(bench: Bench) -> None:
    plan = bench.plan(ECHO_FILES)
    first = await bench.engine.build(plan, bench.log.append)
    bench.log.clear()
    assert await bench.engine.build(plan, bench.log.append) == first
    assert bench.log == []


FORKS = """
import os, time
children = []
try:
    for _ in range(5000):
        child = os.fork()
        if child == 0:
            time.sleep(600)
            os._exit(0)
        children.append(child)
except OSError as error:
    print("stopped", error, flush=True)
print("COUNT", len(children), flush=True)
raise SystemExit(1)
"""


async def test_b1_a_fork_bomb_in_a_run_is_build_failed_and_bounded(bench: Bench) -> None:
    assert "exit code 1: COUNT" in await bench.failure(python(FORKS))
    counts = [int(line.split()[-1]) for line in bench.log if line.startswith("COUNT")]
    assert 100 < counts[0] < 256
    # and those that a shell leaves to themselves, for as long as the build may take; it forks nothing more after them
    building = asyncio.create_task(bench.failure("RUN f() { f | f & }; sleep 600 & f & wait\n", timeout_s=4))
    most = 0
    while not building.done():
        for path in bench.cgroups("/pids.current"):
            with suppress(OSError):
                most = max(most, int(path.read_text()))
        await asyncio.sleep(0.02)
    assert "took longer than 4 s" in building.result()
    assert 100 < most <= 256


async def test_b2_a_memory_bomb_in_a_run_is_build_failed(bench: Bench) -> None:
    code = "held = []\nfor _ in range(60):\n    held.append(bytearray(b'x') * 8_000_000)\n"
    assert "more than 64 MB of memory" in await bench.failure(python(code), memory_mb=64)


@pytest.mark.parametrize("way", ["one file", "many files", "layer by layer"])
async def test_b3_a_run_cannot_fill_a_disk(bench: Bench, way: str) -> None:
    free = shutil.disk_usage("/var/lib/docker").free
    started = time.monotonic()
    if way == "one file":
        code = "with open('/big', 'wb') as file:\n    while True:\n        file.write(bytes(8 << 20))\n"
        message = await bench.failure(python(code))
        assert "exit code" in message
        assert "File too large" in message
    elif way == "many files":
        code = "n = 0\nwhile True:\n    n += 1\n    open(f'/var/tmp/{n}', 'wb').write(bytes(4 << 20))\n"
        assert "writes more than 100 MB" in await bench.failure(python(code))
    else:
        code = "open('/var/tmp/NAME', 'wb').write(bytes(40 << 20))"
        runs = "".join(python(code.replace("NAME", str(number))) for number in range(5))
        assert "writes more than 100 MB" in await bench.failure(runs)
    assert time.monotonic() - started < 30
    assert shutil.disk_usage("/var/lib/docker").free > free - 20 * 1024 * MEBIBYTE


async def test_b3_files_without_a_name_are_noticed_by_what_is_free(bench: Bench) -> None:
    """No look at a container's files sees them, so what is left of the disk has to tell."""
    margin = 1024 * MEBIBYTE
    code = (
        "held = []\nwhile True:\n    file = open('/var/tmp/x', 'wb')\n    held.append(file)\n"
        "    import os; os.unlink('/var/tmp/x')\n    file.write(bytes(8 << 20))\n    file.flush()\n"
    )
    free = (await asyncio.to_thread(shutil.disk_usage, "/var/lib/docker")).free
    near = bench.reconfigured(dockerfile=DockerfileConfig(min_free_bytes=free - margin))
    assert "disk is nearly full" in await near.failure(python(code))
    full = bench.reconfigured(dockerfile=DockerfileConfig(min_free_bytes=free * 2))
    with pytest.raises(EngineUnavailable, match="disk is nearly full"):
        await full.build("RUN true\n")


async def test_b4_a_run_that_never_ends_is_killed_at_the_deadline(bench: Bench) -> None:
    started = time.monotonic()
    assert "took longer than 3 s" in await bench.failure("RUN trap '' TERM INT; sleep 600\n", timeout_s=3)
    assert time.monotonic() - started < 10
    assert await bench.left() == []


async def test_a_cancelled_build_ends_at_once_and_leaves_nothing(bench: Bench) -> None:
    asleep = asyncio.Event()

    def log(line: str) -> None:
        if line == "ASLEEP":
            asleep.set()

    plan = bench.plan({"Dockerfile": HEAD + "RUN echo ASLEEP; sleep 600\nCMD x\n"})
    building = asyncio.create_task(bench.engine.build(plan, log))
    await asleep.wait()
    assert len(await bench.containers()) == 1
    started = time.monotonic()
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    assert time.monotonic() - started < 10
    assert await bench.left() == []


@pytest.mark.parametrize(
    "line",
    ["ADD http://127.0.0.1:PORT/x /x", "COPY http://127.0.0.1:PORT/x /x", "ONBUILD ADD http://127.0.0.1:PORT/ /"],
)
async def test_b5_no_address_is_fetched_by_a_build(bench: Bench, line: str) -> None:
    hits: list[object] = []
    server = await asyncio.start_server(lambda _, writer: hits.append(writer), "127.0.0.1", 0)
    async with server:
        with pytest.raises(BuildRejected) as caught:
            await bench.build(line.replace("PORT", str(server.sockets[0].getsockname()[1])) + "\n")
    assert caught.value.reason == "analysis_rejected"
    assert caught.value.message.startswith("Dockerfile:2: ")
    assert hits == []


async def test_b6_another_tenants_image_cannot_be_read(bench: Bench) -> None:
    secret = await bench.build({"Dockerfile": HEAD + "COPY secret.txt /\nCMD x\n", "secret.txt": "theirs"})
    tags = (await bench.docker.images.inspect(secret.layers.base))["RepoTags"]
    for name in (secret.layers.base, secret.layers.base.removeprefix("sha256:"), secret.layers.base[7:19], *tags):
        for lines in (
            f"FROM {name}\nCMD cat /secret.txt\n",
            f"FROM {name} AS a\nFROM {BASE_IMAGE}\nCOPY --from=a /secret.txt /\nCMD x\n",
            f"{HEAD}COPY --from={name} /secret.txt /\nCMD x\n",
            f"ARG X={name}\nFROM $X\nCMD x\n",
        ):
            with pytest.raises(BuildRejected) as caught:
                await bench.build({"Dockerfile": lines})
            assert caught.value.reason == "analysis_rejected"


async def test_b6_an_operator_says_which_base_images_there_are(bench: Bench) -> None:
    own = bench.reconfigured(dockerfile=DockerfileConfig(base_images=("node:18-slim",)))
    with pytest.raises(BuildRejected, match=r"Dockerfile:1: .* is not allowed; there are: node:18-slim"):
        await own.build("RUN true\n")
    built = await own.build({"Dockerfile": "FROM node:18-slim\nCMD x\n"})
    assert built.analysis["base_images"] == ["node:18-slim"]


async def test_b8_b9_r20_traits_of_a_base_image_reach_no_sandbox(bench: Bench) -> None:
    base = await bench.base(
        'ENTRYPOINT ["/evil"]',
        "HEALTHCHECK --interval=1s CMD touch /tmp/checked",
        "STOPSIGNAL SIGCONT",
        "USER root",
        "ENV LD_PRELOAD=/evil.so http_proxy=http://evil HTTPS_PROXY=http://evil FUNCTION_TIMEOUT_MS=1 KEPT=1",
        f"LABEL {LABEL_WORKER}=theirs {LABEL_SANDBOX}=theirs containerpub.version=theirs other=theirs",
    )
    open_ = bench.reconfigured(dockerfile=DockerfileConfig(base_images=(base,)))
    plan = bench.plan(ECHO_FILES | {"Dockerfile": ECHO_FILES["Dockerfile"].replace(BASE_IMAGE, base)})
    built = await open_.engine.build(plan, bench.log.append)
    config = (await bench.docker.images.inspect(built.layers.base))["Config"]
    assert config["Labels"] == {
        LABEL_INSTALLATION: bench.config.installation,
        "containerpub.version": str(plan.version_id),
    }
    assert [config.get(name) for name in ("Entrypoint", "Healthcheck", "StopSignal", "Volumes", "OnBuild")] == [
        None
    ] * 5
    assert config.get("User", "") == ""
    spec = bench.spec(built)
    sandbox = await bench.engine.start(spec)
    calling = asyncio.create_task(sandbox.call(call("__import__('time').sleep(3) or [dict(os.environ), os.getuid()]")))
    try:
        while not (found := [one for one in await bench.containers() if one["State"] == "running"]):
            await asyncio.sleep(0.02)
        # Whose it is is told by labels that were set when it was created: a sweep leaves it alone.
        await bench.engine.sweep(frozenset())
        shown = await bench.docker.containers.container(found[0]["Id"]).show()
        assert shown["Config"]["Entrypoint"] == ["python3"]
        assert shown["Config"]["StopSignal"] == "SIGKILL"
        assert shown["Config"]["Healthcheck"] == {"Test": ["NONE"]}
        assert shown["Config"]["Labels"][LABEL_WORKER] == bench.config.worker_id
        assert shown["Config"]["Labels"][LABEL_SANDBOX] == sandbox.id
        assert shown["Mounts"] == [mount for mount in shown["Mounts"] if mount["Type"] == "bind"]
        outcome = await calling
    finally:
        await sandbox.destroy()
    assert outcome.result is not None, outcome
    env, uid = orjson.loads(outcome.result)
    assert uid in bench.config.sandbox_users
    assert shown["Config"]["User"] == f"{uid}:{uid}"
    assert env["KEPT"] == "1"
    assert env["FUNCTION_TIMEOUT_MS"] == "10000"
    assert not {name for name in env if name.startswith("LD_") or name.lower().endswith("_proxy")}


@pytest.mark.parametrize(("line", "why"), [("VOLUME /data", "volumes"), ("ONBUILD RUN touch /x", "ONBUILD")])
async def test_b8_r19_a_base_image_that_writes_elsewhere_is_not_built_upon(bench: Bench, line: str, why: str) -> None:
    base = await bench.base(line)
    open_ = bench.reconfigured(dockerfile=DockerfileConfig(base_images=(base,)))
    message = await open_.failure({"Dockerfile": f"FROM {base}\nCMD x\n"})
    assert why in message
    assert base in message


async def test_b9_labels_of_a_dockerfile_are_nobodys(bench: Bench) -> None:
    label = (
        f"LABEL {LABEL_INSTALLATION}=theirs {LABEL_WORKER}=theirs {LABEL_BUILD}=theirs containerpub.version=theirs\n"
    )
    plan = bench.plan({"Dockerfile": HEAD + label + "RUN true\nCMD x\n"})
    built = await bench.engine.build(plan, bench.log.append)
    assert bench.log[0] == "Dockerfile:2: LABEL has no effect here"
    assert (await bench.docker.images.inspect(built.layers.base))["Config"]["Labels"] == {
        LABEL_INSTALLATION: bench.config.installation,
        "containerpub.version": str(plan.version_id),
    }
    await bench.engine.sweep(frozenset())
    assert await bench.engine.has(bench.spec(built))


async def test_b10_a_run_reaches_no_listener_of_the_host(bench: Bench) -> None:
    hits: list[object] = []
    server = await asyncio.start_server(lambda _, writer: hits.append(writer), "0.0.0.0", 0)
    abstract = await asyncio.start_unix_server(lambda _, writer: hits.append(writer), f"\0{bench.config.installation}")
    code = (
        "import socket\n"
        "for host in ('127.0.0.1', '172.17.0.1', '169.254.169.254', '1.1.1.1'):\n"
        f"    try:\n        socket.create_connection((host, {server.sockets[0].getsockname()[1]}), 2)\n"
        "        print('REACHED', host)\n"
        "    except OSError as error:\n        print('closed', host, error)\n"
        "try:\n"
        f"    socket.socket(socket.AF_UNIX).connect('\\0{bench.config.installation}')\n    print('REACHED')\n"
        "except OSError as error:\n    print('closed', error)\n"
    )
    async with server, abstract:
        await bench.build(python(code))
    assert sum(line.startswith("closed") for line in bench.log) == 5
    assert not [line for line in bench.log if line.startswith("REACHED")]
    assert hits == []


async def test_b12_no_secret_of_the_worker_is_in_a_build(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = f"canary-{uuid4().hex}"
    for name in ("DATABASE_URL", "HTTP_PROXY", "JWT_SECRET"):
        monkeypatch.setenv(name, canary)
    built = await bench.build(
        "ARG DATABASE_URL\nARG JWT_SECRET\nARG HTTP_PROXY\nRUN env; cat /proc/1/environ; ls -la /\n"
    )
    assert any(line.startswith("PATH=") for line in bench.log)
    shown = json.dumps(await bench.docker.images.inspect(built.layers.base))
    history = json.dumps(await bench.docker.images.history(built.layers.base))
    assert not [where for where in (*bench.log, shown, history) if canary in where]
    assert "RUN" not in history


async def test_b13_a_build_log_is_capped_and_cleaned(bench: Bench) -> None:
    code = (
        "import sys\n"
        "sys.stderr.write('\\x1b[31mred\\x1b[0m \\x1b]0;title\\x07 \\x00 end\\n')\n"
        "sys.stderr.flush()\n"
        "for _ in range(100_000):\n    print('x' * 999)\n"
        "print('x' * 10_000_000)\n"
    )
    started = time.monotonic()
    await bench.build(python(code), max_log_bytes=10_000)
    assert time.monotonic() - started < 40
    assert sum(len(line) + 1 for line in bench.log) < 10_100
    assert bench.log[-1] == "[log truncated]"
    assert all(line.isprintable() for line in bench.log)
    assert any("red" in line and "end" in line for line in bench.log)


async def test_b14_an_error_within_the_engines_200_is_build_failed(bench: Bench) -> None:
    assert await bench.failure("RUN echo so it is; exit 3\n") == "A RUN failed with exit code 3: so it is"
    missing = await bench.failure("COPY nothing.txt /x\n")
    assert missing.startswith("The Dockerfile cannot be built: ")
    assert "nothing.txt" in missing
    assert "cannot be built" in await bench.failure('RUN ["/no/such/program"]\n')


async def test_an_image_that_grew_too_large_between_two_looks_is_refused(bench: Bench) -> None:
    code = "for n in range(3):\n    open(f'/var/tmp/{n}', 'wb').write(bytes(1 << 20))"
    assert "writes more than 2 MB" in await bench.failure(python(code), max_unpacked_bytes=2 * MEBIBYTE)


async def test_what_a_killed_worker_left_of_a_build_is_swept(bench: Bench) -> None:
    labels = {
        LABEL_INSTALLATION: bench.config.installation,
        LABEL_WORKER: "gone",
        LABEL_BUILD: uuid4().hex,
    }
    gone = replace(bench.config, worker_id="gone")
    async with BuildCaps(EngineClient(bench.docker, 60.0), gone).hold(
        await _machine(bench), DockerfileConfig(), "x"
    ) as path:
        # Without a name, as what a broken-off build leaves.
        image = await bench.base("LABEL " + " ".join(f"{name}={value}" for name, value in labels.items()), name=None)
        await bench.docker.containers.create({"Image": image, "Labels": labels})
        assert await bench.engine.sweep(frozenset({"gone"})) == 0
        assert [one for one in CGROUPS.glob(f"*{path}") if one.is_dir()]
        assert await bench.engine.sweep(frozenset()) == 3
        assert await bench.left() == []


async def _machine(bench: Bench) -> Machine:
    return await bench.caps.machine()


async def test_b1_without_a_bound_on_processes_nothing_is_built(bench: Bench) -> None:
    machine = await _machine(bench)

    async def parent(machine: Machine, given: str) -> str:
        async with bench.caps.hold(machine, DockerfileConfig(cgroup_parent=given), "x") as path:
            return path

    elsewhere = replace(machine, is_here=False)
    with pytest.raises(BuildRejected, match="DOCKERFILE_CGROUP_PARENT"):
        await parent(elsewhere, "")
    assert await parent(elsewhere, "/operators") == "/operators"
    systemd = replace(machine, driver="systemd")
    with pytest.raises(BuildRejected, match="slice with TasksMax"):
        await parent(systemd, "")
    with pytest.raises(BuildRejected, match="does not bound"):
        await parent(systemd, "containerpub-no-such.slice")
    assert await parent(replace(systemd, is_here=False), "builds.slice") == "builds.slice"


async def test_b1_builds_are_bounded_within_a_cgroup_of_the_operators(bench: Bench) -> None:
    parent = f"/containerpub-test-{uuid4().hex[:8]}"
    own = bench.reconfigured(dockerfile=DockerfileConfig(cgroup_parent=parent, max_processes=40))
    try:
        assert "COUNT" in await own.failure(python(FORKS))
        counts = [int(line.split()[-1]) for line in own.log if line.startswith("COUNT")]
        assert 10 < counts[0] < 40
        assert [path.name for path in CGROUPS.glob(f"*{parent}/*") if path.is_dir()] == []
    finally:
        for path in CGROUPS.glob(f"*{parent}"):
            path.rmdir()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"oci_runtime": "runsc"}, "default OCI runtime, which is runc and not runsc"),
        ({"dockerfile": None}, "DOCKERFILE_RUNTIME"),
    ],
)
async def test_an_installation_that_cannot_or_will_not_build_says_why(
    bench: Bench, changes: dict[str, Any], why: str
) -> None:
    assert why in await bench.reconfigured(**changes).failure("RUN true\n")


async def test_the_process_engine_refuses_dockerfiles(bench: Bench) -> None:
    with pytest.raises(BuildRejected, match="engine docker alone"):
        await ProcessEngine(bench.config, new_layers()).build(bench.plan(ECHO_FILES), bench.log.append)


@pytest.fixture
async def client(database: str, redis_url: str) -> AsyncIterator[Client]:
    env = {"DOCKERFILE_RUNTIME": "true"}
    async with (
        Platform(database_url=database, redis_url=redis_url, engine="docker", env=env) as platform,
        platform.client() as client,
    ):
        yield await client.register()


async def test_template_and_example_are_deployed_and_loaded_again_when_an_image_is_gone(
    client: Client, examples: Path
) -> None:
    def read(folder: Path) -> dict[str, str | bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    answer = await client.deploy("made", read(TEMPLATE))
    assert answer.status == 201, answer
    assert (await client.invoke("made", {"name": "Ada"})).json["result"] == {"greeting": "Hello, Ada!"}
    files = read(examples / "dockerfile")
    answer = await client.deploy("dockerfile", files)
    assert answer.status == 201, answer
    found = (await client.invoke("dockerfile", {"prefix": "l"})).json
    assert found["result"] == {"words": ["lease"]}, found
    version = (await client.call("GET", "/api/functions/dockerfile/versions/1")).json
    assert 'Dockerfile:5: RUN ["/bin/sh", "-c", "sort' in version["build_log"]
    async with Docker() as docker:
        await docker.images.delete(version["base"], force=True)
    found = (await client.invoke("dockerfile", {"prefix": "w"}, prefer="wait=60")).json
    assert found["result"] == {"words": ["worker"]}, found
    for dockerfile, why in (
        ("FROM ubuntu\n", "Dockerfile:1: "),
        (HEAD + "RUN --mount=type=bind,target=/x ls\n", "Dockerfile:2: "),
        (HEAD + "USER root\nCMD x\n", "Dockerfile:2: "),
        (HEAD, "add a CMD"),
    ):
        refused = await client.deploy("dockerfile", files | {"Dockerfile": dockerfile})
        assert (refused.status, refused.json["code"]) == (422, "analysis_rejected"), refused
        assert why in refused.json["detail"]
    # The old version still serves.
    assert (await client.invoke("dockerfile", {"prefix": "l"})).json["result"] == {"words": ["lease"]}


async def test_dockerfiles_are_off_unless_an_operator_turns_them_on(api_url: str) -> None:
    async with Client(api_url) as client:
        await client.register()
        files: dict[str, str | bytes] = {"Dockerfile": HEAD + "CMD x\n"}
        answer = await client.deploy("mine", files, settings={"runtime": "dockerfile"})
        assert (answer.status, answer.json["code"], answer.json["field"]) == (422, "runtime_off", "runtime")
        assert "DOCKERFILE_RUNTIME=true" in answer.json["detail"]
