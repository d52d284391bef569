"""The network through which functions get out: one an installation on each engine, made when it is first needed."""

from __future__ import annotations

import asyncio
import secrets
from ipaddress import IPv4Network
from typing import Any

from aiodocker.networks import DockerNetwork

from worker.config import EngineConfig
from worker.engine.docker.client import EngineClient
from worker.engine.docker.hardening import LABEL_INSTALLATION
from worker.errors import EngineUnavailable


class Network:
    """A bridge whose members cannot reach each other. All workers of an installation share it."""

    def __init__(self, client: EngineClient, config: EngineConfig) -> None:
        self._client = client
        self._label = f"{LABEL_INSTALLATION}={config.installation}"
        self._name = f"containerpub-{config.installation}"
        self._config: dict[str, Any] = {
            "Driver": "bridge",
            "EnableIPv6": False,
            "Internal": False,
            "Labels": {LABEL_INSTALLATION: config.installation},
            "Options": {"com.docker.network.bridge.enable_icc": "false"},
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
        """It was removed: the next call makes another."""
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
        # No engine keeps two workers from making one each at the same time. By names of their own they are told apart
        # until both workers have taken the older one.
        made = await self._client.docker.networks.create(
            {**self._config, "Name": f"{self._name}-{secrets.token_hex(4)}"}
        )
        found = await self._all()
        if not found:
            raise EngineUnavailable("The network of functions was made and is not there.")
        if made.id != found[0]["Id"]:
            await made.delete()
        return found[0]

    async def _all(self) -> list[dict[str, Any]]:
        """The oldest first."""
        found = await self._client.docker.networks.list(filters={"label": [self._label]})
        return sorted(found, key=lambda one: (one["Created"], one["Id"]))
