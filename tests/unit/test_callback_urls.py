"""Where callbacks may go: every way of writing an address that is not public is refused; and how they are signed."""

from __future__ import annotations

import base64
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.addresses import is_public, may_be_called
from shared.callbacks.signature import new_secret, signed_headers
from shared.callbacks.url import MAX_CHARS, checked_url
from shared.errors import Invalid
from shared.functions import project_settings
from shared.settings import load

_V4 = """
0.0.0.0 0.0.0.1 0.255.255.255 10.0.0.0 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.1
127.0.0.2 127.255.255.255 169.254.0.1 169.254.169.254 169.254.170.2 172.16.0.1 172.17.0.1 172.31.255.255 192.0.0.1
192.0.0.192 192.0.2.1 192.88.99.1 192.168.0.1 192.168.255.255 198.18.0.1 198.19.255.255 198.51.100.7 203.0.113.9
224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255 168.63.129.16
"""
_V6 = """
:: ::1 ::2 fe80::1 febf::1 fec0::1 fc00::1 fd00::1 fd00:ec2::254 ff02::1 ff0e::1 100::1 2001:db8::1 2001:10::1
2001:20::1 2001:2::1 3fff::1 5f00::1 64:ff9b:1::1 4000::1 2001:0:1:2:3:4:5:6 2002:808:808::1
2620:0:1::5efe:a00:1 2a00:1450::200:5efe:7f00:1
"""
PRIVATE_V4, PRIVATE_V6 = _V4.split(), _V6.split()


def embedded(address: str) -> list[str]:
    """IPv6 addresses that lead to an IPv4 one."""
    four = int(IPv4Address(address))
    high, low = four >> 16, four & 0xFFFF
    return [
        f"::ffff:{address}",
        f"::ffff:{high:x}:{low:x}",
        f"::{address}",
        f"::ffff:0:{address}",
        f"64:ff9b::{address}",
        f"64:ff9b::{high:x}:{low:x}",
        f"2002:{high:x}:{low:x}::1",
        f"2001:0:4136:e378:8000:63bf:{high ^ 0xFFFF:x}:{low ^ 0xFFFF:x}",
    ]


def spellings(address: str) -> list[str]:
    """Ways of writing an IPv4 address that one parser or another takes."""
    a, b, c, d = (int(part) for part in address.split("."))
    number = int(IPv4Address(address))
    return [
        str(number),
        hex(number),
        hex(number).upper(),
        f"0{number:o}",
        f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        f"0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}",
        f"{a}.{b}.{c * 256 + d}",
        f"{a}.{b * 65536 + c * 256 + d}",
        f"{a:03}.{b:03}.{c:03}.{d:03}",
        f"{address}.",
        f"{address}..",
        f".{address}",
        "".join(chr(0xFF10 + int(char)) if char.isdigit() else char for char in address),
        address.replace(".", "\u3002"),
        address.replace(".", "%2e"),
        f"user@{address}",
        f"user:password@{address}",
        f"example.com@{address}",
        f"example.com\\@{address}",
        f"{address}\\.example.com",
        f"[{address}]",
        f"{address}%00.example.com",
        f"{address}:99999",
    ]


HOSTS = [
    *PRIVATE_V4,
    *(f"[{address}]" for address in PRIVATE_V6),
    *(
        f"[{each}]"
        for address in ("127.0.0.1", "10.0.0.1", "169.254.169.254", "100.64.0.1")
        for each in embedded(address)
    ),
    *(each for address in ("127.0.0.1", "10.1.2.3", "169.254.169.254", "192.168.7.8") for each in spellings(address)),
    *("localhost", "LOCALHOST", "localhost.", "a.localhost", "x.y.localhost", "localhost%2f"),
    *(
        "\u2460\u2461\u2466.\u24ea.\u24ea.\u2460",
        "\uff4cocalhost",
        "127\u30020\u30020\u30021",
        "0",
        "0x0",
        "1",
        "127.1",
    ),
    *("[fe80::1%25eth0]", "[fe80::1%eth0]", "[::1%251]", "[2606:4700::1%25eth0]", "[::1", "::1", "[::1]x", "[v1.x]"),
    *(
        "",
        " ",
        "example..com",
        "-x.example",
        "a b",
        "x" * 64 + ".example",
        ".".join(["x" * 60] * 5),
        "exa_mple.1",
        "a.0x7f",
    ),
]
URLS = [
    *(f"{scheme}://{host}/hook" for host in HOSTS for scheme in ("http", "https")),
    *(
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "example.com",
        "//example.com/",
        "http:example.com",
    ),
    *(
        "http:///example.com",
        "https:/example.com",
        "http:\\\\example.com",
        "javascript:alert(1)",
        "",
        "http://",
        "https://?x",
    ),
    *("http://example.com:0/", "http://example.com:65536/", "http://example.com:x/", "http://example.com/\r\nX: y"),
    *("http://example.com/\x00", "http://example.com/\t", " http://example.com/", "http://example.com/\u00e9"),
    "https://example.com/" + "x" * MAX_CHARS,
]


