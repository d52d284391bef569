"""``network = "egress"``: a function reaches what is outside, and nothing of the platform's or the machine's."""

from __future__ import annotations

import asyncio
import errno
import io
import socket
import subprocess
import tarfile
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
from engines import (
    BASE_IMAGE,
    Bench,
    call,
    docker_bench_of,
    engine_config,
    keep_code,
    new_layers,
    process_bench_of,
    short_dir,
)
from outerworld import NAMED, Listener, OuterWorld, attempt_elsewhere

from tests.deployment import Platform
from worker.config import EngineConfig
from worker.engine.docker import DockerEngine
from worker.engine.docker import egress_namespace as namespaces
from worker.errors import EngineUnavailable
from worker.network.outside import EgressPolicy
from worker.sandbox.contract import generic_spec

pytestmark = pytest.mark.docker

__all__ = ["engine_config", "short_dir"]

_TCP_WAYS = ("", "device", "device dontroute", "interface")
_UDP_WAYS = ("", "device", "device dontroute", "interface", "packet")
_REFUSED = {"ECONNREFUSED", "EPERM"}

# One function for each contract; each tells what its sandbox has and reaches.
_REACH = """
import socket

def reach(attempts):
    found = [name for _, name in socket.if_nameindex()]
    for host, port in attempts:
        try:
            with socket.create_connection((host, port), timeout=2) as peer:
                found.append(peer.recv(64).decode())
        except OSError as error:
            found.append(type(error).__name__)
    return found
"""
_HANDLER = f"""{_REACH}
def handler(event, context):
    return reach(event["body"])
"""
_WEB = f"""{_REACH}
import json

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(reach(json.load(environ["wsgi.input"]))).encode()]
"""
_COMMAND = f"""#!/usr/bin/env python3
{_REACH}
import json

with open("/request.json") as request, open("/result.json", "w") as result:
    json.dump({{"body": reach(json.load(request)["body"])}}, result)
"""


@pytest.fixture(scope="module")
def world() -> Iterator[OuterWorld]:
    one = OuterWorld.somewhere()
    try:
        one.open()
        yield one
    finally:
        one.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    one = Listener()
    yield one
    one.close()


@pytest.fixture
def policy(world: OuterWorld) -> EgressPolicy:
    return EgressPolicy(
        allow=(world.network,),
        deny=(IPv4Network(world.denied),),
        platform=(world.platform, "localhost"),
    )


@pytest.fixture
async def bench(engine_config: EngineConfig, policy: EgressPolicy) -> AsyncIterator[Bench]:
    async for one in docker_bench_of(replace(engine_config, egress=policy)):
        yield one
    assert _networks(engine_config) == []


def _networks(config: EngineConfig) -> list[str]:
    label = f"label=containerpub.installation={config.installation}"
    return subprocess.run(
        ["docker", "network", "ls", "--quiet", "--filter", label], capture_output=True, text=True, check=True
    ).stdout.split()


def _containers(config: EngineConfig) -> list[str]:
    label = f"label=containerpub.installation={config.installation}"
    return subprocess.run(
        ["docker", "ps", "--all", "--quiet", "--filter", label], capture_output=True, text=True, check=True
    ).stdout.split()


async def _ask(bench: Bench, handler: str, body: object = None, **changes: Any) -> Any:
    outcome = await bench.run(handler, body, network="egress", **changes)
    assert outcome.reason is None, outcome
    assert outcome.result is not None
    return orjson.loads(outcome.result)


