"""The address that limits count by: no client can choose it, and a proxy that is trusted tells it."""

from __future__ import annotations

import pytest

from api.client_address import forwarded_for
from shared.errors import Misconfigured
from shared.settings import load

PROXIES = load({"TRUSTED_PROXIES": "10.0.0.0/8, 192.168.1.1, fd00::/8"}).proxy_networks


@pytest.mark.parametrize(
    ("remote", "forwarded", "expected"),
    [
        ("203.0.113.9", ("x",), None),
        ("203.0.113.9", ("198.51.100.1",), None),  # no proxy of ours: the client wrote this
        ("10.0.0.1", ("198.51.100.1",), "198.51.100.1"),
        ("10.0.0.1", ("1.1.1.1, 198.51.100.1",), "198.51.100.1"),  # the client wrote what stands before
        ("10.0.0.1", ("1.1.1.1", "198.51.100.1"), "198.51.100.1"),
        ("10.0.0.1", ("198.51.100.1, 192.168.1.1",), "198.51.100.1"),
        ("10.0.0.1", ("198.51.100.1, 192.168.1.2",), "192.168.1.2"),
        ("10.0.0.1", ("10.1.1.1, 10.2.2.2",), "10.1.1.1"),  # a client inside
        ("10.0.0.1", ("198.51.100.1:4711",), "198.51.100.1"),
        ("10.0.0.1", ("[2001:db8::1]:4711",), "2001:db8::1"),
        ("10.0.0.1", ("2001:DB8::1",), "2001:db8::1"),
        ("fd00::7", ("198.51.100.1",), "198.51.100.1"),
        ("::ffff:10.0.0.1", ("198.51.100.1",), "198.51.100.1"),
        ("10.0.0.1", ("unknown",), "10.0.0.1"),
        ("10.0.0.1", ("198.51.100.1, , 10.0.0.2",), "10.0.0.2"),
        ("10.0.0.1", ("1.2.3.4," * 5000 + "198.51.100.1",), "198.51.100.1"),
    ],
)
def test_the_address_is_the_one_that_trusted_proxies_saw(
    remote: str, forwarded: tuple[str, ...], expected: str | None
) -> None:
    assert forwarded_for(remote, forwarded, PROXIES) == expected


def test_without_the_setting_no_header_counts() -> None:
    assert forwarded_for("127.0.0.1", ("198.51.100.1",), load({}).proxy_networks) is None


def test_a_proxy_is_named_by_its_network() -> None:
    with pytest.raises(Misconfigured, match="TRUSTED_PROXIES"):
        load({"TRUSTED_PROXIES": "caddy"})
