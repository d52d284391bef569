"""Runtime images, from which sandboxes start: a base image with a runtime's in-sandbox side. A machine has a few."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import IO

from shared.in_thread import finished_in_thread, temporary_folder
from shared.layers import LayerKind, LayerRef, VersionLayers
from worker.build.builds import Builds, content_key
from worker.build.code_cache import CodeCache
from worker.build.layer import Layer, in_thread, runtime_layer
from worker.build.layer_store import LayerStore
from worker.build.recipe import Recipe
from worker.config import EngineConfig
from worker.engine.docker.client import EngineClient
from worker.engine.docker.hardening import LABEL_INSTALLATION
from worker.engine.docker.image import Image, Images
from worker.engine.docker.image_gc import BASE, RUNTIME, base_tag
from worker.engine.docker.saved_images import SavedImages
from worker.engine.image_use import ImageUse
from worker.errors import Unsuited

IMAGE_ID = "sha256:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Foundation:
    """The base image and the runtime layer on which versions of a runtime are built now."""

    base: Image
    runtime: LayerRef


class RuntimeImages:
    """Puts runtime images together on one engine, and finds them again."""

    def __init__(self, client: EngineClient, config: EngineConfig, layers: LayerStore, cache: CodeCache) -> None:
        self._config = config
        self._images = Images(client, config)
        self._layers = layers
        self._cache = cache
        self._saved = SavedImages(client, config, layers, cache)
        self._use = ImageUse(config.data_dir)
        self._builds = Builds()
        self._refs: dict[str, LayerRef] = {}  # of runtime layers of this release, by the recipe's name

    async def current(self, recipe: Recipe) -> Foundation:
        """The foundation on which versions of the runtime are built now. Raises :class:`EngineUnavailable`."""
        base = await self._images.base(self._config.base_images.get(recipe.name, recipe.base_image))
        return Foundation(base=base, runtime=await self._ref(recipe))

    async def keep(self, recipe: Recipe, foundation: Foundation) -> VersionLayers:
        """Have a version's foundation in the store. Raises :class:`shared.errors.Unavailable`."""
        layer = await in_thread(runtime_layer, recipe)
        try:
            base, runtime = await asyncio.gather(
                self._saved.keep_base(foundation.base), self._layers.keep(LayerKind.RUNTIME, layer)
            )
        finally:
            await asyncio.to_thread(layer.file.close)
        return VersionLayers(base=foundation.base.id, layers=(base, runtime))

    async def of(self, recipe: Recipe, foundation: VersionLayers) -> Image:
        """The image for versions on ``foundation``, put together if this machine lacks it.

        Raises :class:`EngineUnavailable`.
        """
        base_id, runtime = foundation.base, foundation.of(LayerKind.RUNTIME)
        if not base_id.startswith(IMAGE_ID) or runtime is None:
            raise Unsuited("The version was built by another kind of engine.")
        key = content_key(base_id, runtime.digest)
        tag = f"{recipe.name}-{key}"
        if (found := await self._images.find(f"{RUNTIME}:{tag}")) is not None:
            return found
        async with self._builds.single_flight(key):
            found = await self._images.find(f"{RUNTIME}:{tag}")
            if found is None:
                base = await self._saved.found(
                    base_id, foundation.of(LayerKind.BASE), BASE, base_tag(self._config.installation, base_id)
                )
                layer = await self._layer(recipe, runtime)
                labels = {LABEL_INSTALLATION: self._config.installation}
                found = await self._images.stack(base, layer, RUNTIME, tag, labels)
                await asyncio.to_thread(self._use.mark, found.id)
            return found

    async def has(self, recipe: Recipe, foundation: VersionLayers) -> bool:
        runtime = foundation.of(LayerKind.RUNTIME)
        key = content_key(foundation.base, runtime.digest if runtime is not None else "")
        return await self._images.find(f"{RUNTIME}:{recipe.name}-{key}") is not None

    async def _ref(self, recipe: Recipe) -> LayerRef:
        known = self._refs.get(recipe.name)
        if known is None:
            layer = await in_thread(runtime_layer, recipe)
            known = LayerRef(kind=LayerKind.RUNTIME, digest=layer.digest, size_bytes=layer.size_bytes)
            self._refs[recipe.name] = known
            await asyncio.to_thread(layer.file.close)
        return known

    async def _layer(self, recipe: Recipe, ref: LayerRef) -> Layer:
        """The runtime's side as the version has it: this release's own, or another's out of the store."""
        if ref.digest == (await self._ref(recipe)).digest:
            return await in_thread(runtime_layer, recipe)
        async with temporary_folder(self._cache.scratch) as scratch:
            await self._layers.fetch(ref, scratch / "layer.tar")
            return Layer(
                # Without a name from here on, as all layers are; the stack closes it.
                file=await finished_in_thread(lambda: (scratch / "layer.tar").open("rb"), IO.close),
                digest=ref.digest,
                size_bytes=ref.size_bytes,
            )
