"""Builds a tenant's Dockerfile with the engine's own builder, under caps and a watch on its disk.

``RUN`` is root with the engine's usual capabilities: an operator opts in. Around it: no network, a cgroup of its own,
caps on memory, CPU, files and time, and a look at the disk twice a second. What comes out is taken for its layers
alone; all that a container would be started with is written anew, so no image and no Dockerfile has a say in it.
"""

from __future__ import annotations

import asyncio
import secrets
import tarfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.build.build_log import BuildLog
from worker.build.dockerfile import MAX_BYTES, Dockerfile, parse, render, resolve
from worker.build.plan import BuildPlan, BuildRejected
from worker.build.recipe import known_runtimes, load_recipe
from worker.config import DockerfileConfig, EngineConfig
from worker.engine.docker.build_cap import BuildCaps
from worker.engine.docker.client import EngineClient
from worker.engine.docker.engine_build import LABEL_BUILD, LABEL_STAGE, EngineBuild, containers_of, too_much
from worker.engine.docker.hardening import LABEL_INSTALLATION, LABEL_WORKER
from worker.engine.docker.image import Image, Images
from worker.errors import EngineUnavailable

_FILE = "Dockerfile"
_GONE_WAIT_S = 20.0
"""How long the builder may take to let go of what it made."""
_QUIET_S = 0.5
"""How long nothing may have turned up after a build was broken off before it is taken to be over."""
_PROXIES = frozenset({"http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A version's image, and what is kept of its Dockerfile's analysis."""

    image: Image
    analysis: Mapping[str, object]


class DockerfileBuilder:
    """Builds Dockerfiles on one engine."""

    def __init__(self, client: EngineClient, config: EngineConfig, images: Images) -> None:
        self._client = client
        self._config = config
        self._images = images
        self._caps = BuildCaps(client, config)
        self._running: set[str] = set()

    async def build(self, plan: BuildPlan, name: str, labels: Mapping[str, str], log: BuildLog) -> Built:
        """The image ``name:<version>``. Whatever happens, nothing else of the build is left.

        :raises BuildRejected: the Dockerfile is not allowed, or does not build.
        """
        settings = self._config.dockerfile
        if settings is None:
            raise BuildRejected("build_failed", "Dockerfiles are off; an operator turns them on: DOCKERFILE_RUNTIME.")
        allowed = await asyncio.to_thread(self._allowed, settings)
        said = await asyncio.to_thread(_read, plan.artifact, allowed)
        start = said.start(plan.handler)
        tag = str(plan.version_id)
        analysis = {"command": list(start), "base_images": sorted({one.image for one in said.stages if one.image})}
        # A build is not repeatable, so one machine does it once for a version.
        if (found := await self._images.find(f"{name}:{tag}")) is not None:
            return Built(image=found, analysis=analysis)
        for sentence in said.ignored:
            log.line(sentence)
        bases = {stage.image: await self._base(stage.image) for stage in said.stages if stage.image is not None}
        said = resolve(said, {reference: _pairs(image.environment) for reference, image in bases.items()})
        build = secrets.token_hex(8)
        made = {
            LABEL_INSTALLATION: self._config.installation,
            LABEL_WORKER: self._config.worker_id,
            LABEL_BUILD: build,
        }
        text = render(
            said,
            {reference: image.id for reference, image in bases.items()},
            [{**made, LABEL_STAGE: str(number)} for number in range(len(said.stages))],
        )
        machine = await self._caps.machine()
        sizes = _sizes(said, bases)
        self._running.add(build)
        quiet_s = _QUIET_S
        try:
            async with self._caps.hold(machine, settings, build) as parent:
                try:
                    run = EngineBuild(self._client, self._config, plan, settings, machine, build, parent)
                    image_id = await run.run(text, sizes, log)
                    quiet_s = 0.0
                    result = await self._images.find(image_id)
                    if result is None:
                        raise EngineUnavailable("The engine built an image and lost it.")
                    if result.size_bytes - list(sizes.values())[-1] > plan.max_unpacked_bytes:
                        raise too_much(plan)
                    self._check_traits(result, "The image")
                    image = await self._images.configure(
                        result, name, tag, labels, start, _environment(result.environment), result.working_dir or "/"
                    )
                    return Built(image=image, analysis=analysis)
                finally:
                    await asyncio.shield(asyncio.ensure_future(self._clear(build, quiet_s)))
        finally:
            self._running.discard(build)

    async def sweep(self, live_workers: frozenset[str]) -> int:
        """Remove images and cgroups of builds whose worker is gone; how many."""
        count = 0
        for image in await self._made(LABEL_INSTALLATION, self._config.installation):
            labels = image["Labels"]
            worker, build = labels.get(LABEL_WORKER), labels.get(LABEL_BUILD)
            if build is None or build in self._running:
                continue
            if worker == self._config.worker_id or worker not in live_workers:
                count += await self._images.remove(image["Id"])
        return count + await asyncio.to_thread(self._caps.sweep, live_workers)

    def _allowed(self, settings: DockerfileConfig) -> Collection[str]:
        """The images that ``FROM`` may name. Blocking."""
        if settings.base_images:
            return settings.base_images
        recipes = (load_recipe(name) for name in known_runtimes())
        named = (self._config.base_images.get(recipe.name, recipe.base_image) for recipe in recipes)
        return {image for image in named if image}

    async def _base(self, reference: str) -> Image:
        image = await self._images.base(reference)
        self._check_traits(image, f"The base image {reference}")
        return image

    @staticmethod
    def _check_traits(image: Image, what: str) -> None:
        """Refuse an image with settings that a build inherits and that no later instruction can undo."""
        if image.volumes:
            raise BuildRejected(
                "build_failed", f"{what} has volumes ({', '.join(image.volumes)}), so it cannot be used."
            )
        if image.on_build:
            raise BuildRejected("build_failed", f"{what} has ONBUILD triggers, so it cannot be used.")

    async def _clear(self, build: str, quiet_s: float) -> None:
        """Remove all that a build made. The builder may still run: it ends once it sees that the connection is
        closed."""
        loop = asyncio.get_running_loop()
        last_seen, deadline = loop.time(), loop.time() + _GONE_WAIT_S
        while True:
            try:
                containers = await containers_of(self._client, build)
                for container_id in containers:
                    await self._client.containers.remove(container_id)
                images = await self._made(LABEL_BUILD, build)
                for image in images:
                    await self._images.remove(image["Id"])
            except EngineUnavailable:
                # The engine failed at an object that another request was removing, or it is away.
                if loop.time() > deadline:
                    raise
                last_seen = loop.time()
            else:
                if containers or images:
                    last_seen = loop.time()
                elif loop.time() - last_seen >= quiet_s:
                    return
                if loop.time() > deadline:
                    raise EngineUnavailable("What a build made cannot be removed.")
            await asyncio.sleep(0.05)

    async def _made(self, label: str, value: str) -> list[dict[str, Any]]:
        """Images without a name and with that label; each takes its parents with it when it goes."""
        async with self._client.call("listing images"):
            found: list[dict[str, Any]] = await self._client.docker.images.list(
                filters={"label": [f"{label}={value}"], "dangling": ["true"]}
            )
        return found


def _read(artifact: Path, allowed: Collection[str]) -> Dockerfile:
    """Blocking."""
    with tarfile.open(artifact, mode="r|gz") as files:
        for member in files:
            if member.name.removeprefix("./") == _FILE and member.isreg() and (content := files.extractfile(member)):
                return parse(content.read(MAX_BYTES + 1), allowed)
    raise BuildRejected("analysis_rejected", "Dockerfile:1: there is no such file at the root of the project")


def _sizes(said: Dockerfile, bases: Mapping[str, Image]) -> dict[str, int]:
    """The size of the base image under each stage, by the stage's number."""
    sizes: list[int] = []
    for stage in said.stages:
        sizes.append(bases[stage.image].size_bytes if stage.image is not None else sizes[stage.stage or 0])
    return {str(number): size for number, size in enumerate(sizes)}


def _pairs(environment: tuple[str, ...]) -> dict[str, str]:
    return dict(one.split("=", 1) for one in environment if "=" in one)


def _environment(environment: tuple[str, ...]) -> tuple[str, ...]:
    """The variables that sandboxes may inherit: none that decides what programs load or where they connect."""
    return tuple(
        one
        for one in environment
        if not one.upper().startswith("LD_") and one.partition("=")[0].lower() not in _PROXIES
    )