def test_s1_there_are_enough_spellings() -> None:
    assert len(set(URLS)) >= 200


@pytest.mark.parametrize("url", URLS)
def test_s1_url_that_leads_inward_or_is_none_is_refused(url: str) -> None:
    with pytest.raises(Invalid) as raised:
        checked_url(url, ())
    assert (raised.value.code, raised.value.field) == ("callback_refused", "callback_url")


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "http://example.com:8080/hook?job=1&x=%2F#part",
        "HTTPS://Example.COM/a",
        "https://xn--bcher-kva.example/",
        "https://1.1.1.1/",
        "https://9.255.255.255:444/",
        "https://[2606:4700:4700::1111]/",
        "https://[64:ff9b::1.1.1.1]/",
        "https://my_host.example-1.com/",
        "https://127.0.0.1.example.com/",
    ],
)
def test_public_addresses_and_names_are_taken(url: str) -> None:
    checked_url(url, ())


def test_networks_that_the_operator_allows_are_taken_and_no_others() -> None:
    allow = load({"CALLBACK_ALLOW": "10.1.0.0/16, fd00::/8,127.0.0.1"}).callback_networks
    for host in ("10.1.2.3", "[fd00::5]", "127.0.0.1", "localhost"):
        checked_url(f"http://{host}:81/", allow)
    for host in ("10.2.0.1", "[fc00::5]", "127.0.0.2", "[::1]", "[::ffff:127.0.0.1]", "127.1", "2130706433"):
        with pytest.raises(Invalid):
            checked_url(f"http://{host}:81/", allow)


@given(st.ip_addresses())
def test_nothing_is_public_that_the_standard_library_holds_for_private(address: IPv4Address | IPv6Address) -> None:
    nat64 = isinstance(address, IPv6Address) and address in ip_network("64:ff9b::/96")
    assert not is_public(address) or nat64 or (address.is_global and not address.is_multicast)


@given(st.ip_addresses(v=4))
def test_ipv6_address_that_carries_an_ipv4_one_is_no_more_public_than_that(address: IPv4Address) -> None:
    for each in embedded(str(address)):
        assert not is_public(ip_address(each)) or is_public(address), each


def test_what_is_no_address_may_not_be_called() -> None:
    everything = (IPv4Network("0.0.0.0/0"),)
    assert not any(may_be_called(text, everything) for text in ("", "x", "127.1", "1.2.3.4 ", "::1"))
    assert may_be_called("127.0.0.1", everything)


def test_url_in_the_settings_of_a_function_is_checked_too() -> None:
    file = b'callback_url = "http://169.254.169.254/"'
    with pytest.raises(Invalid) as raised:
        project_settings(load({}), file_name="containerpub.toml", file=file, overrides=None)
    assert raised.value.code == "callback_refused"


def test_s5_signature_is_the_one_of_the_published_vector() -> None:
    headers = signed_headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_s5_signature_changes_with_whatever_was_tampered_with() -> None:
    secret = new_secret()
    assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 32

    def signature(identifier: str = "a", timestamp: int = 1, body: bytes = b"{}", key: str = secret) -> str:
        return signed_headers(identifier, timestamp, body, [key])["webhook-signature"]

    assert signature() == signature()
    changed = [signature(identifier="b"), signature(timestamp=2), signature(body=b"{ }"), signature(key=new_secret())]
    assert len({signature(), *changed}) == 5
    assert signed_headers("a", 1, b"{}", [secret, new_secret()])["webhook-signature"].split(" ")[0] == signature()
