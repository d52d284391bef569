"""The addresses outside: those that a function with ``network = "egress"`` may reach."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network

from shared.addresses import NOT_PUBLIC

Range = tuple[int, int]
"""The first and the last of consecutive addresses, as numbers."""

_ALL: Range = (0, 2**32 - 1)


def _networks(text: str) -> tuple[IPv4Network, ...]:
    return tuple(IPv4Network(one) for one in text.split())


# No setting can allow these: this machine, machines on the same link, and the addresses at which clouds answer a
# machine with its secrets: link-local ones, and the other ones that three clouds use.
_NEVER = _networks(
    "0.0.0.0/8 127.0.0.0/8 224.0.0.0/3 169.254.0.0/16 168.63.129.16/32 100.100.100.200/32 192.0.0.192/32"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressPolicy:
    """The operator's rules for the network of functions.

    :param permitted: whether a function gets one if it asks for it.
    :param allow: networks that are reached although they are not public.
    :param deny: networks that are not reached although they are public; these win.
    :param platform: host names and addresses of the platform's own servers, which are never reached.
    :param new_per_s: connections that one sandbox may begin a second.
    """

    permitted: bool = True
    allow: tuple[IPv4Network, ...] = ()
    deny: tuple[IPv4Network, ...] = ()
    platform: tuple[str, ...] = ()
    new_per_s: int = 50


def outside(policy: EgressPolicy, own: Iterable[IPv4Network]) -> list[Range]:
    """The ranges that functions may reach, in order, without overlaps: public addresses and ``allow``, without
    ``deny``, ``own`` and the ranges that no setting can allow."""
    ranges = [_ALL]
    for network in NOT_PUBLIC:
        ranges = _without(ranges, network)
    ranges = _joined(ranges, policy.allow)
    for network in (*policy.deny, *own, *_NEVER):
        ranges = _without(ranges, network)
    return ranges


def _bounds(network: IPv4Network) -> Range:
    return int(network.network_address), int(network.broadcast_address)


def _without(ranges: Iterable[Range], network: IPv4Network) -> list[Range]:
    begin, end = _bounds(network)
    left = []
    for first, last in ranges:
        for part in ((first, min(last, begin - 1)), (max(first, end + 1), last)):
            if part[0] <= part[1]:
                left.append(part)
    return left


def _joined(ranges: Iterable[Range], networks: Iterable[IPv4Network]) -> list[Range]:
    joined: list[Range] = []
    for first, last in sorted([*ranges, *map(_bounds, networks)]):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return joined
