"""What a version's image has of its own, brought to this machine's code cache."""

from __future__ import annotations

import asyncio
import logging
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from aiodocker.types import JSONObject

from worker.build.code_cache import CodeCache, entry_name
from worker.build.layer import MAX_ENTRIES, Content, UnsafeEntry, unpack_archive
from worker.build.recipe import Recipe
from worker.config import EngineConfig
from worker.engine.docker.client import EngineClient
from worker.engine.docker.hardening import LABEL_INSTALLATION, LABEL_WORKER
from worker.engine.docker.image import Image, Images
from worker.errors import EngineUnavailable
from worker.sandbox.contract import SandboxSpec

_CHUNK = 1024 * 1024
_log = logging.getLogger(__name__)
_TRANSFER_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One of a version's folders: what it is called, and the cache's entry of what it holds."""

    entry: str
    folder: str
    content: Content


class VersionCode:
    """Brings code from images into the cache, each layer once."""

    def __init__(self, client: EngineClient, config: EngineConfig, cache: CodeCache) -> None:
        self._client = client
        self._config = config
        self._cache = cache
        self._images = Images(client, config)
        self._parts: dict[tuple[str, UUID], tuple[_Part, ...]] = {}
        self._fetching: dict[tuple[str, UUID], asyncio.Task[None]] = {}
        self._sparing: dict[str, asyncio.Task[None]] = {}

    async def prepare(self, spec: SandboxSpec, recipe: Recipe, runtime: Image) -> bool:
        """Have the version's code in the cache. False if it is not of the kind that a generic sandbox of ``runtime``
        can take: it was built on another base image.

        Raises :class:`EngineUnavailable`. Cancelling it leaves the transfer, which others may be waiting for.
        """
        parts = await self._parts_of(spec, recipe, runtime)
        if parts and not await asyncio.to_thread(self._has, parts):
            await asyncio.shield(self._fetch(spec, parts))
        elif parts:
            self._spare(parts)
        return bool(parts)

    async def place(self, spec: SandboxSpec, recipe: Recipe, runtime: Image, home: Path) -> None:
        """Link the version's code into its folders below ``home``.

        Raises :class:`EngineUnavailable` if it is not in the cache; then it will be soon.
        """
        parts = await self._parts_of(spec, recipe, runtime)
        if not parts:
            raise EngineUnavailable(
                f"The version {spec.version_id} was built on another base image than the generic sandbox."
            )
        try:
            await asyncio.to_thread(self._link, parts, home)
        except FileNotFoundError as error:
            self._fetch(spec, parts)
            raise EngineUnavailable(f"The code of the version {spec.version_id} is not on this machine yet.") from error
        except OSError as error:
            raise EngineUnavailable(f"The code of the version {spec.version_id} cannot be linked: {error}") from error
        self._spare(parts)

    async def forget(self, image: str) -> None:
        """Drop the code that only this image has. Raises :class:`EngineUnavailable`."""
        self._parts = {key: parts for key, parts in self._parts.items() if key[0] != image}
        found = await self._images.find(image)
        if found is not None:
            await asyncio.to_thread(self._cache.drop, found.diff_ids[-1])

    async def close(self) -> None:
        """Return when no transfer runs any more. Idempotent."""
        running = [*self._fetching.values(), *self._sparing.values()]
        for task in self._fetching.values():
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _parts_of(self, spec: SandboxSpec, recipe: Recipe, runtime: Image) -> tuple[_Part, ...]:
        parts = self._parts.get((spec.image, spec.user_id))
        if parts is not None:
            return parts
        image = await self._images.find(spec.image)
        if image is None:
            raise EngineUnavailable(f"The version's image {spec.image} is not on this machine.")
        # The layer between, the runtime's own side, may be of another release of the platform than the generic
        # sandbox's.
        base = len(runtime.diff_ids) - 1
        own = image.diff_ids[base + 1 :]
        dependencies, function = recipe.code_folders
        if image.diff_ids[:base] != runtime.diff_ids[:base] or not 1 <= len(own) <= 2:
            parts = ()
        else:
            parts = (self._part(image, spec, function, own[-1]),)
            # The runtime's own packages may lie in the same folder, and may be all that does.
            shared = any(file.path.startswith(f"{dependencies}/") for file in recipe.files)
            layers = image.diff_ids[base if shared else base + 1 : -1]
            if layers:
                parts = (self._part(image, spec, dependencies, " ".join(layers)), *parts)
        self._parts[spec.image, spec.user_id] = parts
        return parts

    def _part(self, image: Image, spec: SandboxSpec, folder: str, layers: str) -> _Part:
        content = image.content_of(folder)
        if content is None:
            raise EngineUnavailable(f"The image {spec.image} does not say how much its {folder} holds.")
        return _Part(entry=entry_name(spec.user_id, layers), folder=folder, content=content)

    def _has(self, parts: tuple[_Part, ...]) -> bool:
        return all(self._cache.has(part.entry) for part in parts)

    def _link(self, parts: tuple[_Part, ...], home: Path) -> None:
        for part in parts:
            self._cache.link(part.entry, home / part.folder)

    def _spare(self, parts: tuple[_Part, ...]) -> None:
        """Begin to make ahead what the next generic sandbox will want."""
        for part in parts:
            if part.entry not in self._sparing:
                self._sparing[part.entry] = asyncio.get_running_loop().create_task(
                    self._make_spare(part.entry), name=f"spare-{part.entry}"
                )

    async def _make_spare(self, entry: str) -> None:
        try:
            await asyncio.to_thread(self._cache.spare, entry)
        except OSError as error:
            _log.warning("code is not linked ahead", extra={"error": str(error)})
        finally:
            del self._sparing[entry]

    def _fetch(self, spec: SandboxSpec, parts: tuple[_Part, ...]) -> asyncio.Task[None]:
        key = (spec.image, spec.user_id)
        task = self._fetching.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._bring(spec.image, parts), name=f"code-{spec.image}")
            self._fetching[key] = task
            task.add_done_callback(lambda done: self._fetched(key, done))
        return task

    def _fetched(self, key: tuple[str, UUID], task: asyncio.Task[None]) -> None:
        self._fetching.pop(key, None)
        if not task.cancelled():
            task.exception()  # whoever awaits it is told; if nobody does, the next one tries again

    async def _bring(self, image: str, parts: tuple[_Part, ...]) -> None:
        """Read the missing layers out of a container that is made for that and never started."""
        name = f"containerpub-code-{secrets.token_hex(8)}"
        settings: JSONObject = {
            "Image": image,
            "Entrypoint": ["/never-started"],
            "Labels": {LABEL_INSTALLATION: self._config.installation, LABEL_WORKER: self._config.worker_id},
            "NetworkDisabled": True,
            "HostConfig": {"NetworkMode": "none", "ReadonlyRootfs": True, "LogConfig": {"Type": "none"}},
        }
        creating = asyncio.ensure_future(self._client.containers.create(settings, name=name))
        try:
            await asyncio.shield(creating)
            for part in parts:
                if not await asyncio.to_thread(self._cache.has, part.entry):
                    await self._transfer(name, part)
            self._spare(parts)
        finally:
            # Also when cancelled while the engine was still at it.
            await asyncio.wait((creating,))
            await asyncio.shield(self._client.containers.remove(name))

    async def _transfer(self, container: str, part: _Part) -> None:
        most = self._config.max_image_bytes
        with tempfile.TemporaryFile() as spool:
            async with (
                self._client.call("reading a version's code", timeout_s=_TRANSFER_TIMEOUT_S),
                self._client.request(f"containers/{container}/archive", params={"path": f"/{part.folder}"}) as response,
            ):
                size = 0
                async for chunk in response.content.iter_chunked(_CHUNK):
                    size += len(chunk)
                    if size > most + MAX_ENTRIES * 1024:
                        raise EngineUnavailable(f"The code of a version takes more than {most} bytes.")
                    await asyncio.to_thread(spool.write, chunk)

            def fill(tree: Path) -> int:
                spool.seek(0)
                content = unpack_archive(spool, part.folder, tree, most)
                # An engine that is shutting down sends what it can still read, and ends as if that were all.
                if content != part.content:
                    raise UnsafeEntry(f"{content} files and bytes came instead of {part.content}")
                return content.bytes

            try:
                await asyncio.to_thread(self._cache.add, part.entry, fill)
            except (OSError, UnsafeEntry) as error:
                raise EngineUnavailable(f"A version's code cannot be kept on this machine: {error}") from error