async def test_r12_with_egress_what_is_outside_is_reached_and_nothing_of_the_platforms(
    bench: Bench, world: OuterWorld, listener: Listener
) -> None:
    """Whatever a socket can be told of the way that its packets go. The container without an egress namespace, in the
    same network and with the same attempts, shows that all of it would be reached otherwise."""
    sandbox = await bench.start("reach", network="egress", timeout_ms=60_000)
    (network,) = _networks(bench.config)
    (subnet,) = await bench.engine._parts.namespaces._network.subnets()  # type: ignore[union-attr]
    machine = next(
        one.address
        for addresses in psutil.net_if_addrs().values()
        for one in addresses
        if one.family == socket.AF_INET and one.address not in ("127.0.0.1", world.here, str(subnet[1]))
    )
    ways = [("tcp", way) for way in _TCP_WAYS] + [("udp", way) for way in _UDP_WAYS]
    here = [str(subnet[1]), machine, world.here]
    there = [world.platform, world.denied, world.private, world.link_local]
    inside = [[host, listener.port, *way] for host in here for way in ways]
    inside += [[f"::ffff:{host}", listener.port, kind] for host in here for kind in ("tcp", "udp")]
    inside += [[host, world.port, *way] for host in there for way in ways]
    broadcasts = [
        [host, listener.port, "udp", f"broadcast {way}"]
        for host in (str(subnet.broadcast_address), "255.255.255.255", world.broadcast)
        for way in ("", "device", "packet")
    ]

    without_gate = await asyncio.to_thread(attempt_elsewhere, network, [*inside, *broadcasts])
    for host, kind in ((host, kind) for host in here for kind in ("tcp", "udp")):
        answers = [
            answer
            for one, answer in zip(inside, without_gate, strict=False)
            if one[0] in (host, f"::ffff:{host}") and one[2] == kind
        ]
        assert answers.count("inside") >= 3, (host, kind, answers)
    for host in there:
        answers = [answer for one, answer in zip(inside, without_gate, strict=False) if one[0] == host]
        assert answers.count("outside") >= 2, (host, answers)
    assert listener.visited
    assert set(there) <= set(world.visited)
    listener.visited.clear()
    world.visited.clear()

    unheard = [["169.254.169.254", 80, "tcp"], ["100.100.100.200", 80, "tcp"], ["168.63.129.16", 80, "tcp"]]
    unheard += [["192.168.1.1", 53, "udp"], ["172.31.255.254", 443, "tcp"], ["224.0.0.1", 5353, "udp"]]
    attempts = [*inside, *broadcasts, *unheard]
    outcome = await sandbox.call(call(attempts, timeout_ms=60_000))
    assert outcome.result is not None, outcome
    answers = orjson.loads(outcome.result)
    assert {str(one): answer for one, answer in zip(attempts, answers, strict=True) if answer not in _REFUSED} == {}
    assert listener.visited == []

    outside = [[world.server, world.port, "tcp"], [world.server, world.port, "udp"]]
    outside += [[f"::ffff:{world.server}", world.port, kind] for kind in ("tcp", "udp")]
    outcome = await sandbox.call(call(outside))
    assert outcome.result == b'["outside","outside","outside","outside"]'
    # Later than anything that the function sent before: had it arrived, it would have been seen.
    assert set(world.visited) == {world.server}


async def test_r12_with_egress_the_machines_loopback_is_out_of_reach(bench: Bench, listener: Listener) -> None:
    name = f"containerpub-{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0{name}")
        abstract.listen()
        abstract.setblocking(False)
        assert await _ask(bench, "connect_abstract", name) == errno.ECONNREFUSED
        with pytest.raises(BlockingIOError):
            abstract.accept()
    for host in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
        # Some engines leave even a sandbox's own loopback without IPv6.
        assert (await _ask(bench, "reach", [[host, listener.port, "tcp"]]))[0] in ("ECONNREFUSED", "EADDRNOTAVAIL")
    assert listener.visited == []


async def test_r12_with_egress_no_other_sandbox_is_reached(bench: Bench) -> None:
    other = await bench.start("listen", network="egress")
    address = orjson.loads((await other.call(call(7000))).result or b"")
    attempts = [[address, 7000, "tcp", way] for way in _TCP_WAYS]
    assert set(await _ask(bench, "reach", attempts)) == {"ECONNREFUSED"}
    # And who is not held back by an egress namespace of his own is held back by that of the one he wants to reach.
    (network,) = _networks(bench.config)
    assert await asyncio.to_thread(attempt_elsewhere, network, [[address, 7000, "tcp"]]) == ["TimeoutError"]


