"""Which URLs a callback may go to, as far as the text of the URL tells without a look-up of its name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from yarl import URL

from shared.addresses import Network, may_be_called
from shared.errors import Invalid

MAX_CHARS = 2048
_PRINTABLE = re.compile(r"[\x21-\x7e]+")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


def checked_url(text: str, allow: Sequence[Network], *, field: str = "callback_url") -> URL:
    """``text`` as a URL that a callback may go to. The addresses of a name in it are checked when a callback connects.

    :param allow: networks that may be called although they are not public.
    :raises Invalid: ``callback_refused``, saying why.
    """

    def refused(why: str) -> Invalid:
        return Invalid(f"{field}: {why}", code="callback_refused", field=field)

    if len(text) > MAX_CHARS:
        raise refused(f"a URL may have {MAX_CHARS} characters.")
    if not _PRINTABLE.fullmatch(text) or "\\" in text:
        raise refused("write it in ASCII, without spaces or backslashes; a name in its xn-- form.")
    # Several parsers read the URL on its way. Refuse a URL that two of them could read differently.
    authority = re.match(r"(?i:https?)://([^/?#]+)", text)
    if authority is None:
        raise refused("it must start with http:// or https:// and name a host.")
    if "@" in authority[1]:
        raise refused("it must not have a user or password in it.")
    if "%" in authority[1]:
        raise refused("write the host without escapes.")
    try:
        # Kept to the byte: written anew, %2F or %3A in a signed link would not be what was signed.
        url = URL(text, encoded=True)
        host, port = url.raw_host, url.port
    except ValueError as error:
        raise refused("it is no URL.") from error
    if not host or not port or not 1 <= port <= 65535:
        raise refused("it must name a host, and a port from 1 to 65535 if any.")
    if ("[" in authority[1]) != (":" in host):
        raise refused("only an IPv6 address stands in brackets.")
    why = _refused_host(host.lower(), allow)
    if why is not None:
        raise refused(why)
    return url


def _refused_host(host: str, allow: Sequence[Network]) -> str | None:
    """Why a host may not be called; None if it may, or if only a look-up can tell."""
    address: IPv4Address | IPv6Address
    if ":" in host:
        try:
            address = IPv6Address(host)
        except AddressValueError:
            return "its host is no IPv6 address."
        return None if may_be_called(str(address), allow) else "its address is not a public one."
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            address = IPv4Address(host)
        except AddressValueError:
            return "write an IPv4 address as four decimal numbers."
        return None if may_be_called(str(address), allow) else "its address is not a public one."
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        return "its host is no name."
    if labels[-1] == "localhost" and not may_be_called("127.0.0.1", allow):
        return "its address is not a public one."
    return None
