"""Where an engine puts the layers that it makes, and gets those of versions that other workers made."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import IO, Protocol

from shared.artifacts import ArtifactStore, layer_key
from shared.errors import ArtifactCorrupt, ArtifactMissing, Unavailable
from shared.jobs import Reason
from shared.layers import LayerKind, LayerRef
from worker.build.layer import Layer
from worker.errors import LayerUnavailable

log = logging.getLogger(__name__)


class Ledger(Protocol):
    """What all workers know of layers; :class:`shared.postgres.blobs.Blobs` is one."""

    async def claim(self, layer: LayerRef) -> None:
        """This layer is about to be put or used: it is not collected for a while."""

    async def resolved(self, key: str) -> LayerRef | None:
        """What ``key`` was resolved to, by any worker; it counts as claimed."""

    async def resolve(self, key: str, layer: LayerRef, *, lost: LayerRef | None = None) -> LayerRef:
        """Note what ``key`` is resolved to; what it is: the first writer wins. ``lost`` is gone from the store."""


class SecondCopy(Protocol):
    """Where layers are kept once more; :class:`worker.build.layer_registry.LayerRegistry` is one.

    Methods raise :class:`shared.errors.Unavailable`.
    """

    async def push(self, digest: str, file: IO[bytes]) -> None:
        """Have the layer in ``file``, which stays open, there too."""

    async def pull(self, digest: str, target: Path) -> None:
        """Write the layer to ``target``, which appears complete and verified or not at all.

        Raises :class:`ArtifactMissing` or :class:`ArtifactCorrupt`.
        """

    async def copy(self, digest: str, fetch: Callable[[Path], Awaitable[None]]) -> None:
        """Have the layer, which ``fetch`` writes to a file, there too, if it is not there."""

    async def delete(self, digest: str) -> None:
        """Drop the layer; absent is fine."""


class LayerStore:
    """The artifact store's layers, and the ledger beside them. Raises :class:`shared.errors.Unavailable`.

    :param second: what is kept is there too before the version that needs it is active.
    """

    def __init__(self, store: ArtifactStore, ledger: Ledger, second: SecondCopy | None = None) -> None:
        self._store = store
        self._ledger = ledger
        self._second = second

    async def keep(self, kind: LayerKind, layer: Layer) -> LayerRef:
        """Have ``layer``, which stays open, in the store."""
        return await self.keep_file(kind, layer.file, layer.digest, layer.size_bytes)

    async def keep_file(self, kind: LayerKind, file: IO[bytes], digest: str, size_bytes: int) -> LayerRef:
        ref = LayerRef(kind=kind, digest=digest, size_bytes=size_bytes)
        await self._ledger.claim(ref)
        await self._store.put(layer_key(digest), file)
        if self._second is not None:
            await self._second.push(digest, file)
        return ref

    async def single_flight(self, key: str, make: Callable[[], Awaitable[LayerRef]]) -> tuple[LayerRef, bool]:
        """What ``key`` stands for on all machines, and whether it was there: made and kept by ``make`` if it was not.

        Of two workers that make it at once, both get what the first one noted.
        """
        known = await self._ledger.resolved(key)
        if known is not None and await self._store.exists(layer_key(known.digest)):
            if self._second is not None:
                # It may have been kept before there was a place for a second copy, or be lost there.
                await self._second.copy(known.digest, partial(self._store.fetch, layer_key(known.digest)))
            return known, True
        return await self._ledger.resolve(key, await make(), lost=known), False

    async def fetch(self, layer: LayerRef, target: Path) -> None:
        """Write the tar to ``target``, which appears complete and verified or not at all.

        :raises LayerUnavailable: the store is away, or does not have it as it was, and there is no second copy.
        """
        try:
            try:
                await self._store.fetch(layer_key(layer.digest), target)
            except (ArtifactMissing, ArtifactCorrupt, Unavailable) as error:
                if self._second is None:
                    raise
                log.warning("taking a layer's second copy", extra={"layer": layer.digest, "error": error.message})
                await self._second.pull(layer.digest, target)
        except (ArtifactMissing, ArtifactCorrupt) as error:
            raise LayerUnavailable(
                f"The {layer.kind} layer {layer.digest[:12]} cannot be used: {error.message}", Reason.ARTIFACT_MISSING
            ) from error
        except Unavailable as error:
            raise LayerUnavailable(error.message, Reason.DEPENDENCY_DOWN) from error
