"""What functions with a network must not reach: the platform's own servers, and the machines that it runs on."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import Callable, Coroutine
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import orjson

from worker.config import EngineConfig
from worker.engine.docker.client import EngineClient
from worker.engine.docker.image import Image
from worker.engine.docker.tool import ToolLimits, Tools
from worker.errors import EngineUnavailable

_LOOK_EVERY_S = 300.0
_TIMEOUT_S = 30.0
_RESOLVE_S = 10.0
_MOST_BYTES = 1024 * 1024
_TABLES = Path("/proc/net/fib_trie")
"""All addresses for which the kernel takes a packet in, as ``|-- address`` and below it ``/length scope TYPE``."""
_OWN_TYPES = ("LOCAL", "BROADCAST")

_LOOK = f"""
import json
found, address = set(), ""
for line in open({str(_TABLES)!r}):
    words = line.split()
    if words[0] in ("|--", "+--"):
        address = words[1]
    elif words[-1] in {_OWN_TYPES!r}:
        found.add(address + words[0])
print(json.dumps(sorted(found)))
"""


class ProtectedAddresses:
    """Addresses of the platform and of the engine's machine, looked up again every few minutes.

    A worker that runs in a container cannot see for itself at which addresses its machine is reached: a container in
    that machine's own network looks.
    """

    def __init__(
        self, client: EngineClient, config: EngineConfig, base: Callable[[], Coroutine[Any, Any, Image]]
    ) -> None:
        self._tools = Tools(client, config)
        self._platform = config.egress.platform
        self._base = base
        self._lock = asyncio.Lock()
        self._found: frozenset[IPv4Network] = frozenset()
        self._looked_at: float | None = None

    async def own(self) -> frozenset[IPv4Network]:
        """The addresses. Raises :class:`EngineUnavailable` if they cannot be found: then no function gets a network."""
        async with self._lock:
            now = asyncio.get_running_loop().time()
            if self._looked_at is None or now - self._looked_at >= _LOOK_EVERY_S:
                servers = await asyncio.gather(*map(_resolved, self._platform))
                self._found = (await self._machine()).union(*servers)
                self._looked_at = now
            return self._found

    async def _machine(self) -> frozenset[IPv4Network]:
        """The addresses of the engine's machine, those of its broadcasts included."""
        limits = ToolLimits(
            memory_mb=64, tmpfs={}, bind=None, max_stdout_bytes=_MOST_BYTES, timeout_s=_TIMEOUT_S, network="host"
        )
        said: list[bytes] = []
        with tempfile.SpooledTemporaryFile(max_size=_MOST_BYTES) as answer:
            base = await self._base()
            ended = await self._tools.run(base, ("python3", "-I", "-S", "-c", _LOOK), limits, answer, said.append)
            answer.seek(0)
            found = answer.read()
        if ended.exit_code != 0:
            why = b"".join(said).decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise EngineUnavailable(f"The addresses of the engine's machine cannot be read: {why}")
        return frozenset(IPv4Network(one, strict=False) for one in orjson.loads(found))


async def _resolved(host: str) -> frozenset[IPv4Network]:
    try:
        async with asyncio.timeout(_RESOLVE_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError) as error:
        raise EngineUnavailable(
            f"{host} cannot be resolved, so it is not known which addresses functions must not reach."
        ) from error
    return frozenset(IPv4Network(str(entry[4][0])) for entry in found if entry[0] == socket.AF_INET)
