"""The address of the client that made a request, also through proxies."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address

from aiohttp import web

from api.keys import SETTINGS
from shared.addresses import Address, Network

log = logging.getLogger(__name__)

_HEADER = "X-Forwarded-For"
_MOST_HOPS = 32


class _Told:
    """Whether this process has warned of a proxy that it does not trust."""

    untrusted = False


def client_address(request: web.Request) -> str:
    """The address that limits count by: that of the connection, or the one that trusted proxies tell of."""
    remote = request.remote or ""
    given = request.headers.getall(_HEADER, ())
    if not given:
        return remote
    trusted = request.app[SETTINGS].proxy_networks
    found = forwarded_for(remote, given, trusted)
    if found is None:
        if not _Told.untrusted:
            _Told.untrusted = True
            log.warning("a proxy forwards requests and is not in TRUSTED_PROXIES", extra={"address": remote})
        return remote
    return found


def forwarded_for(remote: str, given: Sequence[str], trusted: Sequence[Network]) -> str | None:
    """For which address the nearest proxies that are trusted forwarded a request; None if ``remote`` is none of them.

    Each proxy appends the address that it saw to ``X-Forwarded-For``. So the header is read from its end, and what
    stands before the first address that is no trusted proxy's was written by the client.

    :param remote: where the connection comes from. :param given: the values of the header.
    """
    nearest = _parsed(remote)
    if nearest is None or not _is_trusted(nearest, trusted):
        return None
    found = nearest
    for text in reversed(",".join(given).split(",")[-_MOST_HOPS:]):
        address = _parsed(text.strip())
        if address is None:
            break
        found = address
        if not _is_trusted(address, trusted):
            break
    return str(found)


def _parsed(text: str) -> Address | None:
    """An address as proxies write it, perhaps with a port: ``192.0.2.1:80``, ``[2001:db8::1]:80``."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _is_trusted(address: Address, trusted: Sequence[Network]) -> bool:
    return any(address.version == network.version and address in network for network in trusted)
