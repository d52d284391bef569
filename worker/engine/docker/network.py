"""The bridge network of functions: one for each installation on each engine, made when it is first needed."""

from __future__ import annotations

import asyncio
import hashlib
from ipaddress import IPv4Network
from typing import Any

from aiodocker import DockerError
from aiodocker.networks import DockerNetwork

from worker.config import EngineConfig
from worker.engine.docker.client import EngineClient
from worker.engine.docker.hardening import LABEL_INSTALLATION
from worker.errors import EngineUnavailable

_LISTED_WITHIN_S = 5.0
_LOOK_EVERY_S = 0.1
_BRIDGE_DIGITS = 12
"""The name of a Linux interface has fifteen characters at most."""


class Network:
    """A bridge whose members cannot reach each other. All workers of an installation share it."""

    def __init__(self, client: EngineClient, config: EngineConfig) -> None:
        self._client = client
        self._label = f"{LABEL_INSTALLATION}={config.installation}"
        bridge = hashlib.sha256(config.installation.encode()).hexdigest()[:_BRIDGE_DIGITS]
        self._config: dict[str, Any] = {
            "Name": f"containerpub-{config.installation}",
            "Driver": "bridge",
            "EnableIPv6": False,
            "Internal": False,
            "Labels": {LABEL_INSTALLATION: config.installation},
            "Options": {
                "com.docker.network.bridge.enable_icc": "false",
                "com.docker.network.bridge.name": f"cp-{bridge}",
            },
        }
        self._lock = asyncio.Lock()
        self._found: dict[str, Any] | None = None

    async def id(self) -> str:
        """Its id; made if it is not there. Raises :class:`EngineUnavailable`."""
        return str((await self._get())["Id"])

    async def subnets(self) -> tuple[IPv4Network, ...]:
        """The addresses of its members and of the engine's machine in it. Raises :class:`EngineUnavailable`."""
        parts = (await self._get())["IPAM"]["Config"] or ()
        return tuple(IPv4Network(part["Subnet"]) for part in parts if ":" not in part["Subnet"])

    def forget(self) -> None:
        """Forget the network, because it was removed: the next call makes another."""
        self._found = None

    async def remove(self) -> None:
        """Remove it unless a container uses it; other workers make another when they need one."""
        self._found = None
        async with self._client.call("finding the network of functions"):
            found = await self._all()
        for one in found:
            # In use is a 403 with Docker and a 409 or a 500 with others.
            async with self._client.call("removing the network of functions", 403, 404, 409, 500):
                await DockerNetwork(self._client.docker, one["Id"]).delete()  # type: ignore[no-untyped-call]

    async def _get(self) -> dict[str, Any]:
        async with self._lock:
            if self._found is None:
                async with self._client.call("finding the network of functions"):
                    found = await self._all()
                    self._found = found[0] if found else await self._make()
            return self._found

    async def _make(self) -> dict[str, Any]:
        # Of workers that make it at the same time the engine refuses all but one, because the bridge has one name; it
        # lets networks have the same. The one that was made may be listed a moment after another was refused.
        try:
            await self._client.docker.networks.create(self._config)
        except DockerError as error:
            for _ in range(round(_LISTED_WITHIN_S / _LOOK_EVERY_S)):
                if found := await self._all():
                    return found[0]
                await asyncio.sleep(_LOOK_EVERY_S)
            raise error
        found = await self._all()
        if not found:
            raise EngineUnavailable("The network of functions was made and is not there.")
        return found[0]

    async def _all(self) -> list[dict[str, Any]]:
        """The oldest first."""
        found = await self._client.docker.networks.list(filters={"label": [self._label]})
        return sorted(found, key=lambda one: (one["Created"], one["Id"]))
