"""Making a version startable: analysis, dependencies, image."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from worker.build.analysis import analyze
from worker.build.build_log import BuildLog
from worker.build.builds import Builds, content_key
from worker.build.dependency_manifest import DependencyManifest, dependency_key, read_dependency_manifest
from worker.build.layer import artifact_layer, in_thread, runtime_layer
from worker.build.plan import BuildPlan, BuildRejected, BuiltImage
from worker.build.recipe import Recipe, load_recipe
from worker.config import EngineConfig
from worker.engine.docker.check import Checker
from worker.engine.docker.client import EngineClient
from worker.engine.docker.compile import Compiler
from worker.engine.docker.dockerfile import DockerfileBuilder
from worker.engine.docker.hardening import LABEL_CONTENT, LABEL_INSTALLATION, LABEL_VERSION
from worker.engine.docker.image import Image, Images
from worker.engine.docker.image_gc import DEPENDENCIES, FUNCTION, RUNTIME, half_made_tag
from worker.engine.docker.install import Installer
from worker.engine.image_use import ImageUse
from worker.errors import EngineUnavailable

_TRIES = 3


class ImageBuilder:
    """Builds images on one engine. Safe for concurrent use; equal dependencies are installed once."""

    def __init__(self, client: EngineClient, config: EngineConfig) -> None:
        self._config = config
        self._images = Images(client, config)
        self._installer = Installer(client, config)
        self._checker = Checker(client, config)
        self._compiler = Compiler(client, config)
        self._dockerfiles = DockerfileBuilder(client, config, self._images)
        self._builds = Builds()
        self._use = ImageUse(config.data_dir)

    async def build(self, plan: BuildPlan, log: Callable[[str], None]) -> BuiltImage:
        """See :meth:`worker.engine.contract.Engine.build`. Cancelling ends and removes whatever runs for it."""
        return await self._builds.run(plan, self._build(plan, BuildLog(log, plan.max_log_bytes)))

    async def runtime_image(self, recipe: Recipe) -> Image:
        """What a version of the runtime stands on if it is built now."""
        return await self._runtime(recipe, await self._base(recipe))

    async def find(self, image: str) -> Image | None:
        """What a version's sandboxes are started from, if it is on this machine."""
        return await self._images.find(image)

    async def sweep(self, live_workers: frozenset[str]) -> int:
        """Remove what builds of workers that are gone left half made; how many things that were."""
        return await self._dockerfiles.sweep(live_workers)

    async def close(self) -> None:
        """Cancel the builds that run, and return when nothing of them is left. Idempotent."""
        await self._builds.close()

    async def _build(self, plan: BuildPlan, log: BuildLog) -> BuiltImage:
        recipe = load_recipe(plan.runtime)
        tag = str(plan.version_id)
        labels = self._labels() | {LABEL_VERSION: tag}
        if recipe.dockerfile:
            built = await self._dockerfiles.build(plan, FUNCTION, labels, log)
            image, analysis = await self._in_use(built.image), built.analysis
        else:
            image, analysis = await self._layers(plan, recipe, tag, labels, log)
        if image.size_bytes > self._config.max_image_bytes:
            await self._images.remove(f"{FUNCTION}:{tag}")
            raise BuildRejected(
                "build_failed",
                f"The image takes {image.size_bytes >> 20} MB, and {self._config.max_image_bytes >> 20} are allowed.",
            )
        if self._config.registry:
            await self._images.push(image, f"{self._config.registry}/{FUNCTION}", tag)
        return BuiltImage(ref=image.id, size_bytes=image.size_bytes, analysis=analysis)

    async def _layers(
        self, plan: BuildPlan, recipe: Recipe, tag: str, labels: Mapping[str, str], log: BuildLog
    ) -> tuple[Image, Mapping[str, object]]:
        """The version's image as the recipe has it, and the analysis of its code."""
        analysis, manifest = await asyncio.gather(
            analyze(plan, recipe), asyncio.to_thread(read_dependency_manifest, plan.artifact, recipe)
        )
        base = await self._base(recipe)
        await self._checker.check(plan, recipe, base)
        return await self._stacked(plan, recipe, base, manifest, tag, labels, log), analysis

    async def _stacked(
        self,
        plan: BuildPlan,
        recipe: Recipe,
        base: Image,
        manifest: DependencyManifest | None,
        tag: str,
        labels: Mapping[str, str],
        log: BuildLog,
    ) -> Image:
        """All layers of a version. What a layer is to stand on may be removed behind our back, by an operator or by
        a worker that needs the disk: then it is made again."""
        for left in reversed(range(_TRIES)):
            parent = await self._runtime(recipe, base)
            try:
                if manifest is not None and recipe.install is not None:
                    parent = await self._dependencies(plan, recipe, base, parent, manifest, log)
                return await self._assemble(plan, recipe, parent, tag, labels, log)
            except EngineUnavailable:
                if not left or await self._images.find(parent.id) is not None:
                    raise
                log.line("what the image stands on was removed: once more")
        raise AssertionError("the last try returns or raises")

    async def _assemble(
        self, plan: BuildPlan, recipe: Recipe, parent: Image, tag: str, labels: Mapping[str, str], log: BuildLog
    ) -> Image:
        """The version's image: its code, and what is compiled out of it if its runtime compiles."""
        code = await in_thread(artifact_layer, plan.artifact, "function")
        if recipe.compile is None:
            image = await self._images.stack(parent, code, FUNCTION, tag, labels)
        else:
            source = half_made_tag(plan.version_id, self._config.worker_id)
            image = await self._images.stack(parent, code, FUNCTION, source, labels)
            try:
                compiled = await self._compiler.compile(plan, recipe, image, log)
                image = await self._images.stack(image, compiled, FUNCTION, tag, labels)
            finally:
                await self._images.remove(f"{FUNCTION}:{source}")
        return await self._in_use(image)

    async def _base(self, recipe: Recipe) -> Image:
        return await self._images.base(self._config.base_images.get(recipe.name, recipe.base_image))

    async def _runtime(self, recipe: Recipe, base: Image) -> Image:
        """The base image with the runtime's in-sandbox side; made once a machine."""
        key = content_key(base.id, recipe.fingerprint, LABEL_CONTENT)
        async with self._builds.single_flight(key):
            tag = f"{recipe.name}-{key}"
            if (found := await self._images.find(f"{RUNTIME}:{tag}")) is not None:
                return await self._in_use(found)
            layer = await in_thread(runtime_layer, recipe)
            return await self._in_use(await self._images.stack(base, layer, RUNTIME, tag, self._labels()))

    async def _dependencies(
        self, plan: BuildPlan, recipe: Recipe, base: Image, parent: Image, manifest: DependencyManifest, log: BuildLog
    ) -> Image:
        key = content_key(parent.id, recipe.install_fingerprint, dependency_key(manifest))
        async with self._builds.single_flight(key):
            if (found := await self._images.find(f"{DEPENDENCIES}:{key}")) is not None:
                log.line("dependencies are unchanged")
                return await self._in_use(found)
            log.line("installing dependencies")
            layer = await self._installer.install(plan, recipe, base, manifest, log)
            # Installing may take longer than an image that nobody touches counts as used.
            parent = await self._runtime(recipe, base)
            return await self._in_use(await self._images.stack(parent, layer, DEPENDENCIES, key, self._labels()))

    async def _in_use(self, image: Image) -> Image:
        await asyncio.to_thread(self._use.mark, image.id)
        return image

    def _labels(self) -> dict[str, str]:
        return {LABEL_INSTALLATION: self._config.installation}
