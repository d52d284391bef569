"""Whole images in the artifact store, so that versions have the same base on every engine.

A base image's name may mean another image tomorrow, and an engine may not be able to pull it. An image that a
Dockerfile made cannot be made again. The store has both as an engine saved them. A loaded image is checked by its id,
which is a digest of its content.
"""

from __future__ import annotations

import tempfile
from typing import IO

from shared.in_thread import finished_in_thread, temporary_folder
from shared.jobs import Reason
from shared.layers import LayerKind, LayerRef
from worker.build.builds import Builds
from worker.build.code_cache import CodeCache
from worker.build.layer_store import LayerStore
from worker.config import EngineConfig
from worker.engine.docker.client import EngineClient
from worker.engine.docker.image import Image, Images
from worker.errors import LayerUnavailable

_MOST_BYTES = 16 * 1024**3
"""Of a base image, which an operator chose: only against filling the disk for ever."""


class SavedImages:
    """Saves images of one engine, and loads them."""

    def __init__(self, client: EngineClient, config: EngineConfig, layers: LayerStore, cache: CodeCache) -> None:
        self._images = Images(client, config)
        self._layers = layers
        self._cache = cache
        self._loads = Builds()

    async def keep_base(self, image: Image) -> LayerRef:
        """The base image in the store, saved once for all machines: saving it again would give other bytes."""
        async with self._loads.single_flight(image.id):
            ref, _ = await self._layers.single_flight(f"base {image.id}", lambda: self.keep(LayerKind.BASE, image))
        return ref

    async def keep(self, kind: LayerKind, image: Image) -> LayerRef:
        with tempfile.TemporaryFile() as file:
            digest, size = await self._images.save(image.id, file, _MOST_BYTES)
            return await self._layers.keep_file(kind, file, digest, size)

    async def found(self, image_id: str, saved: LayerRef | None, name: str, tag: str) -> Image:
        """The image of that id, which is loaded and named ``name:tag`` if it is not on this machine.

        :raises LayerUnavailable: it is nowhere.
        """
        async with self._loads.single_flight(image_id):
            if (image := await self._images.find(image_id)) is not None:
                return image
            if saved is None:
                raise LayerUnavailable(f"The image {image_id} is not on this machine.", Reason.ARTIFACT_MISSING)
            async with temporary_folder(self._cache.scratch) as scratch:
                await self._layers.fetch(saved, scratch / "image.tar")
                with await finished_in_thread(lambda: (scratch / "image.tar").open("rb"), IO.close) as file:
                    await self._images.load(file)
            if (image := await self._images.find(image_id)) is None:
                raise LayerUnavailable(
                    f"The engine loaded the saved image {image_id} under another id.", Reason.ARTIFACT_MISSING
                )
            await self._images.tag(image_id, name, tag)
            return image
