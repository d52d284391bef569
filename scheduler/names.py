"""Addresses of the names that callbacks go to, looked up in threads of their own.

The event loop's own threads are few. Names whose servers do not answer would hold them for as long as their owners
like, and hold up everybody else's callbacks with them.
"""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor

from aiohttp.abc import AbstractResolver, ResolveResult


class Names(AbstractResolver):
    """:param threads: look-ups at a time; one that was given up goes on in its thread until it ends."""

    def __init__(self, *, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, "names")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads, socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG
        )
        # An address with a zone is of one link only, and would not be called in any case.
        return [
            ResolveResult(
                hostname=host, host=str(address[0]), port=port, family=kind, proto=proto, flags=socket.AI_NUMERICHOST
            )
            for kind, _, proto, _, address in found
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