async def test_r14_r15_with_egress_a_function_has_no_privileges_and_cannot_change_its_network(bench: Bench) -> None:
    sandbox = await bench.start("change_network", network="egress")
    new_address, new_route, delete_route, new_link = (0, 20), (0, 24), (0, 25), (0, 16)
    new_table, delete_table, delete_rule = (12, 10 << 8), (12, 10 << 8 | 2), (12, 10 << 8 | 8)
    changes = [new_address, new_route, delete_route, new_link, new_table, delete_table, delete_rule]
    outcome = await sandbox.call(call(changes))
    assert outcome.result is not None, outcome
    assert orjson.loads(outcome.result) == [errno.EPERM] * len(changes)
    status = await _ask(bench, "status")
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[capabilities], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert {int(uid) for uid in status["Uid"].split()} <= set(bench.config.sandbox_users)
    assert (await _ask(bench, "identity"))["localhost"] == ["127.0.0.1", "::1"]
    assert await _ask(bench, "open_socket", [socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP]) == errno.EPERM
    assert await _ask(bench, "open_socket", [socket.AF_PACKET, socket.SOCK_RAW, 0]) == errno.EPERM

    docker = bench.engine._client().docker  # type: ignore[union-attr]
    namespace = await docker.containers.container(f"containerpub-{sandbox.id}-egress").show()
    kept = psutil.Process(namespace["State"]["Pid"])
    assert kept.cmdline() == ["sleep", "infinity"]
    assert kept.children() == []
    lines = Path(f"/proc/{kept.pid}/status").read_text().splitlines()
    held = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert [int(held[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [0] * 4
    assert (held["NoNewPrivs"], held["Uid"].split()) == ("1", ["65534"] * 4)


async def test_names_are_resolved_by_the_server_that_the_engine_asks(
    bench: Bench, world: OuterWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the engine's own resolver, although the server is at a private address, as most are."""
    made = namespaces.container_config

    def asking(**settings: Any) -> dict[str, Any]:
        config: dict[str, Any] = dict(made(**settings))
        config["HostConfig"] = config["HostConfig"] | {"Dns": [world.private]}
        return config

    with monkeypatch.context() as patched:
        patched.setattr(namespaces, "container_config", asking)  # as if this were the server of the engine's machine
        assert await _ask(bench, "resolve", "somewhere.example") == [NAMED]
    sandbox = await bench.start("resolve", network="egress")
    outcome = await sandbox.call(call(f"containerpub-{sandbox.id}-egress"))
    assert outcome.result is not None
    assert len(orjson.loads(outcome.result)) == 1


async def test_a_function_has_a_network_only_if_it_asks_for_one(bench: Bench) -> None:
    assert (await bench.run("interfaces")).result == b'["lo"]'
    assert await _ask(bench, "interfaces") == ["lo", "eth0"]
    for network, seen in (("none", ["lo"]), ("egress", ["lo", "eth0"])):
        spec = bench.spec("interfaces", network=network)
        assert await bench.engine.prepare(spec)
        generic = await bench.start_generic(network=network)
        with pytest.raises(ValueError):
            await generic.specialize(replace(spec, network="none" if network == "egress" else "egress"))
        outcome = await (await generic.specialize(spec)).call(call())
        assert orjson.loads(outcome.result or b"") == seen


async def test_new_connections_are_counted_however_long_the_rules_are(
    engine_config: EngineConfig, policy: EgressPolicy, world: OuterWorld
) -> None:
    """One sandbox must not fill the table of connections that all of its machine share."""
    # As many exceptions as a list of bad addresses has.
    many = tuple(IPv4Network((11 << 24 | number << 9, 32)) for number in range(3000))
    config = replace(engine_config, egress=replace(policy, deny=many, new_per_s=5))
    async for bench in docker_bench_of(config):
        taken = await _ask(bench, "send_many", [world.server, 2000])
        assert 5 <= taken < 50


async def test_f21_the_gate_goes_with_its_sandbox_and_with_its_worker(bench: Bench, short_dir: Path) -> None:
    sandbox = await bench.start("echo", network="egress")
    assert len(_containers(bench.config)) == 2
    await sandbox.destroy()
    assert _containers(bench.config) == []

    await bench.start("echo", network="egress")
    await (await bench.start_generic(network="egress")).destroy()
    other = replace(bench.config, worker_id="another", data_dir=short_dir / "other")
    living = DockerEngine(other, new_layers())
    await living.open()
    try:
        both = frozenset((bench.config.worker_id, "another"))
        await living.sweep(both)
        assert len(_containers(bench.config)) == 2
        # As after a kill -9: the worker is not among the living any more.
        assert await living.sweep(frozenset(("another",))) >= 2
        assert _containers(bench.config) == []
    finally:
        await living.close()


async def test_workers_share_one_network_which_comes_again_when_it_is_removed(bench: Bench, short_dir: Path) -> None:
    config = replace(bench.config, worker_id="another", data_dir=short_dir / "other")
    other = DockerEngine(config, new_layers())
    await other.open()
    try:
        starts = [engine.start(bench.spec("echo", network="egress")) for engine in (bench.engine, other)]
        sandboxes = await asyncio.gather(*starts)
        (network,) = _networks(config)
        for sandbox in sandboxes:
            assert (await sandbox.call(call("a"))).result == b'"a"'
        await sandboxes[1].destroy()
        await other.close()
        assert _networks(config) == [network]
        await sandboxes[0].destroy()
        subprocess.run(["docker", "network", "rm", network], check=True, capture_output=True)
        assert await _ask(bench, "interfaces") == ["lo", "eth0"]
    finally:
        await other.close()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"egress": EgressPolicy(permitted=False)}, "FUNCTION_EGRESS"),
        ({"oci_runtime": "runsc"}, "runsc"),
        ({"egress": EgressPolicy(platform=("no-such-host.invalid",))}, "no-such-host.invalid"),
    ],
)
async def test_where_there_may_be_no_network_the_sandbox_is_not_started(
    engine_config: EngineConfig, changes: dict[str, Any], said: str
) -> None:
    layers = new_layers()
    engine = DockerEngine(replace(engine_config, **changes), layers)
    await engine.open()
    kept = await keep_code(engine, layers, engine_config.data_dir)
    spec = Bench(engine=engine, config=engine_config, layers=kept).spec("echo", network="egress")
    try:
        with pytest.raises(EngineUnavailable, match=said):
            await engine.start(spec)
        with pytest.raises(EngineUnavailable, match=said):
            await engine.start(replace(spec, runtime="dart"))
        assert _containers(engine_config) == []
    finally:
        await engine.close()
    assert _networks(engine_config) == []


