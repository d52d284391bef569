"""Egress namespaces: the networks of sandboxes that reach public addresses and nothing else.

An egress namespace is a container that owns a network namespace. Its program first closes the namespace for all
addresses but those outside (``egress_namespace_program.py``), and gives up the capability that this takes. Then the
sandbox's container joins the namespace; without capabilities it cannot change the rules. The egress namespace's
container runs as long as the sandbox, since the network namespace ends with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from importlib.resources import files
from ipaddress import IPv4Network
from typing import cast

import orjson
from aiodocker.types import JSONObject

from worker.build.recipe import load_recipe
from worker.config import EngineConfig
from worker.engine.docker.client import Absent, EngineClient
from worker.engine.docker.hardening import container_config, seccomp_profile
from worker.engine.docker.image import Image, Images
from worker.engine.docker.network import Network
from worker.engine.docker.protected_addresses import ProtectedAddresses
from worker.errors import EngineUnavailable
from worker.network.outside import outside

_log = logging.getLogger(__name__)
_RUNTIME = "python"
"""Whose base image egress namespaces are made of."""
_MEMORY_MB = 32
_READY = b"ready\n"
_MOST_SAID = 4096
_KERNEL_RUNTIMES = frozenset(("runc", "crun", "io.containerd.runc.v2"))
"""OCI runtimes whose containers send through the engine's kernel, which applies the rules. Others have a network stack
of their own, whose packets pass the rules by."""


class EgressNamespaces:
    """Makes the egress namespaces of one engine."""

    def __init__(self, client: EngineClient, config: EngineConfig, *, podman: bool = False) -> None:
        self._client = client
        self._podman = podman
        self._config = config
        self._images = Images(client, config)
        self._network = Network(client, config)
        self._protected = ProtectedAddresses(client, config, self._base)
        self._runtime: str | None = None

    def namespace(self, sandbox_id: str, labels: Mapping[str, str]) -> EgressNamespace:
        """An egress namespace for one sandbox, not opened yet. ``labels`` are those of the sandbox: they are swept
        alike."""
        return EgressNamespace(self, f"containerpub-{sandbox_id}-egress", labels)

    async def close(self) -> None:
        """After the last egress namespace is removed."""
        try:
            await self._network.remove()
        except EngineUnavailable as error:
            # The next worker that ends removes it.
            _log.warning("the network of functions is left", extra={"error": error.message})

    async def start(self, name: str, labels: Mapping[str, str]) -> None:
        """Start an egress namespace's container and return once it is closed. Raises :class:`EngineUnavailable`."""
        if not self._config.egress.permitted:
            raise EngineUnavailable("The operator lets no function have a network (FUNCTION_EGRESS).")
        if self._podman:
            raise EngineUnavailable("With Podman functions have no network: its rules are not tested there.")
        await self._check_runtime()
        for last in (False, True):
            # First, so that no network is made if this fails.
            own = await self._protected.own()
            if await self._start(name, labels, await self._network.id(), own):
                return
            # Our network was removed between finding and using it.
            self._network.forget()
            await self.remove(name)
            if last:
                raise EngineUnavailable("The network of functions keeps being removed.")

    async def remove(self, name: str) -> None:
        await self._client.containers.remove(name)

    async def _start(self, name: str, labels: Mapping[str, str], network: str, own: frozenset[IPv4Network]) -> bool:
        """False if there is no such network."""
        settings = await self._settings(labels, network, {*own, *await self._network.subnets()})
        containers = self._client.containers
        said = b""
        try:
            async with self._client.call("starting an egress namespace"):
                await containers.create(settings, name=name)
                async with containers.attach(name) as stream:
                    await containers.start(name)
                    while not said.endswith(_READY) and (part := await stream.read_out()) is not None:
                        said = (said + part.data)[-_MOST_SAID:]
        except Absent:
            return False
        if not said.endswith(_READY):
            why = said.decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise EngineUnavailable(f"The network of a function cannot be closed off: {why}")
        return True

    async def _settings(self, labels: Mapping[str, str], network: str, own: Collection[IPv4Network]) -> JSONObject:
        policy = self._config.egress
        told = {"outside": outside(policy, own), "new_per_s": policy.new_per_s}
        base = await self._base()
        program = await asyncio.to_thread((files(__package__) / "egress_namespace_program.py").read_text, "utf-8")
        settings = container_config(
            image=base.id,
            uid=0,
            argv=("python3", "-I", "-S", "-c", program, orjson.dumps(told).decode()),
            working_dir="/",
            env={"PATH": "/usr/local/bin:/usr/bin:/bin"},
            labels=labels,
            binds=(),
            memory_mb=_MEMORY_MB,
            tmp_mb=1,
            cpus=1.0,
            seccomp=await asyncio.to_thread(seccomp_profile),
            oci_runtime=self._config.oci_runtime,
            network=network,
        )
        changed = {
            # To make the rules, and to become nobody afterwards.
            "CapAdd": ["NET_ADMIN", "SETUID", "SETGID"],
            # It is a single process, killed when its time has come.
            "Init": False,
        }
        host = cast(dict[str, object], settings["HostConfig"])
        attached = {"AttachStdout": True, "AttachStderr": True}
        return cast(JSONObject, settings | attached | {"HostConfig": host | changed})

    async def _base(self) -> Image:
        recipe = await asyncio.to_thread(load_recipe, _RUNTIME)
        return await self._images.base(self._config.base_images.get(_RUNTIME, recipe.base_image))

    async def _check_runtime(self) -> None:
        if self._runtime is None:
            self._runtime = self._config.oci_runtime or str((await self._client.info())["DefaultRuntime"])
        if self._runtime not in _KERNEL_RUNTIMES:
            raise EngineUnavailable(
                f"Functions have no network under {self._runtime}: its own network stack would pass the rules by."
            )


class EgressNamespace:
    """One sandbox's egress namespace. Known by its name, as :class:`worker.engine.docker.container.Container` is."""

    def __init__(self, namespaces: EgressNamespaces, name: str, labels: Mapping[str, str]) -> None:
        self._namespaces = namespaces
        self._name = name
        self._labels = labels

    @property
    def network(self) -> str:
        """What the sandbox's container has as its network."""
        return f"container:{self._name}"

    async def open(self) -> None:
        """Raises :class:`EngineUnavailable`; whatever of it there is has to be removed all the same."""
        await self._namespaces.start(self._name, self._labels)

    async def remove(self) -> None:
        """After the sandbox. Returns when nothing of it is left; idempotent. Raises :class:`EngineUnavailable`."""
        await self._namespaces.remove(self._name)
