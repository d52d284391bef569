"""Building a tenant's Dockerfile by the engine's own builder, which needs to be watched.

``RUN`` is root with the engine's usual capabilities: an operator opts in. Around it: no network, a cgroup of its own,
caps on memory, CPU, files and time, and a look at the disk twice a second. What comes out is taken for its layers
alone; all that a container would be started with is written anew, so no image and no Dockerfile has a say in it.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import tarfile
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiodocker import Docker
from aiodocker.exceptions import DockerError

from worker.engine.buildlog import BuildLog
from worker.engine.config import DockerfileConfig, EngineConfig
from worker.engine.contract import BuildPlan, BuildRejected, EngineUnavailable
from worker.engine.docker.buildcap import BuildCaps, Machine
from worker.engine.docker.container import engine_call, remove_container
from worker.engine.docker.hardening import LABEL_INSTALLATION, LABEL_WORKER
from worker.engine.docker.image import Image, Images, archive
from worker.engine.dockerfile import CONTEXT, MAX_BYTES, Dockerfile, Text, parse, render, resolve
from worker.engine.layer import Layer, artifact_layer, in_thread
from worker.engine.recipe import known_runtimes, load_recipe

LABEL_BUILD = "containerpub.build"
LABEL_STAGE = "containerpub.stage"
_FILE = "Dockerfile"
_LOOK_EVERY_S = 0.5
_MISSES = 10
"""Looks in a row that may fail: the engine is busy, and removes what we ask for."""
_FREE_INODES = 0.05
"""The share of the disk's inodes that has to stay free: empty files take no bytes."""
_MEBIBYTE = 1024 * 1024
_CPU_PERIOD_US = 100_000
_OPEN_FILES = 1024
_MAX_MESSAGE_BYTES = 1024 * 1024
_KILLED = 137
_GONE_WAIT_S = 20.0
_QUIET_S = 0.5
"""How long nothing may have turned up after a build was broken off before it is taken to be over."""
_DROPPED_AT_ONCE = 256 * 1024
_PAUSE_S = 0.005
"""After so many bytes that are only thrown away: bounds what a flood costs the event loop."""
_STEP = re.compile(r"Step (\d+)/\d+ : ")
_CHATTER = re.compile(
    r"\n|( ---> (Running in )?|Removing intermediate container |Successfully built )[0-9a-f]{12}\n",
)
_PROXIES = frozenset({"http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A version's image, and what is kept of its Dockerfile's analysis."""

    image: Image
    analysis: Mapping[str, object]


class DockerfileBuilder:
    """Builds Dockerfiles on one engine."""

    def __init__(self, docker: Docker, config: EngineConfig, images: Images) -> None:
        self._docker = docker
        self._config = config
        self._images = images
        self._caps = BuildCaps(docker, config)
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
                    run = _Build(self._docker, self._config, plan, settings, machine, build, parent)
                    image_id = await run.run(text, sizes, log)
                    quiet_s = 0.0
                    result = await self._images.find(image_id)
                    if result is None:
                        raise EngineUnavailable("The engine built an image and lost it.")
                    if result.size_bytes - list(sizes.values())[-1] > plan.max_unpacked_bytes:
                        raise _too_much(plan)
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
        """Remove images and cgroups of builds that nobody does any more; how many."""
        count = 0
        for image in await self._made(LABEL_INSTALLATION, self._config.installation):
            labels = image["Labels"]
            worker, build = labels.get(LABEL_WORKER), labels.get(LABEL_BUILD)
            if build is None or build in self._running:
                continue
            if worker == self._config.worker_id or worker not in live_workers:
                await self._images.remove(image["Id"])
                count += 1
        return count + await asyncio.to_thread(self._caps.sweep, live_workers)

    def _allowed(self, settings: DockerfileConfig) -> Collection[str]:
        """What ``FROM`` may name. Blocking."""
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
        """What a builder would take over, and nothing takes back."""
        if image.volumes:
            raise BuildRejected(
                "build_failed", f"{what} has volumes ({', '.join(image.volumes)}), so it cannot be used."
            )
        if image.on_build:
            raise BuildRejected("build_failed", f"{what} has ONBUILD triggers, so it cannot be used.")

    async def _clear(self, build: str, quiet_s: float) -> None:
        """Remove what a build made. The builder may still be at it: it ends once it notices that nobody listens."""
        timeout_s = self._config.engine_call_timeout_s
        loop = asyncio.get_running_loop()
        last_seen, deadline = loop.time(), loop.time() + _GONE_WAIT_S
        while True:
            try:
                containers = await _containers(self._docker, build, timeout_s)
                for container_id in containers:
                    await remove_container(self._docker, container_id, timeout_s)
                images = await self._made(LABEL_BUILD, build)
                for image in images:
                    await self._images.remove(image["Id"])
            except EngineUnavailable:
                # The builder took hold of an image while it was being removed, or the engine is away.
                if loop.time() > deadline:
                    raise
                last_seen = loop.time()
            else:
                if containers or images:
                    last_seen = loop.time()
                elif loop.time() - last_seen >= quiet_s:
                    return
            await asyncio.sleep(0.05)

    async def _made(self, label: str, value: str) -> list[dict[str, Any]]:
        """Images without a name and with that label; each takes its parents with it when it goes."""
        async with engine_call("listing images", self._config.engine_call_timeout_s):
            found: list[dict[str, Any]] = await self._docker.images.list(
                filters={"label": [f"{label}={value}"], "dangling": ["true"]}
            )
        return found


class _Build:
    """One talk with the builder."""

    def __init__(
        self,
        docker: Docker,
        config: EngineConfig,
        plan: BuildPlan,
        settings: DockerfileConfig,
        machine: Machine,
        build: str,
        cgroup: str,
    ) -> None:
        self._docker = docker
        self._config = config
        self._plan = plan
        self._settings = settings
        self._machine = machine
        self._build = build
        self._cgroup = cgroup

    async def run(self, text: Text, sizes: Mapping[str, int], log: BuildLog) -> str:
        """The id of what was built. The connection is the build's own: that it closes ends the build.

        :param sizes: of the base images, by the stage's number.
        """
        if await self._disk_is_low():
            raise EngineUnavailable("The container engine's disk is nearly full.")
        layer = await in_thread(artifact_layer, self._plan.artifact, CONTEXT)
        try:
            reading = asyncio.ensure_future(self._read(text, layer, log))
            watching = asyncio.ensure_future(self._watch(sizes))
            try:
                await asyncio.wait((reading, watching), return_when=asyncio.FIRST_COMPLETED)
                if watching.done():
                    watching.result()
                return await reading
            finally:
                for task in (reading, watching):
                    task.cancel()
                await asyncio.wait((reading, watching))
        finally:
            await asyncio.to_thread(layer.file.close)

    async def _read(self, text: Text, layer: Layer, log: BuildLog) -> str:
        image_id, dropped = "", 0
        async with engine_call("building a Dockerfile", self._plan.timeout_s + _GONE_WAIT_S):
            try:
                async with self._docker._query(
                    "build",
                    "POST",
                    params=self._params(),
                    data=archive({_FILE: text.text.encode()}, None, layer),
                    headers={"Content-Type": "application/x-tar"},
                    timeout=None,
                ) as response:
                    async for message in _messages(response.content.iter_any()):
                        # A failed build is a 200 whose body says so.
                        if "errorDetail" in message:
                            raise self._failure(message["errorDetail"], log)
                        if "aux" in message:
                            image_id = message["aux"].get("ID", image_id)
                        stream = str(message.get("stream", ""))
                        _tell(stream, text, log)
                        dropped += len(stream) if log.truncated else 0
                        if dropped >= _DROPPED_AT_ONCE:
                            dropped = 0
                            await asyncio.sleep(_PAUSE_S)
            except DockerError as error:
                if error.status != 400:
                    raise
                raise BuildRejected("build_failed", f"The Dockerfile cannot be built: {error.message}") from error
        log.flush()
        if not image_id:
            raise EngineUnavailable("The engine's builder ended without a word.")
        return image_id

    def _params(self) -> dict[str, str]:
        memory = str(self._plan.memory_mb * _MEBIBYTE)
        limits = {"nofile": _OPEN_FILES, "fsize": self._plan.max_unpacked_bytes, "core": 0}
        return {
            "networkmode": "none",
            "memory": memory,
            "memswap": memory,
            "cpuperiod": str(_CPU_PERIOD_US),
            "cpuquota": str(_CPU_PERIOD_US),
            "cgroupparent": self._cgroup,
            "ulimits": json.dumps([{"Name": name, "Soft": most, "Hard": most} for name, most in limits.items()]),
            "forcerm": "1",
            "nocache": "1",
        }

    def _failure(self, detail: Mapping[str, Any], log: BuildLog) -> BuildRejected:
        log.flush()
        if detail.get("code") == _KILLED:
            return BuildRejected("build_failed", f"A RUN needed more than {self._plan.memory_mb} MB of memory.")
        if isinstance(detail.get("code"), int):
            said = f": {log.last_line}" if log.last_line else ""
            return BuildRejected("build_failed", f"A RUN failed with exit code {detail['code']}{said}")
        log.line(str(detail.get("message")))
        return BuildRejected("build_failed", f"The Dockerfile cannot be built: {log.last_line}")

    async def _watch(self, sizes: Mapping[str, int]) -> None:
        """Returns never.

        :raises BuildRejected: the build writes more than it may.
        """
        limit, missed = self._plan.max_unpacked_bytes, 0
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            if await self._disk_is_low():
                raise BuildRejected(
                    "build_failed", "The build was ended, for the container engine's disk is nearly full."
                )
            try:
                written, missed = await self._written(sizes), 0
            except EngineUnavailable:
                missed += 1
                if missed > _MISSES:
                    raise
                continue
            if written > limit:
                raise _too_much(self._plan)

    async def _written(self, sizes: Mapping[str, int]) -> int:
        """Bytes that the build has on disk beside its base images."""
        timeout_s = self._config.engine_call_timeout_s
        running = await _containers(self._docker, self._build, timeout_s)
        async with engine_call("listing images", timeout_s):
            images = await self._docker.images.list(filters={"label": [f"{LABEL_BUILD}={self._build}"]})
        kept: int = sum(max(0, image["Size"] - sizes[image["Labels"][LABEL_STAGE]]) for image in images)
        return kept + sum(running.values())

    async def _disk_is_low(self) -> bool:
        if not self._machine.is_here:
            return False
        disk = await asyncio.to_thread(os.statvfs, self._machine.root)
        few_files = disk.f_favail < disk.f_files * _FREE_INODES
        return few_files or disk.f_bavail * disk.f_frsize < self._settings.min_free_bytes


def _too_much(plan: BuildPlan) -> BuildRejected:
    return BuildRejected("build_failed", f"The build writes more than {plan.max_unpacked_bytes // _MEBIBYTE} MB.")


async def _containers(docker: Docker, build: str, timeout_s: float) -> dict[str, int]:
    """The containers of a build, and what each has written."""
    async with engine_call("listing containers", timeout_s):
        found = await docker.containers.list(all=1, size=1, filters=json.dumps({"label": [f"{LABEL_BUILD}={build}"]}))
    return {container.id: int(container._container.get("SizeRw") or 0) for container in found}


async def _messages(chunks: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """The objects of a stream, one a line."""
    held = bytearray()
    async for chunk in chunks:
        held += chunk
        while (end := held.find(b"\n")) >= 0:
            line = bytes(held[:end]).strip()
            del held[: end + 1]
            if line:
                yield json.loads(line)
        if len(held) > _MAX_MESSAGE_BYTES:
            raise EngineUnavailable("The engine's builder says something that is too long.")


def _tell(stream: str, text: Text, log: BuildLog) -> None:
    """Log what the builder says; its own steps by their lines in the tenant's file."""
    step = _STEP.match(stream)
    if step is not None and int(step[1]) <= len(text.lines):
        if line := text.lines[int(step[1]) - 1]:
            log.line(f"Dockerfile:{line}: {stream[step.end() :]}")
    elif not _CHATTER.fullmatch(stream):
        log.feed(stream.encode("utf-8", "backslashreplace"))


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
    """What sandboxes may inherit: nothing that says what programs load, or whom they talk to."""
    return tuple(
        one
        for one in environment
        if not one.upper().startswith("LD_") and one.partition("=")[0].lower() not in _PROXIES
    )
