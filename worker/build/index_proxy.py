"""The one way out of a build: a proxy that passes on TLS to the hosts of a package index and nothing else.

It listens on a Unix socket that is mounted into a container without any network. It serves only ``CONNECT``, resolves
names itself, and refuses a name that does not lead to a public address. So an allowed name whose owner points it at an
internal address opens nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Callable, Collection
from pathlib import Path
from types import TracebackType
from typing import Self

from shared.addresses import embedded_in

_REQUEST = re.compile(rb"CONNECT ([A-Za-z0-9.-]{1,253}):([0-9]{1,5}) HTTP/1\.[01]\r?\n", re.ASCII)
_MAX_HEAD_BYTES = 8 * 1024
_HEAD_TIMEOUT_S = 10.0
_CONNECT_TIMEOUT_S = 15.0
_CHUNK = 64 * 1024

# Addresses for documentation belong to no machine. Some intercepting gateways answer at them, and behind such a gateway
# a build has no other way to its index.
_NOBODYS = tuple(
    ipaddress.ip_network(net) for net in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
)
_UNICAST = ipaddress.ip_network("2000::/3")


def leads_outside(address: str) -> bool:
    """Whether ``address`` is a unicast address that cannot be this machine, its networks or its cloud's metadata."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        carried = embedded_in(ip)
        if carried is not None:
            return leads_outside(str(carried))
        if ip not in _UNICAST:
            return False
    if ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback or ip.is_link_local:
        return False
    return ip.is_global or any(ip.version == net.version and ip in net for net in _NOBODYS)


class _Refused(Exception):
    """The answer to a request that is not passed on."""


class EgressProxy:
    """Listens on ``path`` between :meth:`open` and :meth:`close`.

    :param path: the Unix socket to make; anyone who reaches it may use it.
    :param hosts: names that may be reached, on ``port`` only.
    :param log: gets every refusal, with the reason.
    :param max_bytes: both directions of all connections together.
    :param max_connections: at a time; further ones are refused.
    :param may_reach: judges a resolved address.
    """

    def __init__(
        self,
        path: Path,
        hosts: Collection[str],
        log: Callable[[str], None],
        *,
        port: int = 443,
        max_bytes: int = 2 * 1024**3,
        max_connections: int = 32,
        idle_timeout_s: float = 60.0,
        may_reach: Callable[[str], bool] = leads_outside,
    ) -> None:
        self._path = path
        self._hosts = frozenset(host.lower() for host in hosts)
        self._log = log
        self._port = port
        self._left = max_bytes
        self._max_connections = max_connections
        self._idle_timeout_s = idle_timeout_s
        self._may_reach = may_reach
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._accept, self._path, limit=_MAX_HEAD_BYTES)
        # the container's user has another uid; the folder decides which processes get here
        self._path.chmod(0o666)

    async def close(self) -> None:
        """Stop listening and cut every connection. Idempotent."""
        if self._server is None:
            return
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        self._server = None
        await asyncio.to_thread(self._path.unlink, missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            # a peer that went away, or close(): asyncio would log a cancelled callback as an error
            pass
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            host = await self._request(reader)
            far_reader, far_writer = await self._connect(host)
        except _Refused as refusal:
            self._log(f"network access refused: {refusal}")
            reason = str(refusal).encode("ascii", "backslashreplace")
            writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n" % len(reason) + reason)
            await writer.drain()
            return
        try:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            # one limit for both directions: a long download is not idle because nothing is sent
            async with asyncio.timeout(self._idle_timeout_s) as limit, asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, far_writer, limit))
                pumps.create_task(self._pump(far_reader, writer, limit))
        except* (OSError, TimeoutError, _Refused) as group:
            for error in group.exceptions:
                if isinstance(error, _Refused):
                    self._log(f"network access ended: {error}")
        finally:
            far_writer.transport.abort()

    async def _request(self, reader: asyncio.StreamReader) -> str:
        """Read a request's head; the host it asks for, if that is allowed."""
        if len(self._connections) > self._max_connections:
            raise _Refused(f"more than {self._max_connections} connections at a time")
        try:
            async with asyncio.timeout(_HEAD_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError) as error:
            raise _Refused("not an HTTP request") from error
        match = _REQUEST.match(head)
        if match is None:
            raise _Refused(f"only CONNECT is served, not {head[:60]!r}")
        host, port = match[1].decode().lower().removesuffix("."), int(match[2])
        if host not in self._hosts:
            raise _Refused(f"{host} is not a host of the package index")
        if port != self._port:
            raise _Refused(f"port {port} of {host}; only {self._port} is open")
        return host

    async def _connect(self, host: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, self._port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise _Refused(f"{host} cannot be resolved") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        allowed = [address for address in addresses if self._may_reach(address)]
        if not allowed:
            raise _Refused(f"{host} does not lead to a public address")
        for address in allowed:
            try:
                async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                    return await asyncio.open_connection(address, self._port, limit=_CHUNK)
            except OSError:
                continue
        raise _Refused(f"{host} does not answer")

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, limit: asyncio.Timeout) -> None:
        loop = asyncio.get_running_loop()
        while data := await source.read(_CHUNK):
            self._left -= len(data)
            if self._left < 0:
                raise _Refused("more bytes than a build may transfer")
            target.write(data)
            await target.drain()
            limit.reschedule(loop.time() + self._idle_timeout_s)
        if target.can_write_eof():
            target.write_eof()
