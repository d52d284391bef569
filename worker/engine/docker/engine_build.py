"""One build by the engine's own builder: sets its caps, reads its output, and watches the disk meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

from aiodocker.exceptions import DockerError

from worker.build.build_log import BuildLog
from worker.build.dockerfile import CONTEXT, Text
from worker.build.layer import Layer, artifact_layer, in_thread
from worker.build.plan import BuildPlan, BuildRejected
from worker.config import DockerfileConfig, EngineConfig
from worker.engine.docker.build_cap import Machine
from worker.engine.docker.client import EngineClient
from worker.engine.docker.image import archive
from worker.errors import EngineUnavailable

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
_SLACK_S = 20.0
"""How much later than the build's own deadline the talk with the builder ends, if nothing else ends it."""
_DROPPED_AT_ONCE = 256 * 1024
_PAUSE_S = 0.005
"""After so many bytes that are only thrown away: bounds what a flood costs the event loop."""
_STEP = re.compile(r"Step (\d+)/\d+ : ")
_CHATTER = re.compile(
    r"\n|( ---> (Running in )?|Removing intermediate container |Successfully built )[0-9a-f]{12}\n",
)


class EngineBuild:
    """One request to the engine's builder.

    :param build: the value of our label on whatever it makes.
    """

    def __init__(
        self,
        client: EngineClient,
        config: EngineConfig,
        plan: BuildPlan,
        settings: DockerfileConfig,
        machine: Machine,
        build: str,
        cgroup: str,
    ) -> None:
        self._client = client
        self._config = config
        self._plan = plan
        self._settings = settings
        self._machine = machine
        self._build = build
        self._cgroup = cgroup

    async def run(self, text: Text, sizes: Mapping[str, int], log: BuildLog) -> str:
        """Build; the image's id. The build has a connection of its own, and closing that ends the build.

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
                await asyncio.gather(reading, watching, return_exceptions=True)
        finally:
            await asyncio.to_thread(layer.file.close)

    async def _read(self, text: Text, layer: Layer, log: BuildLog) -> str:
        image_id, dropped = "", 0
        async with self._client.call("building a Dockerfile", timeout_s=self._plan.timeout_s + _SLACK_S):
            try:
                context = archive({_FILE: text.text.encode()}, None, layer)
                async with self._client.request("build", "POST", params=self._params(), body=context) as response:
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
        """Watch the disk; never returns.

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
                raise too_much(self._plan)

    async def _written(self, sizes: Mapping[str, int]) -> int:
        """Bytes that the build has on disk beside its base images."""
        running = await containers_of(self._client, self._build)
        async with self._client.call("listing images"):
            images = await self._client.docker.images.list(filters={"label": [f"{LABEL_BUILD}={self._build}"]})
        kept: int = sum(max(0, image["Size"] - sizes[image["Labels"][LABEL_STAGE]]) for image in images)
        return kept + sum(running.values())

    async def _disk_is_low(self) -> bool:
        if not self._machine.is_here:
            return False
        disk = await asyncio.to_thread(os.statvfs, self._machine.root)
        few_files = disk.f_favail < disk.f_files * _FREE_INODES
        return few_files or disk.f_bavail * disk.f_frsize < self._settings.min_free_bytes


def too_much(plan: BuildPlan) -> BuildRejected:
    """For a build that writes more than it may."""
    return BuildRejected("build_failed", f"The build writes more than {plan.max_unpacked_bytes // _MEBIBYTE} MB.")


async def containers_of(client: EngineClient, build: str) -> dict[str, int]:
    """The containers of a build, and how many bytes each has written."""
    found = await client.containers.listed(f"{LABEL_BUILD}={build}", sizes=True)
    return {container.id: container.written_bytes for container in found}


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
    """Log the builder's output, with its steps named by their lines in the tenant's file."""
    step = _STEP.match(stream)
    if step is not None and int(step[1]) <= len(text.lines):
        if line := text.lines[int(step[1]) - 1]:
            log.line(f"Dockerfile:{line}: {stream[step.end() :]}")
    elif not _CHATTER.fullmatch(stream):
        log.feed(stream.encode("utf-8", "backslashreplace"))
