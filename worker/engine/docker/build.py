"""Making a version's layers: analysis, dependencies, code."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import IO

from shared.layers import LayerKind, LayerRef, VersionLayers
from worker.build.analysis import analyze, concluded
from worker.build.build_log import BuildLog
from worker.build.builds import Builds, content_key
from worker.build.code_cache import CodeCache
from worker.build.dependency_manifest import DependencyManifest, dependency_key, read_dependency_manifest
from worker.build.layer import Layer, artifact_layer, in_thread
from worker.build.layer_store import LayerStore
from worker.build.plan import BuildPlan, BuildRejected, BuiltVersion
from worker.build.recipe import FUNCTION as CODE_FOLDER
from worker.build.recipe import Recipe, load_recipe
from worker.build.version_code import VersionCode
from worker.config import EngineConfig
from worker.engine.docker.check import Checker
from worker.engine.docker.client import EngineClient
from worker.engine.docker.compile import Compiler
from worker.engine.docker.dockerfile import DockerfileBuilder
from worker.engine.docker.hardening import LABEL_INSTALLATION, LABEL_VERSION
from worker.engine.docker.image import Image, Images
from worker.engine.docker.image_gc import FUNCTION, half_made_tag
from worker.engine.docker.install import Installer
from worker.engine.docker.runtime_images import RuntimeImages
from worker.engine.docker.saved_images import SavedImages
from worker.engine.image_use import ImageUse


class VersionBuilder:
    """Builds versions on one engine. Safe for concurrent use; equal dependencies are installed once."""

    def __init__(
        self,
        client: EngineClient,
        config: EngineConfig,
        layers: LayerStore,
        cache: CodeCache,
        code: VersionCode,
        runtimes: RuntimeImages,
    ) -> None:
        self._config = config
        self._layers = layers
        self._code = code
        self._runtimes = runtimes
        self._images = Images(client, config)
        self._saved = SavedImages(client, config, layers, cache)
        self._installer = Installer(client, config)
        self._checker = Checker(client, config)
        self._compiler = Compiler(client, config)
        self._dockerfiles = DockerfileBuilder(client, config, self._images)
        self._builds = Builds()
        self._use = ImageUse(config.data_dir)

    async def build(self, plan: BuildPlan, log: Callable[[str], None]) -> BuiltVersion:
        """See :meth:`worker.engine.contract.Engine.build`. Cancelling ends and removes what runs for it."""
        return await self._builds.run(plan, self._build(plan, BuildLog(log, plan.max_log_bytes)))

    async def sweep(self, live_workers: frozenset[str]) -> int:
        """Remove what builds of workers that are gone left half made; how many things that were."""
        return await self._dockerfiles.sweep(live_workers)

    async def close(self) -> None:
        """Cancel the builds that run, and return when nothing of them is left. Idempotent."""
        await self._builds.close()

    async def _build(self, plan: BuildPlan, log: BuildLog) -> BuiltVersion:
        recipe = await asyncio.to_thread(load_recipe, plan.runtime)
        if recipe.dockerfile:
            return await self._image(plan, log)
        analysis, manifest = await asyncio.gather(
            analyze(plan, recipe), asyncio.to_thread(read_dependency_manifest, plan.artifact, recipe)
        )
        foundation = await self._runtimes.current(recipe)
        told = await self._checker.check(plan, recipe, foundation.base, str(analysis.get("file")))
        analysis = concluded(analysis, [*(manifest.notes if manifest is not None else ()), *told], log.line)
        files: dict[str, IO[bytes]] = {}
        async with AsyncExitStack() as opened:

            def opens(layer: Layer) -> None:
                files[layer.digest] = layer.file
                opened.push_async_callback(asyncio.to_thread, layer.file.close)

            own: list[LayerRef] = []
            if manifest is not None and recipe.install is not None:
                own.append(await self._dependencies(plan, recipe, foundation.base, manifest, log, opens))
            code = await in_thread(artifact_layer, plan.artifact, CODE_FOLDER)
            if recipe.compile is not None:
                base = await self._runtimes.keep(recipe, foundation)
                compiled = await self._compiled(plan, recipe, await self._runtimes.of(recipe, base), code, log)
                opened.push_async_callback(asyncio.to_thread, compiled.file.close)
                code = await in_thread(artifact_layer, plan.artifact, CODE_FOLDER, compiled)
            opens(code)
            self._judge(code.size_bytes + sum(layer.size_bytes for layer in own))
            base, ref = await asyncio.gather(
                self._runtimes.keep(recipe, foundation), self._layers.keep(LayerKind.CODE, code)
            )
            layers = VersionLayers(base=base.base, layers=(*base.layers, *own, ref))
            await self._code.add(plan.user_id, recipe, layers, files)
        return BuiltVersion(layers=layers, analysis=analysis)

    async def _image(self, plan: BuildPlan, log: BuildLog) -> BuiltVersion:
        """The one kind of version that has an image of its own."""
        tag = str(plan.version_id)
        labels = {LABEL_INSTALLATION: self._config.installation, LABEL_VERSION: tag}
        built = await self._dockerfiles.build(plan, FUNCTION, labels, log)
        await asyncio.to_thread(self._use.mark, built.image.id)
        if built.image.size_bytes > self._config.max_image_bytes:
            await self._images.remove(f"{FUNCTION}:{tag}")
            raise BuildRejected(
                "build_failed",
                f"The image takes {built.image.size_bytes >> 20} MB, "
                f"and {self._config.max_image_bytes >> 20} are allowed.",
            )
        saved = await self._saved.keep(LayerKind.IMAGE, built.image)
        return BuiltVersion(layers=VersionLayers(base=built.image.id, layers=(saved,)), analysis=built.analysis)

    async def _dependencies(
        self,
        plan: BuildPlan,
        recipe: Recipe,
        base: Image,
        manifest: DependencyManifest,
        log: BuildLog,
        opens: Callable[[Layer], None],
    ) -> LayerRef:
        """What the manifest asks for, as it was resolved first, on whatever machine."""
        key = content_key(base.id, recipe.dependencies, recipe.install_fingerprint, dependency_key(manifest))

        async def install() -> LayerRef:
            log.line("installing dependencies")
            layer = await self._installer.install(plan, recipe, base, manifest, log)
            opens(layer)
            self._judge(layer.size_bytes)
            return await self._layers.keep(LayerKind.DEPENDENCIES, layer)

        async with self._builds.single_flight(key):
            ref, known = await self._layers.single_flight(f"dependencies {key}", install)
        if known:
            log.line(f"dependencies are unchanged: layer {ref.digest[:12]}")
        return ref

    async def _compiled(self, plan: BuildPlan, recipe: Recipe, runtime: Image, code: Layer, log: BuildLog) -> Layer:
        """What the runtime's compiler makes of the code, in an image that has both for as long as that takes."""
        tag = half_made_tag(plan.version_id, self._config.worker_id)
        labels: Mapping[str, str] = {
            LABEL_INSTALLATION: self._config.installation,
            LABEL_VERSION: str(plan.version_id),
        }
        image = await self._images.stack(runtime, code, FUNCTION, tag, labels)
        try:
            return await self._compiler.compile(plan, recipe, image, log)
        finally:
            await self._images.remove(f"{FUNCTION}:{tag}")

    def _judge(self, size_bytes: int) -> None:
        if size_bytes > self._config.max_image_bytes:
            raise BuildRejected(
                "build_failed",
                f"The version takes {size_bytes >> 20} MB, and {self._config.max_image_bytes >> 20} are allowed.",
            )
