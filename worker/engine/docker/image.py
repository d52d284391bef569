"""Images: found, pulled, made of layers, saved and loaded.

An image is put together here, as configuration and one tar, and handed to the engine, which has the layers below
already. So equal content gives an equal image id on every machine, and no container is made. An engine that insists
on getting every layer is given the same tar through its builder instead.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import tarfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

import aiohttp
from aiodocker.exceptions import DockerError

from worker.build.layer import Layer
from worker.config import EngineConfig
from worker.engine.docker.client import EngineClient
from worker.errors import EngineUnavailable

_TRANSFER_TIMEOUT_S = 300.0
_CHUNK = 1024 * 1024
_NO_NAME = "<none>:<none>"
_CREATED = "1980-01-02T00:00:00Z"  # part of what an image id is made of
_START_VARIABLES = frozenset({"PYTHONPATH", "PYTHONSTARTUP", "PYTHONHOME", "NODE_OPTIONS"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What the engine says of an image."""

    id: str  # sha256:…
    diff_ids: tuple[str, ...]
    environment: tuple[str, ...]
    command: tuple[str, ...]  # without the entry point
    working_dir: str
    volumes: tuple[str, ...]
    on_build: tuple[str, ...]
    architecture: str
    os: str
    variant: str
    size_bytes: int
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedImage:
    """What the engine says of an image among all others. ``names`` is empty for one that lost its last."""

    id: str
    names: tuple[str, ...]
    labels: Mapping[str, str]
    size_bytes: int


class Images:
    """The images of one engine."""

    def __init__(self, client: EngineClient, config: EngineConfig) -> None:
        self._client = client
        self._docker = client.docker
        self._config = config
        self._accepts_single_layers = True

    async def find(self, reference: str) -> Image | None:
        """The image called ``reference``, a name or an id, if it is on this machine."""
        async with self._client.call("looking for an image"):
            try:
                found = await self._docker.images.inspect(reference)
            except DockerError as error:
                if error.status == 404:
                    return None
                raise
        config = found.get("Config") or {}
        return Image(
            id=found["Id"],
            diff_ids=tuple(found["RootFS"].get("Layers") or ()),
            environment=tuple(config.get("Env") or ()),
            command=tuple(config.get("Cmd") or ()),
            working_dir=config.get("WorkingDir") or "",
            volumes=tuple(config.get("Volumes") or ()),
            on_build=tuple(config.get("OnBuild") or ()),
            architecture=found["Architecture"],
            os=found["Os"],
            variant=found.get("Variant") or "",
            size_bytes=int(found["Size"]),
            labels=config.get("Labels") or {},
        )

    async def base(self, reference: str) -> Image:
        """A runtime's base image, pulled if it is not here.

        :raises EngineUnavailable: it can neither be found nor pulled.
        """
        if (found := await self.find(reference)) is not None:
            return found
        try:
            async with asyncio.timeout(_TRANSFER_TIMEOUT_S):
                await self._docker.images.pull(reference)
        except (DockerError, aiohttp.ClientError, TimeoutError, OSError) as error:
            raise EngineUnavailable(
                f"The base image {reference} is not on this machine and cannot be pulled ({_reason(error)}): "
                f"run `docker pull {reference}` where the registry can be reached, or `make images` to make stand-ins."
            ) from error
        if (found := await self.find(reference)) is None:
            raise EngineUnavailable(f"The base image {reference} was pulled and is not there.")
        return found

    async def stack(self, parent: Image, layer: Layer, name: str, tag: str, labels: Mapping[str, str]) -> Image:
        """``parent`` with ``layer`` on top, tagged ``name:tag``; equal arguments give an equal id. Closes the layer."""
        config = {
            "Env": [one for one in parent.environment if _is_harmless(one)],
            "Labels": dict(labels),
            "WorkingDir": "/function",
        }
        try:
            return await self._make(parent, layer, name, tag, config)
        finally:
            await asyncio.to_thread(layer.file.close)

    async def configure(
        self,
        parent: Image,
        name: str,
        tag: str,
        labels: Mapping[str, str],
        command: Sequence[str],
        environment: Sequence[str],
        working_dir: str,
    ) -> Image:
        """The layers of ``parent``, tagged ``name:tag``, with a configuration of which nothing is ``parent``'s."""
        config = {
            "Env": list(environment),
            "Labels": dict(labels),
            "WorkingDir": working_dir,
            "Cmd": list(command),
        }
        return await self._make(parent, None, name, tag, config)

    async def _make(
        self, parent: Image, layer: Layer | None, name: str, tag: str, config: Mapping[str, object]
    ) -> Image:
        async with self._client.call("assembling an image", timeout_s=_TRANSFER_TIMEOUT_S):
            made = None
            if self._accepts_single_layers:
                made = await self._load(parent, layer, name, tag, config)
            if made is None:
                made = await self._build(parent, layer, name, tag, config)
                # had the builder failed too, the way would not have been the reason
                self._accepts_single_layers = False
        return made

    async def save(self, image_id: str, file: IO[bytes], max_bytes: int) -> tuple[str, int]:
        """Write the image to ``file`` as :meth:`load` takes it; SHA-256 and size of what was written.

        :raises EngineUnavailable: also if that is more than ``max_bytes``.
        """
        digest, size = hashlib.sha256(), 0
        async with (
            self._client.call("saving an image", timeout_s=_TRANSFER_TIMEOUT_S),
            self._client.request(f"images/{image_id}/get") as response,
        ):
            async for chunk in response.content.iter_chunked(_CHUNK):
                size += len(chunk)
                if size > max_bytes:
                    raise EngineUnavailable(f"The image {image_id} takes more than {max_bytes} bytes.")
                await asyncio.to_thread(_take, chunk, digest, file)
        return digest.hexdigest(), size

    async def load(self, file: IO[bytes]) -> None:
        """Have the engine take over an image that :meth:`save` wrote."""
        async with self._client.call("loading an image", timeout_s=_TRANSFER_TIMEOUT_S):
            await self._docker.images.import_image(_chunks(file))

    async def tag(self, image_id: str, name: str, tag: str) -> None:
        async with self._client.call("naming an image"):
            await self._docker.images.tag(image_id, name, tag=tag)

    async def remove(self, reference: str, *, force: bool = False) -> bool:
        """Drop an image's name, and the image with its last one; absent is fine. False if a container uses it.

        :param force: given an id, drop all of its names, and let go of it though a stopped container used it.
        """
        in_use = False
        async with self._client.call("removing an image", 404):
            try:
                await self._docker.images.delete(reference, force=force)
            except DockerError as error:
                if error.status != 409:
                    raise
                in_use = True
        return not in_use

    async def listed(self) -> list[ListedImage]:
        """All images of the engine, also those that are not of this installation."""
        async with self._client.call("listing images"):
            entries = await self._docker.images.list()
        return [
            ListedImage(
                id=entry["Id"],
                names=tuple(name for name in entry.get("RepoTags") or () if name != _NO_NAME),
                labels=entry.get("Labels") or {},
                size_bytes=int(entry["Size"]),
            )
            for entry in entries
        ]

    async def _load(
        self, parent: Image, layer: Layer | None, name: str, tag: str, settings: Mapping[str, object]
    ) -> Image | None:
        """Hand over configuration and the new layer; ``None`` if the engine will not have it so."""
        new = [] if layer is None else [layer.diff_id]
        config = json.dumps(
            {
                "architecture": parent.architecture,
                "os": parent.os,
                **({"variant": parent.variant} if parent.variant else {}),
                "created": _CREATED,
                # nothing else is taken over: no volumes, no entry point, no labels that could pass for ours
                "config": settings,
                "rootfs": {"type": "layers", "diff_ids": [*parent.diff_ids, *new]},
            },
            sort_keys=True,
        ).encode()
        digest = hashlib.sha256(config).hexdigest()
        below = [f"{number}/layer.tar" for number in range(len(parent.diff_ids))]
        manifest = [
            {
                "Config": f"{digest}.json",
                "RepoTags": [f"{name}:{tag}"],
                "Layers": [*below, *(["new/layer.tar"] if new else [])],
            }
        ]
        files = {f"{digest}.json": config, "manifest.json": json.dumps(manifest).encode()}
        try:
            await self._docker.images.import_image(archive(files, "new/layer.tar", layer))
        except DockerError as error:
            if error.status == 900:  # no connection, says aiodocker
                raise
            return None
        return await self.find(f"sha256:{digest}")

    async def _build(
        self, parent: Image, layer: Layer | None, name: str, tag: str, settings: Mapping[str, object]
    ) -> Image:
        recipe = [f"FROM {parent.id}"]
        if layer is not None:
            recipe.append("ADD layer.tar /")
        if "Cmd" in settings:
            recipe += ["ENTRYPOINT []", f"CMD {json.dumps(settings['Cmd'])}"]
        params = {
            "t": f"{name}:{tag}",
            "networkmode": "none",
            "forcerm": "1",
            "nocache": "1",
            "labels": json.dumps(settings["Labels"]),
        }
        context = archive({"Dockerfile": "\n".join(recipe).encode()}, "layer.tar", layer)
        async with self._client.request("build", "POST", params=params, body=context) as response:
            async for line in response.content:
                # a failed build is a 200 whose body says so
                if line.strip() and "errorDetail" in (step := json.loads(line)):
                    raise EngineUnavailable(f"The engine cannot assemble an image: {step['errorDetail']['message']}")
        if (made := await self.find(f"{name}:{tag}")) is None:
            raise EngineUnavailable("The engine assembled an image and lost it.")
        return made


