"""Which addresses belong to single machines of the public internet."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address


def _networks(text: str) -> tuple[IPv4Network, ...]:
    return tuple(IPv4Network(one) for one in text.split())


# The registry of special-purpose addresses (RFC 6890 and its successors): none is a single machine of the internet.
NOT_PUBLIC = _networks(
    "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24"
    " 192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4"
)
# A public address at which a cloud answers its machines with their secrets.
METADATA = _networks("168.63.129.16/32")

_UNICAST = IPv6Network("2000::/3")
# Ranges of global unicast that are not public: protocols' own and Teredo, documentation, 6to4, documentation again.
_UNICAST_NOT_PUBLIC = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))
_NAT64 = IPv6Network("64:ff9b::/96")
_ISATAP = (0x00005EFE, 0x02005EFE)


def embedded_in(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that ``address`` leads to: mapped, 6to4, Teredo, NAT64."""
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


def is_public(address: Address) -> bool:
    """Whether ``address`` is global unicast. An IPv6 address that stands for an IPv4 one counts only as NAT64."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in (*NOT_PUBLIC, *METADATA))
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    if address.scope_id is not None or address not in _UNICAST:
        return False
    if int(address) >> 32 & 0xFFFFFFFF in _ISATAP:
        return False
    return not any(address in network for network in _UNICAST_NOT_PUBLIC)


def may_be_called(address: str, allow: Iterable[Network]) -> bool:
    """Whether a callback may go to ``address``: public, or in a network that the operator allows."""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    return is_public(ip) or any(ip.version == network.version and ip in network for network in allow)