async def test_the_engine_process_gives_no_network(engine_config: EngineConfig) -> None:
    async for bench in process_bench_of(engine_config):
        with pytest.raises(EngineUnavailable, match="use the engine docker"):
            await bench.start("echo", network="egress")
        assert await bench.engine.start_generic(generic_spec(bench.spec("echo", network="egress"))) is None


async def test_a_deployed_function_of_any_contract_has_its_network_until_the_operator_forbids_it(
    database: str, redis_url: str, world: OuterWorld
) -> None:
    env = {
        "FUNCTION_EGRESS_ALLOW": str(world.network),
        "FUNCTION_EGRESS_DENY": world.denied,
        "DOCKER_BASE_IMAGE": f"dart={BASE_IMAGE}",
        "LEASE_SECONDS": "3",
        "HEARTBEAT_SECONDS": "1",
        "SWEEP_SECONDS": "1",
    }
    functions = {
        "handler": ({"main.py": _HANDLER}, {"runtime": "python"}),
        "web": ({"app.py": _WEB}, {"runtime": "python-flask", "handler": "app:app"}),
        "command": ({"bin/main": _COMMAND}, {"runtime": "dart", "handler": "bin/main.dart"}),
    }
    attempts = [[world.server, world.port], [world.here, world.port], [world.denied, world.port]]
    seen = ["lo", "eth0", "outside", "ConnectionRefusedError", "ConnectionRefusedError"]
    async with (
        Platform(database_url=database, redis_url=redis_url, engine="docker", env=env) as platform,
        platform.client() as client,
    ):
        await client.register()
        for name, (files, settings) in functions.items():
            deployed = await client.deploy(name, archive=_packed(files), settings={**settings, "network": "egress"})
            assert deployed.status == 201, (deployed, platform.logs())
            answer = (await client.invoke(name, attempts)).json
            assert answer["success"], (answer, platform.logs())
            result = answer["result"]
            assert (orjson.loads(result["body"]) if name == "web" else result) == seen

        label = f"label=containerpub.installation={platform.installation}"
        listed = ("docker", "ps", "--all", "--filter", label, "--format", '{{.Label "containerpub.worker"}}')
        (killed,) = set(subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split())
        platform.kill("worker-1")
        platform.kill("api")
        platform.change(FUNCTION_EGRESS="false")
        platform.start("api")
        platform.start("worker-2")
        await platform.ready()
        async with asyncio.timeout(60):
            while killed in subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split():
                await asyncio.sleep(0.2)

        answer = await client.invoke("handler", attempts)
        assert (answer.status, answer.json["code"]) == (503, "sandbox_start_failed"), answer
        async with asyncio.timeout(20):
            told = ""
            while "FUNCTION_EGRESS" not in told:
                told = (await client.call("GET", "/api/functions/handler/invocations")).body.decode()
        refused = await client.deploy("other", {"main.py": _HANDLER}, settings={"network": "egress"})
        assert (refused.status, refused.json["field"]) == (422, "network"), refused
        await platform.stop()
        assert subprocess.run(listed, capture_output=True, text=True, check=True).stdout == ""
        networks = ("docker", "network", "ls", "--quiet", "--filter", label)
        assert subprocess.run(networks, capture_output=True, text=True, check=True).stdout == ""


def _packed(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content.encode()))
    return buffer.getvalue()
