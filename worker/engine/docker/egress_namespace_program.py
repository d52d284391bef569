"""The program of an egress namespace: it closes its network for all addresses but those outside, and then sleeps.

It cannot import the platform's packages, and the image has neither ``nft`` nor ``iptables``: so it sends the rules to
the kernel as these would, as messages over a netlink socket. One batch makes all rules or none. Its argument is JSON:
``outside``, ranges of addresses as pairs of numbers, and ``new_per_s``.
"""

import json
import os
import socket
import struct
import sys

_NOBODY = 65534
_LOOPBACK = 1  # the first interface of every network namespace
_DNS = (53).to_bytes(2, "big")
_TABLE, _SET = "containerpub", "outside"
_AT_ONCE = 500  # intervals in a message, whose attributes have 64 KiB at most

# linux/netlink.h, linux/netfilter.h
_NETFILTER = 12  # which no constant of socket names
_REQUEST, _ACK, _CREATE, _APPEND, _NESTED, _ERROR = 0x1, 0x4, 0x400, 0x800, 0x8000, 2
_INET, _IPV4 = 1, 2
_INPUT, _OUTPUT = 1, 3
_DROP, _ACCEPT = 0, 1
# linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
_BATCH_BEGIN, _BATCH_END, _NFTABLES = 0x10, 0x11, 10
_NEW_TABLE, _NEW_CHAIN, _NEW_RULE, _NEW_SET, _NEW_ELEMENTS = 0, 3, 6, 9, 12
_IIF, _OIF, _SKUID, _NFPROTO, _L4PROTO = 4, 5, 10, 15, 16
_ESTABLISHED_OR_RELATED, _NEW = 0x2 | 0x4, 0x8
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_DESTINATION = 16  # of an IPv4 address in its header
_INTERVAL, _INTERVAL_END = 0x4, 0x1
_OVER = 1
_TCP_RESET, _UNREACHABLE, _NO_ROUTE = 1, 2, 0


def attribute(kind: int, value: "bytes | str | int") -> bytes:
    """One attribute; numbers are four bytes in network order, as nearly all of these are."""
    if isinstance(value, str):
        value = value.encode() + b"\0"
    elif isinstance(value, int):
        value = struct.pack(">I", value)
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(attributes))


def expression(name: str, *attributes: bytes) -> bytes:
    return nested(1, attribute(1, name), nested(2, *attributes))


def data(kind: int, value: bytes) -> bytes:
    return nested(kind, attribute(1, value))


def equals(value: bytes) -> bytes:
    return expression("cmp", attribute(1, 1), attribute(2, 0), data(3, value))


def meta(key: int, value: bytes) -> bytes:
    """``value`` is as wide as the key, in this machine's order."""
    return expression("meta", attribute(1, 1), attribute(2, key)) + equals(value)


def header(base: int, offset: int, size: int) -> bytes:
    return expression("payload", attribute(1, 1), attribute(2, base), attribute(3, offset), attribute(4, size))


def state(bits: int) -> bytes:
    """The packet belongs to a connection in one of these states."""
    none = struct.pack("=I", 0)
    return (
        expression("ct", attribute(1, 1), attribute(2, 0))
        + expression(
            "bitwise",
            attribute(1, 1),
            attribute(2, 1),
            attribute(3, 4),
            data(4, struct.pack("=I", bits)),
            data(5, none),
        )
        + expression("cmp", attribute(1, 1), attribute(2, 1), data(3, none))
    )


def over(per_s: int) -> bytes:
    """More than so many packets a second came by here."""
    rate = (attribute(1, struct.pack(">Q", per_s)), attribute(2, struct.pack(">Q", 1)))
    return expression("limit", *rate, attribute(3, per_s), attribute(4, 0), attribute(5, _OVER))


def verdict(code: int) -> bytes:
    return expression("immediate", attribute(1, 0), nested(2, nested(2, attribute(1, code))))


def reject(kind: int) -> bytes:
    return expression("reject", attribute(1, kind), attribute(2, bytes((_NO_ROUTE,))))


def number(value: int) -> bytes:
    return struct.pack("=I", value)


def message(sequence: int, kind: int, flags: int, family: int, resource: int, body: bytes = b"") -> bytes:
    body = struct.pack(">BBH", family, 0, resource) + body
    return struct.pack("=IHHII", 16 + len(body), kind, _REQUEST | flags, sequence, 0) + body


