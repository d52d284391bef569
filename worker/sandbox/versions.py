"""Caches versions and their sandbox specs: both are immutable, so entries never expire."""

from __future__ import annotations

from collections import OrderedDict
from uuid import UUID

from shared.functions import RunnableVersion
from shared.layers import VersionLayers
from shared.postgres.versions import Versions
from worker.sandbox.contract import SandboxSpec

_REMEMBER_MOST = 5_000


class VersionCache:
    """Versions by id, read from Postgres once."""

    def __init__(self, versions: Versions) -> None:
        self._versions = versions
        self._known: OrderedDict[UUID, RunnableVersion] = OrderedDict()

    async def get(self, version: UUID) -> RunnableVersion | None:
        """A version that can run; None if it is not there or was not built."""
        known = self._known.get(version)
        if known is not None:
            self._known.move_to_end(version)
            return known
        found = await self._versions.runnable(version)
        if found is None or not found.built:
            return None
        self._known[version] = found
        while len(self._known) > _REMEMBER_MOST:
            self._known.popitem(last=False)
        return found

    def forget(self, version: UUID) -> None:
        self._known.pop(version, None)


class Specs:
    """What sandboxes of versions are started from.

    :param env: what every function's environment gets beside the contract's own.
    """

    def __init__(self, env: tuple[tuple[str, str], ...]) -> None:
        self._env = env
        self._made: dict[tuple[UUID, str], SandboxSpec] = {}

    def of(self, version: RunnableVersion) -> SandboxSpec:
        """The spec of a version that has its layers: the same object every time, since every call looks sandboxes up by
        it."""
        assert version.layers is not None
        key = (version.id, version.layers.base)
        made = self._made.get(key)
        if made is None:
            if len(self._made) >= _REMEMBER_MOST:
                self._made.clear()
            made = self._made[key] = self._make(version, version.layers)
        return made

    def _make(self, version: RunnableVersion, layers: VersionLayers) -> SandboxSpec:
        settings = version.settings
        return SandboxSpec(
            version_id=version.id,
            function_id=version.function_id,
            user_id=version.user_id,
            function_name=version.function_name,
            version=version.number,
            runtime=settings.runtime,
            handler=settings.handler,
            layers=layers,
            memory_mb=settings.memory_mb,
            tmp_mb=settings.tmp_size_mb,
            cpus=settings.cpus,
            timeout_ms=settings.timeout_ms,
            env=self._env,
            network=settings.network,
        )
