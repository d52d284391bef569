"""What code in a sandbox container tries, and must not get."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import platform
import socket
import tarfile
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import orjson
import podman
import psutil
import pytest
from aiodocker import Docker
from engines import BASE_IMAGE, Bench, call, docker_bench, docker_bench_of, engine_config, new_layers, short_dir

from cli.supervisor.engine import choose_engine
from shared.errors import Misconfigured
from worker.build.recipe import load_recipe
from worker.config import EngineConfig
from worker.engine.docker import DockerEngine
from worker.errors import EngineUnavailable
from worker.sandbox.contract import CallOutcome

pytestmark = pytest.mark.docker

__all__ = ["docker_bench", "engine_config", "short_dir"]

# Numbers that x86-64 and the generic table do not share.
_NUMBERS = {
    "x86_64": {"unshare": 272, "keyctl": 250, "add_key": 248, "request_key": 249, "bpf": 321, "userfaultfd": 323}
    | {"settimeofday": 164, "clock_settime": 227, "clock_adjtime": 305, "adjtimex": 159}
    | {"ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "perf_event_open": 298, "mount": 165}
    | {"setns": 308, "pivot_root": 155, "chroot": 161, "kexec_load": 246, "init_module": 175, "swapon": 167}
    | {"reboot": 169, "open_by_handle_at": 304, "kcmp": 312, "personality": 135, "clone": 56, "clone3": 435},
    "aarch64": {"unshare": 97, "keyctl": 219, "add_key": 217, "request_key": 218, "bpf": 280, "userfaultfd": 282}
    | {"settimeofday": 170, "clock_settime": 112, "clock_adjtime": 266, "adjtimex": 171}
    | {"ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "perf_event_open": 241, "mount": 40}
    | {"setns": 268, "pivot_root": 41, "chroot": 51, "kexec_load": 104, "init_module": 105, "swapon": 224}
    | {"reboot": 142, "open_by_handle_at": 265, "kcmp": 272, "personality": 92, "clone": 220, "clone3": 435},
}[platform.machine()]
_NUMBERS |= {"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427}
_NUMBERS |= {"x86_64": {"io_setup": 206}, "aarch64": {"io_setup": 0}}[platform.machine()]
_NUMBERS |= {"pidfd_getfd": 438, "process_madvise": 440, "open_tree": 428, "move_mount": 429, "fsopen": 430}

_NOBODY = 65534
_AF_ALG, _AF_VSOCK, _AF_PACKET, _AF_BLUETOOTH, _AF_XDP = 38, 40, 17, 31, 44


async def _ask(bench: Bench, handler: str, body: object = None, **changes: object) -> object:
    outcome = await bench.run(handler, body, **changes)
    assert outcome.reason is None, outcome
    assert outcome.result is not None
    return orjson.loads(outcome.result)


@pytest.mark.podman
async def test_r14_privileges_are_none(docker_bench: Bench) -> None:
    status = await _ask(docker_bench, "status")
    assert isinstance(status, dict)
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[capabilities], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    ids = status["Uid"].split()
    assert ids == status["Gid"].split() == ids[:1] * 4
    assert int(ids[0]) in docker_bench.config.sandbox_users
    assert status.get("Groups", "").split() in ([], ids[:1])


@pytest.mark.podman
async def test_what_the_kernel_grants_a_user_no_sandbox_takes_from_another(docker_bench: Bench) -> None:
    granted = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())
    greedy, neighbour = [await docker_bench.start("take_inotify") for _ in range(2)]
    outcome = await greedy.call(call(granted + 1))
    assert outcome.result is not None, outcome
    got, error = orjson.loads(outcome.result)
    assert error == errno.EMFILE
    assert got > 0
    outcome = await neighbour.call(call(10))
    assert outcome.result is not None, outcome
    assert orjson.loads(outcome.result) == [10, 0]


@pytest.mark.podman
async def test_a_sandbox_knows_its_user_its_group_and_itself_by_name(docker_bench: Bench) -> None:
    found = [await _ask(docker_bench, "identity") for _ in range(2)]
    users = []
    for one in found:
        assert isinstance(one, dict)
        users.append(one.pop("ids"))
        assert one == {
            "groups": one["groups"],
            "user": "sandbox",
            "home": "/tmp",
            "group": "sandbox",
            "localhost": ["127.0.0.1", "::1"],
        }
    assert all(ids == ids[:1] * 6 for ids in users)
    assert users[0] != users[1]


@pytest.mark.parametrize("name", sorted(set(_NUMBERS) - {"personality", "clone", "clone3"}))
async def test_r15_r16_system_calls_that_no_function_needs_are_denied(docker_bench: Bench, name: str) -> None:
    assert await _ask(docker_bench, "libc_call", [_NUMBERS[name], 0, 0, 0, 0, 0, 0]) == errno.EPERM


@pytest.mark.podman
async def test_r15_namespaces_cannot_be_made_by_clone(docker_bench: Bench) -> None:
    new_user = 0x10000000 | 17
    assert await _ask(docker_bench, "libc_call", [_NUMBERS["clone"], new_user, 0, 0, 0, 0]) == errno.EPERM
    # So that libraries fall back to clone, whose flags can be looked at.
    assert await _ask(docker_bench, "libc_call", [_NUMBERS["clone3"], 0, 0]) == errno.ENOSYS


async def test_r15_address_layout_cannot_be_made_predictable(docker_bench: Bench) -> None:
    no_randomisation = 0x0040000
    assert await _ask(docker_bench, "libc_call", [_NUMBERS["personality"], no_randomisation]) == errno.EPERM


@pytest.mark.podman
@pytest.mark.parametrize("family", [_AF_ALG, _AF_VSOCK, _AF_PACKET, _AF_BLUETOOTH, _AF_XDP])
async def test_r16_sockets_of_unusual_families_are_denied(docker_bench: Bench, family: int) -> None:
    kind = socket.SOCK_SEQPACKET if family == _AF_ALG else socket.SOCK_STREAM
    assert await _ask(docker_bench, "open_socket", [family, kind, 0]) == errno.EPERM


@pytest.mark.podman
async def test_r12_there_is_no_network(docker_bench: Bench) -> None:
    assert await _ask(docker_bench, "interfaces") == ["lo"]
    assert await _ask(docker_bench, "connect", ["1.1.1.1", 443]) == errno.ENETUNREACH
    assert await _ask(docker_bench, "connect", ["169.254.169.254", 80]) == errno.ENETUNREACH


@pytest.mark.podman
async def test_r12_listeners_of_the_host_are_out_of_reach(docker_bench: Bench) -> None:
    async with _listener() as (port, name):
        assert await _ask(docker_bench, "connect", ["127.0.0.1", port]) == errno.ECONNREFUSED
        assert await _ask(docker_bench, "connect_abstract", name) == errno.ECONNREFUSED


@asynccontextmanager
async def _listener() -> AsyncIterator[tuple[int, str]]:
    """A TCP port on loopback and an abstract Unix name of this machine, which both must see nobody."""
    visitors: list[asyncio.StreamWriter] = []
    name = f"containerpub-{uuid.uuid4()}"

    async def visit(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visitors.append(writer)
        writer.close()

    tcp = await asyncio.start_server(visit, "127.0.0.1", 0)
    abstract = await asyncio.start_unix_server(visit, f"\0{name}")
    async with tcp, abstract:
        yield tcp.sockets[0].getsockname()[1], name
    assert visitors == []


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/made", errno.EROFS),
        ("/function/main.py", errno.EROFS),
        ("/containerpub/serve.py", errno.EROFS),
        ("/etc/passwd", errno.EROFS),
        ("/run/containerpub/made", errno.EROFS),
        ("/proc/sys/kernel/core_pattern", errno.EROFS),
        ("/proc/sysrq-trigger", errno.EROFS if os.path.exists("/proc/sysrq-trigger") else errno.ENOENT),
    ],
)
async def test_r13_the_root_is_read_only(docker_bench: Bench, path: str, error: int) -> None:
    assert await _ask(docker_bench, "write_file", [path, 1]) in (error, errno.EACCES)


@pytest.mark.podman
async def test_r5_tmp_is_small_in_bytes_and_files(docker_bench: Bench) -> None:
    sandbox = await docker_bench.start("write_file")
    assert (await sandbox.call(call(["/tmp/a", 1024**2]))).result == b"0"
    assert (await sandbox.call(call(["/tmp/b", 32 * 1024**2]))).result == str(errno.ENOSPC).encode()
    made = await _ask(docker_bench, "make_files", 5000)
    assert isinstance(made, list)
    if docker_bench.on_podman:
        # It cannot be told how many: they count as memory.
        outcome = await docker_bench.run("make_files", 10**9, memory_mb=32, timeout_ms=30_000)
        assert outcome.exit_code == 137 or outcome.result is None or orjson.loads(outcome.result)[1] != 0
        assert outcome.reason != "timeout"
    else:
        assert 2000 <= made[0] <= 2048
        assert made[1] == errno.ENOSPC


@pytest.mark.podman
async def test_tmp_is_as_large_as_the_function_says_also_for_one_file(docker_bench: Bench) -> None:
    room = {"memory_mb": 256, "tmp_mb": 64}
    assert await _ask(docker_bench, "write_file", ["/tmp/a", 60 * 1024**2], **room) == 0
    assert await _ask(docker_bench, "write_file", ["/tmp/a", 65 * 1024**2], **room) == errno.ENOSPC


@pytest.mark.podman
async def test_shared_memory_is_memory(docker_bench: Bench) -> None:
    assert await _ask(docker_bench, "share_memory", 40) == 40
    outcome = await docker_bench.run("share_memory", 120)
    assert _ran_out_of_memory(docker_bench, outcome), outcome


@pytest.mark.podman
async def test_r6_what_is_in_tmp_counts_as_memory(docker_bench: Bench) -> None:
    assert await _ask(docker_bench, "allocate", 44, memory_mb=64) == 44 * 1024**2
    sandbox = await docker_bench.start("fill_tmp_and_allocate", memory_mb=64)
    outcome = await sandbox.call(call([15, 44]))
    assert _ran_out_of_memory(docker_bench, outcome), outcome


def _ran_out_of_memory(bench: Bench, outcome: CallOutcome) -> bool:
    # Some releases of Podman's monitor note the kill where Podman does not look.
    unnoticed = bench.on_podman and (outcome.reason, outcome.exit_code) == ("crashed", 137)
    return unnoticed or outcome.reason == "out_of_memory"


@pytest.mark.podman
async def test_r2_processes_are_capped(docker_bench: Bench) -> None:
    forked = await _ask(docker_bench, "fork_bomb")
    assert isinstance(forked, list)
    assert forked[0] < 64
    assert forked[1] == errno.EAGAIN


@pytest.mark.podman
async def test_r7_descriptors_are_capped(docker_bench: Bench) -> None:
    opened = await _ask(docker_bench, "open_many")
    assert isinstance(opened, list)
    assert 960 < opened[0] < 1024
    assert opened[1] == errno.EMFILE


async def test_r18_zombies_are_reaped(docker_bench: Bench) -> None:
    processes = await _ask(docker_bench, "make_zombies", 1000, timeout_ms=20_000)
    assert isinstance(processes, int)
    assert processes < 20


@pytest.mark.podman
async def test_r17_nothing_of_the_host_is_there_to_read(docker_bench: Bench) -> None:
    paths = [
        "/proc/kcore",
        "/proc/keys",
        "/proc/timer_list",
        "/var/run/docker.sock",
        "/dev/mem",
        "/dev/sda",
        "/dev/kmsg",
    ]
    found = await _ask(docker_bench, "read_files", paths)
    assert isinstance(found, dict)
    assert {path: size for path, size in found.items() if size > 0} == {}
    assert await _ask(docker_bench, "list_folder", "/run/containerpub") == []


async def test_r19_r20_volumes_and_variables_of_a_base_image_do_no_harm(engine_config: EngineConfig) -> None:
    name = f"containerpub-test/hostile-base-{uuid.uuid4().hex[:8]}"
    recipe = (
        f'FROM {BASE_IMAGE}\nVOLUME /kept\nENTRYPOINT ["/bin/false"]\nUSER root\n'
        "ENV LD_PRELOAD=/none.so LD_LIBRARY_PATH=/none HTTP_PROXY=http://192.0.2.1:1 PYTHONSTARTUP=/none\n"
        "ENV FUNCTION_TIMEOUT_MS=1 CONTAINERPUB_RESTRICTED=false\n"
    ).encode()
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w:gz") as archive:
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(recipe)
        archive.addfile(entry, io.BytesIO(recipe))
    async with Docker() as docker:
        await docker.images.build(fileobj=io.BytesIO(context.getvalue()), tag=name, encoding="gzip")
        try:
            async for bench in docker_bench_of(replace(engine_config, base_images={"python": name})):
                environment = await _ask(bench, "environment")
                assert isinstance(environment, dict)
                assert not {"LD_PRELOAD", "LD_LIBRARY_PATH", "HTTP_PROXY", "PYTHONSTARTUP"} & environment.keys()
                assert await _ask(bench, "write_file", ["/kept/made", 1]) in (errno.EROFS, errno.ENOENT)
                shown = await docker.containers.container(f"containerpub-{bench.started[0].id}").show()
                assert {
                    mount["Destination"]: (mount["Type"], mount["RW"]) for mount in shown["Mounts"]
                } == dict.fromkeys(
                    ("/run/containerpub", "/function", "/dependencies", "/etc/passwd", "/etc/group", "/etc/hosts"),
                    ("bind", False),
                )
                assert not shown["Config"].get("Volumes")
                assert isinstance(bench.engine, DockerEngine)
                runtime = await bench.engine._parts.runtimes.of(load_recipe("python"), bench.layers.foundation)
                await bench.engine.close()
                await docker.images.delete(runtime.id, force=True)
        finally:
            await docker.images.delete(name, force=True)


@pytest.mark.podman
async def test_r21_nothing_of_the_platform_is_in_any_process(docker_bench: Bench) -> None:
    """The token of the start is there, in what the kernel keeps of it; its listener is long gone."""
    found = await _ask(docker_bench, "environments_of_all")
    assert isinstance(found, dict)
    for variables in found.values():
        names = {entry.partition("=")[0] for entry in variables.split("\0") if entry}
        allowed = {"PATH", "HOME", "TMPDIR", "LANG", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "MALLOC_ARENA_MAX"}
        allowed |= {
            "OMP_NUM_THREADS",
            "FUNCTION_TIMEOUT_MS",
            "FUNCTION_MAX_MEMORY_MB",
            "CONTAINERPUB_RESTRICTED",
            "DART_CLOUD_RESTRICTED",
        }
        rest = {name for name in names if not name.startswith("CONTAINERPUB_ATTACH_")} - allowed
        assert rest <= {"HOSTNAME"} | ({"TERM", "container"} if docker_bench.on_podman else set())


@pytest.mark.podman
async def test_w2_a_child_that_detached_itself_dies_with_its_sandbox(docker_bench: Bench) -> None:
    sandbox = await docker_bench.start("leave_child_behind")
    await sandbox.call(call())
    container = docker_bench.engine._client().docker.containers.container(f"containerpub-{sandbox.id}")
    first = psutil.Process((await container.show())["State"]["Pid"])
    pids = [process.pid for process in (first, *first.children(recursive=True))]
    assert len(pids) == 3
    await sandbox.destroy()
    assert [pid for pid in pids if os.path.exists(f"/proc/{pid}/exe")] == []


@pytest.mark.podman
async def test_the_container_is_created_as_hardened_as_it_says(docker_bench: Bench) -> None:
    sandbox = await docker_bench.start("echo", memory_mb=96, cpus=0.5)
    shown = await docker_bench.engine._client().docker.containers.container(f"containerpub-{sandbox.id}").show()
    host, config = shown["HostConfig"], shown["Config"]
    assert host["Memory"] == host["MemorySwap"] == 96 * 1024**2
    assert host["NanoCpus"] == 500_000_000
    assert host["CpuShares"] == 51
    assert host["LogConfig"]["Type"] == "none"
    assert host["NetworkMode"] == "none"
    uid = int(config["User"].partition(":")[0])
    assert config["User"] == f"{uid}:{uid}"
    assert uid in docker_bench.config.sandbox_users
    assert config.get("Healthcheck") == (None if docker_bench.on_podman else {"Test": ["NONE"]})
    told = ("Type", "Source", "Destination", "RW", "Propagation")
    mounted = [tuple(one[name] for name in told) for one in shown["Mounts"] if one["Type"] != "tmpfs"]
    sockets = next(docker_bench.config.socket_dir.glob(f"*/{sandbox.id}"))
    code = next(docker_bench.config.data_dir.glob(f"sandboxes/*/{sandbox.id}"))
    places = {"/run/containerpub": sockets, "/function": code / "function", "/dependencies": code / "dependencies"}
    places |= {f"/etc/{name}": code / name for name in ("passwd", "group", "hosts")}
    assert sorted(mounted) == sorted(("bind", str(at), seen, False, "rprivate") for seen, at in places.items())
    labels = config["Labels"]
    assert labels["containerpub.installation"] == docker_bench.config.installation
    assert labels["containerpub.worker"] == docker_bench.config.worker_id
    assert labels["containerpub.sandbox"] == sandbox.id


@pytest.mark.on_podman
async def test_an_engine_that_would_not_cap_functions_is_refused(podman_host: str, engine_config: EngineConfig) -> None:
    """Rootless on cgroup v1, Podman claims every limit and ignores it. On cgroup v2 there is nothing to refuse."""
    with podman.serving(user=_NOBODY) as host:
        engine = DockerEngine(replace(engine_config, docker_host=host), new_layers())
        if Path("/sys/fs/cgroup/cgroup.controllers").exists():
            await engine.open()
            await engine.close()
        else:
            with pytest.raises(EngineUnavailable, match="rootless on cgroup v1"):
                await engine.open()
            with pytest.raises(Misconfigured, match="rootless on cgroup v1"):
                await choose_engine("docker", {"DOCKER_HOST": host})
            assert (await choose_engine("auto", {"DOCKER_HOST": host})).name == "process"
    assert (await choose_engine("docker", {"DOCKER_HOST": podman_host})).docker_host == podman_host


@pytest.mark.podman
async def test_a_stopped_or_paused_container_of_a_dead_worker_is_swept(docker_bench: Bench) -> None:
    docker = docker_bench.engine._client().docker
    labels = {"containerpub.installation": docker_bench.config.installation, "containerpub.worker": "gone"}
    shape = {"Image": BASE_IMAGE, "Cmd": ["sleep", "60"], "Labels": labels, "NetworkDisabled": True}
    created, exited, paused = [await docker.containers.create(shape) for _ in range(3)]
    await exited.start()
    await exited.kill()
    await paused.start()
    await paused.pause()
    assert await docker_bench.engine.sweep(frozenset((docker_bench.config.worker_id,))) == 3
    names = {container.id for container in await docker.containers.list(all=1)}
    assert not names & {created.id, exited.id, paused.id}


async def test_a_container_that_somebody_runs_of_a_function_s_image_is_left_alone(docker_bench: Bench) -> None:
    # It inherits the labels of the image, and no worker made it.
    docker = docker_bench.engine._client().docker
    inherited = {"containerpub.installation": docker_bench.config.installation}
    shape = {"Image": BASE_IMAGE, "Cmd": ["sleep", "60"], "Labels": inherited, "NetworkDisabled": True}
    by_hand = await docker.containers.create(shape)
    try:
        assert await docker_bench.engine.sweep(frozenset()) == 0
        assert by_hand.id in {container.id for container in await docker.containers.list(all=1)}
    finally:
        await by_hand.delete(force=True)
