"""A machine outside: a network namespace on this one, with a server that answers on several addresses."""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Self

from tests.machine import lacks

NAMED = "192.0.2.80"
"""The address of every name, says the name server at the private address of the other machine."""
# Answers with its name and closes; says which of its addresses was asked. Beside that, a name server.
_SERVER = """
import socket, sys, threading
names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
names.bind((sys.argv[2], 53))
def name():
    while True:
        query, peer = names.recvfrom(512)
        question = query[12 : query.index(0, 12) + 5]
        has = question[-4:] == bytes((0, 1, 0, 1))  # A, IN
        head = query[:2] + bytes((0x81, 0x80, 0, 1, 0, has, 0, 0, 0, 0))
        record = bytes((0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)) + socket.inet_aton(sys.argv[1])
        names.sendto(head + question + (record if has else b""), peer)
threading.Thread(target=name, daemon=True).start()
tcp = socket.create_server(("0.0.0.0", 0), backlog=100)
port = tcp.getsockname()[1]
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("0.0.0.0", port))
udp.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
def answer():
    while True:
        client, _ = tcp.accept()
        print(client.getsockname()[0], flush=True)
        client.sendall(b"outside")
        client.close()
threading.Thread(target=answer, daemon=True).start()
print(port, flush=True)
while True:
    _, ancillary, _, peer = udp.recvmsg(64, 64)
    print(socket.inet_ntoa(ancillary[0][2][8:12]), flush=True)
    udp.sendmsg([b"outside"], [(socket.IPPROTO_IP, 8, bytes(4) + ancillary[0][2][4:8] + bytes(4))], 0, peer)
"""


@dataclass(kw_only=True)
class OuterWorld:
    """``network`` lies outside only by configuration: it is one of those for benchmarks. In it are this machine itself,
    ``here``, and of the other one ``server``, ``platform`` and ``denied``. The other one also has the addresses
    ``private`` and ``link_local``, to which this machine has routes. It listens at ``port`` on all of them."""

    network: IPv4Network
    private: str
    link_local: str
    port: int = 0
    visited: list[str] = field(default_factory=list)
    _name: str = field(default_factory=lambda: f"cpt{secrets.token_hex(4)}")

    @classmethod
    def somewhere(cls) -> Self:
        """At addresses that other test runs on this machine hardly have."""
        number = secrets.randbelow(2**13)
        return cls(
            network=IPv4Network((int(IPv4Address("198.18.0.0")) + number * 16, 28)),
            private=f"10.213.{number >> 8}.{number & 255}",
            link_local=f"169.254.{number >> 8}.{number & 255}",
        )

    @property
    def here(self) -> str:
        return str(self.network[1])

    @property
    def server(self) -> str:
        return str(self.network[2])

    @property
    def platform(self) -> str:
        return str(self.network[3])

    @property
    def denied(self) -> str:
        return str(self.network[4])

    @property
    def broadcast(self) -> str:
        return str(self.network.broadcast_address)

    def open(self) -> None:
        if shutil.which("ip") is None:
            lacks("the command ip is missing: apt-get install iproute2")
        name, inner = self._name, f"{self._name}i"
        self._ip("netns", "add", name)
        self._ip("link", "add", name, "type", "veth", "peer", "name", inner, "netns", name)
        self._ip("address", "add", f"{self.here}/{self.network.prefixlen}", "brd", "+", "dev", name)
        self._ip("link", "set", name, "up")
        for address in (self.server, self.platform, self.denied):
            self._ip("-n", name, "address", "add", f"{address}/{self.network.prefixlen}", "dev", inner)
        for address in (self.private, self.link_local):
            self._ip("-n", name, "address", "add", f"{address}/32", "dev", inner)
        self._ip("-n", name, "link", "set", "lo", "up")
        self._ip("-n", name, "link", "set", inner, "up")
        self._ip("-n", name, "route", "add", "default", "via", self.here)
        for address in (self.private, self.link_local):
            self._ip("route", "add", f"{address}/32", "via", self.server)
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-I", "-c", _SERVER, NAMED, self.private],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def close(self) -> None:
        process = getattr(self, "_process", None)
        if process is not None:
            process.kill()
            process.wait()
            self._reading.join()
            process.stdout.close()
        # The link goes with the namespace that its other end is in, but not at once.
        subprocess.run(["ip", "link", "delete", self._name], capture_output=True)
        subprocess.run(["ip", "netns", "delete", self._name], capture_output=True)

    def _read(self) -> None:
        for line in self._process.stdout:  # type: ignore[union-attr]
            self.visited.append(line.strip())

    @staticmethod
    def _ip(*arguments: str) -> None:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
        assert done.returncode == 0, (arguments, done.stderr)


class Listener:
    """TCP and UDP on every address of this machine, one port; ``visited`` has who came."""

    def __init__(self) -> None:
        self.visited: list[str] = []
        self._closing = False
        self._tcp = socket.create_server(("0.0.0.0", 0), backlog=100)
        self.port = int(self._tcp.getsockname()[1])
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("0.0.0.0", self.port))
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._accept, self._receive)]
        for thread in self._threads:
            thread.start()

    def _accept(self) -> None:
        while True:
            client, peer = self._tcp.accept()
            with client:
                if self._closing:
                    return
                self.visited.append(f"tcp {peer[0]}")
                client.sendall(b"inside")

    def _receive(self) -> None:
        while True:
            _, peer = self._udp.recvfrom(64)
            if self._closing:
                return
            self.visited.append(f"udp {peer[0]}")
            self._udp.sendto(b"inside", peer)

    def close(self) -> None:
        self._closing = True
        socket.create_connection(("127.0.0.1", self.port)).close()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
            end.sendto(b"end", ("127.0.0.1", self.port))
        for thread in self._threads:
            thread.join()
        self._tcp.close()
        self._udp.close()


def attempt_elsewhere(network: str, attempts: list[list[object]]) -> list[str]:
    """The same attempts as a function makes them, from a container in ``network`` that no egress namespace holds
    back."""
    from engines import BASE_IMAGE, FUNCTIONS

    source = (FUNCTIONS / "main.py").read_text()
    wanted = source[source.index("def reached(") : source.index("\n\n\n", source.index("def reached("))]
    program = f"import concurrent.futures, errno, json, socket, struct, sys\n{wanted}\n"
    program += "at_once = concurrent.futures.ThreadPoolExecutor(32)\n"
    program += "print(json.dumps(list(at_once.map(lambda one: reached(*one), json.loads(sys.argv[1])))))"
    done = subprocess.run(
        ["docker", "run", "--rm", "--network", network, BASE_IMAGE, "python3", "-c", program, json.dumps(attempts)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found