def rules(outside: "list[list[int]]", new_per_s: int) -> "list[tuple[int, bytes]]":
    """The messages that make the table, each as its kind and its body."""

    def chain(name: str, hook: int) -> "tuple[int, bytes]":
        named = attribute(1, _TABLE) + attribute(3, name) + attribute(7, "filter")
        return _NEW_CHAIN, named + nested(4, attribute(1, hook), attribute(2, 0)) + attribute(5, _DROP)

    def rule(name: str, *expressions: bytes) -> "tuple[int, bytes]":
        return _NEW_RULE, attribute(1, _TABLE) + attribute(2, name) + nested(4, *expressions)

    def element(address: int, flags: int) -> bytes:
        return nested(1, data(1, struct.pack(">I", address)), attribute(3, flags))

    def elements(ranges: "list[list[int]]") -> "tuple[int, bytes]":
        # The end of an interval is the first address after it. None ends with the last of all.
        bounds = [element(first, 0) + element(last + 1, _INTERVAL_END) for first, last in ranges]
        return _NEW_ELEMENTS, attribute(1, _TABLE) + attribute(2, _SET) + attribute(4, 1) + nested(3, *bounds)

    is_outside = meta(_NFPROTO, bytes((_IPV4,))) + header(_NETWORK_HEADER, _DESTINATION, 4)
    is_outside += expression("lookup", attribute(1, _SET), attribute(2, 1), attribute(4, 1))
    to_dns = header(_TRANSPORT_HEADER, 2, 2) + equals(_DNS)
    set_of_addresses = attribute(1, _TABLE) + attribute(2, _SET) + attribute(3, _INTERVAL) + attribute(4, 7)
    set_of_addresses += attribute(5, 4) + attribute(10, 1)
    made = [
        (_NEW_TABLE, attribute(1, _TABLE)),
        (_NEW_SET, set_of_addresses),
        *(elements(outside[at : at + _AT_ONCE]) for at in range(0, len(outside), _AT_ONCE)),
        chain("in", _INPUT),
        rule("in", meta(_IIF, number(_LOOPBACK)), verdict(_ACCEPT)),
        rule("in", state(_ESTABLISHED_OR_RELATED), verdict(_ACCEPT)),
        chain("out", _OUTPUT),
        rule("out", meta(_OIF, number(_LOOPBACK)), verdict(_ACCEPT)),
        # Root in here is the engine alone, whose resolver asks on behalf of the function.
        rule("out", meta(_SKUID, number(0)), to_dns, verdict(_ACCEPT)),
    ]
    for server in nameservers():
        to_server = header(_NETWORK_HEADER, _DESTINATION, 4) + equals(server)
        made += [rule("out", meta(_NFPROTO, bytes((_IPV4,))), to_server, to_dns, verdict(_ACCEPT))]
    made += [
        rule("out", is_outside, state(_NEW), over(new_per_s), verdict(_DROP)),
        rule("out", is_outside, verdict(_ACCEPT)),
        # So that what is refused fails at once and not after a timeout.
        rule("out", meta(_L4PROTO, bytes((socket.IPPROTO_TCP,))), reject(_TCP_RESET)),
        rule("out", reject(_UNREACHABLE)),
    ]
    return made


def nameservers() -> "list[bytes]":
    """The name servers that the function asks itself. An engine with its own resolver names one on loopback instead."""
    found = []
    with open("/etc/resolv.conf", encoding="utf-8", errors="replace") as file:
        for line in file:
            words = line.split()
            if len(words) > 1 and words[0] == "nameserver":
                try:
                    found.append(socket.inet_pton(socket.AF_INET, words[1]))
                except OSError:
                    continue
    return [address for address in found if address[0] != 127]


def apply(made: "list[tuple[int, bytes]]") -> None:
    """Raises :class:`OSError` if the kernel refuses one of them; then there are none."""
    batch = message(0, _BATCH_BEGIN, 0, 0, _NFTABLES)
    for sequence, (kind, body) in enumerate(made, 1):
        flags = _ACK | _CREATE | (_APPEND if kind == _NEW_RULE else 0)
        batch += message(sequence, _NFTABLES << 8 | kind, flags, _INET, 0, body)
    batch += message(len(made) + 1, _BATCH_END, 0, 0, _NFTABLES)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER) as kernel:
        kernel.bind((0, 0))
        kernel.settimeout(10)
        kernel.send(batch)
        acknowledged = 0
        while acknowledged < len(made):
            answers = kernel.recv(1 << 20)
            while answers:
                size, kind, _, sequence, _ = struct.unpack_from("=IHHII", answers)
                if kind == _ERROR:
                    code = struct.unpack_from("=i", answers, 16)[0]
                    if code:
                        raise OSError(-code, f"{os.strerror(-code)} (rule {sequence})")
                    acknowledged += 1
                answers = answers[(size + 3) & ~3 :]


def main() -> None:
    told = json.loads(sys.argv[1])
    try:
        apply(rules(told["outside"], told["new_per_s"]))
    except OSError as error:
        sys.exit(f"the kernel does not take the rules of nf_tables: {error}")
    os.setgroups([])
    os.setgid(_NOBODY)
    os.setuid(_NOBODY)  # and with that no capability is left
    os.write(1, b"ready\n")
    os.execvp("sleep", ["sleep", "infinity"])  # noqa: S606


if __name__ == "__main__":
    main()
