"""Looks up the addresses of names that callbacks go to, in threads of its own.

The event loop has few threads. A name whose servers do not answer would hold one for as long as the name's owner likes,
and hold up the callbacks of all other users.
"""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor

from aiohttp.abc import AbstractResolver, ResolveResult


class Names(AbstractResolver):
    """:param threads: look-ups at a time. A look-up whose caller gave up keeps its thread until it ends."""

    def __init__(self, *, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, "names")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads, socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG
        )
        # Callbacks never go to an address with a zone: it is valid on one link only.
        return [
            ResolveResult(
                hostname=host, host=str(address[0]), port=port, family=kind, proto=proto, flags=socket.AI_NUMERICHOST
            )
            for kind, _, proto, _, address in found
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