async def archive(files: Mapping[str, bytes], layer_name: str | None, layer: Layer | None) -> AsyncIterator[bytes]:
    """A tar of ``files`` and the layer, as a file if it has a name and else by its entries, read off the event loop."""
    for name, content in files.items():
        yield _header(name, len(content)) + content + bytes(-len(content) % tarfile.BLOCKSIZE)
    if layer is not None:
        if layer_name is not None:
            yield _header(layer_name, layer.size_bytes)
        await asyncio.to_thread(layer.file.seek, 0)
        while chunk := await asyncio.to_thread(layer.file.read, _CHUNK):
            yield chunk
        yield bytes(-layer.size_bytes % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


async def _chunks(file: IO[bytes]) -> AsyncIterator[bytes]:
    await asyncio.to_thread(file.seek, 0)
    while chunk := await asyncio.to_thread(file.read, _CHUNK):
        yield chunk


def _take(chunk: bytes, digest: hashlib._Hash, file: IO[bytes]) -> None:
    digest.update(chunk)
    file.write(chunk)


def _is_harmless(variable: str) -> bool:
    """Whether ``NAME=value`` of a base image leaves alone how programs start and where they connect."""
    name = variable.partition("=")[0]
    return not (name.startswith("LD_") or name.lower().endswith("_proxy") or name in _START_VARIABLES)


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry.tobuf(format=tarfile.PAX_FORMAT)


def _reason(error: BaseException) -> str:
    return error.message if isinstance(error, DockerError) else str(error) or type(error).__name__
