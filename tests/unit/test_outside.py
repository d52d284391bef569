"""Where functions with a network may go, and who may have one."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, ip_address
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import Invalid, Misconfigured
from shared.functions import project_settings
from shared.settings import load
from worker.network.egress_policy import egress_policy, hosts_of
from worker.network.outside import EgressPolicy, Range, outside

_PUBLIC = EgressPolicy()
_NEVER = "0.0.0.0/8 127.0.0.0/8 224.0.0.0/3 169.254.0.0/16 168.63.129.16/32 100.100.100.200/32 192.0.0.192/32"
_ADDRESSES = st.integers(0, 2**32 - 1)
_NETWORKS = st.builds(
    lambda address, length: IPv4Network((address, length), strict=False), _ADDRESSES, st.integers(0, 32)
)


def _within(address: str | int, ranges: list[Range]) -> bool:
    return any(first <= int(IPv4Address(address)) <= last for first, last in ranges)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.0.0.1",
        "10.255.255.255",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.192",
        "192.168.0.1",
        "198.18.0.1",
        "203.0.113.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
    ],
)
def test_what_is_no_machine_of_the_public_net_is_not_outside(address: str) -> None:
    assert not _within(address, outside(_PUBLIC, ()))


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "9.255.255.255", "11.0.0.0", "172.32.0.0", "192.0.1.0", "223.255.255.255"]
)
def test_its_neighbours_are(address: str) -> None:
    assert _within(address, outside(_PUBLIC, ()))


@given(_ADDRESSES)
def test_nothing_is_outside_that_the_standard_library_holds_for_private(number: int) -> None:
    address = ip_address(number)
    assert not _within(number, outside(_PUBLIC, ())) or (address.is_global and not address.is_multicast)


@given(allow=st.lists(_NETWORKS, max_size=4), deny=st.lists(_NETWORKS, max_size=4), own=st.lists(_NETWORKS, max_size=4))
def test_the_platforms_own_and_what_is_denied_win_over_what_is_allowed(
    allow: list[IPv4Network], deny: list[IPv4Network], own: list[IPv4Network]
) -> None:
    ranges = outside(EgressPolicy(allow=tuple(allow), deny=tuple(deny)), own)
    for (_, last), (first, _) in pairwise(ranges):
        # Neither overlapping nor adjacent, as the kernel wants them.
        assert last + 1 < first
    closed = [*deny, *own, *map(IPv4Network, _NEVER.split())]
    for network in [*allow, *closed]:
        for edge in (network.network_address, network.broadcast_address):
            wanted = any(edge in one for one in allow) or _within(int(edge), outside(_PUBLIC, ()))
            assert _within(int(edge), ranges) == (wanted and not any(edge in one for one in closed))


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql://user:p%40ss@db.example:5432/x", ["db.example"]),
        ("postgresql://one:5432,two,[fd00::1]:5433/x", ["one", "two", "fd00::1"]),
        ("postgresql://user@/x?host=/run/postgresql", []),
        ("postgresql:///x?host=three,four&hostaddr=10.0.0.5", ["three", "four", "10.0.0.5"]),
        ("rediss://:secret@cache.example:6380/0", ["cache.example"]),
        ("unix:///run/docker.sock", []),
        ("unix://user@/run/redis.sock?db=1", []),
        ("tcp://10.0.0.7:2376", ["10.0.0.7"]),
        ("//registry.example:5000", ["registry.example"]),
        ("", []),
        ("//", []),
    ],
)
def test_hosts_of_a_url(url: str, hosts: list[str]) -> None:
    assert hosts_of(url) == hosts


def test_every_server_of_the_settings_is_the_platforms_own() -> None:
    settings = load(
        {
            "DATABASE_URL": "postgresql://db.example/x",
            "REDIS_URL": "redis://cache.example",
            "S3_ENDPOINT": "https://s3.example:9000",
            "DOCKER_HOST": "tcp://engine.example:2376",
            "PUBLIC_URL": "https://functions.example",
            "DOCKER_REGISTRY": "registry.example:5000/team",
            "FUNCTION_EGRESS": "off",
            "FUNCTION_EGRESS_ALLOW": "10.1.2.0/24, 10.9.9.9",
            "FUNCTION_EGRESS_DENY": "8.8.8.0/24",
            "FUNCTION_EGRESS_NEW_PER_SECOND": "7",
        }
    )
    names = ("cache", "db", "engine", "functions", "registry", "s3")
    assert egress_policy(settings) == EgressPolicy(
        permitted=False,
        allow=(IPv4Network("10.1.2.0/24"), IPv4Network("10.9.9.9/32")),
        deny=(IPv4Network("8.8.8.0/24"),),
        platform=tuple(f"{name}.example" for name in names),
        new_per_s=7,
    )


def test_a_network_that_is_none_is_a_mistake_of_the_settings() -> None:
    with pytest.raises(Misconfigured, match=r"10\.1\.2\.3/8 is no IPv4 network; write it as"):
        load({"FUNCTION_EGRESS_DENY": "10.1.2.3/8"})


def _asked_for(network: str, environment: dict[str, str]) -> str:
    file = f'network = "{network}"'.encode()
    found, _ = project_settings(load(environment), file_name="containerpub.toml", file=file, overrides=None)
    return found.network


def test_a_function_may_ask_for_a_network_unless_the_operator_or_the_engine_says_no() -> None:
    assert _asked_for("none", {"FUNCTION_EGRESS": "false", "ENGINE": "process"}) == "none"
    assert _asked_for("egress", {}) == "egress"
    for environment, said in (
        ({"FUNCTION_EGRESS": "false"}, "the operator"),
        ({"ENGINE": "process"}, "the engine process"),
    ):
        with pytest.raises(Invalid, match=said) as raised:
            _asked_for("egress", environment)
        assert (raised.value.code, raised.value.field) == ("invalid_settings", "network")
    with pytest.raises(Invalid, match="'none' or 'egress'"):
        _asked_for("host", {})
