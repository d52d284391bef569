"""Fetches a version's layers from the store, once a machine, and links their files into the folders of sandboxes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO
from uuid import UUID

from shared.in_thread import finished_in_thread, temporary_folder
from shared.layers import LayerKind, LayerRef, VersionLayers
from worker.build.code_cache import CodeCache, entry_name
from worker.build.layer import UnsafeEntry, unpack_layer
from worker.build.layer_store import LayerStore
from worker.build.recipe import COMPILED, FUNCTION, Recipe
from worker.errors import EngineUnavailable

_log = logging.getLogger(__name__)


class NotHere(EngineUnavailable):
    """A version's code is not on this machine yet; it will be soon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One of a version's folders: the cache's entry of what it holds, and the layers that it is made of."""

    folder: str
    entry: str
    layers: tuple[LayerRef, ...]


class VersionCode:
    """Brings code from the store into the cache, and from there into folders."""

    def __init__(self, cache: CodeCache, layers: LayerStore, max_bytes: int) -> None:
        """:param max_bytes: of one folder."""
        self._cache = cache
        self._layers = layers
        self._max_bytes = max_bytes
        self._fetching: dict[tuple[_Part, ...], asyncio.Task[None]] = {}
        self._sparing: dict[str, asyncio.Task[None]] = {}

    async def prepare(self, user_id: UUID, recipe: Recipe, layers: VersionLayers) -> None:
        """Have the version's code in the cache. Raises :class:`EngineUnavailable`.

        If it is cancelled the transfer goes on, since other callers may wait for it.
        """
        parts = parts_of(user_id, recipe, layers)
        if await asyncio.to_thread(self._missing, parts):
            await asyncio.shield(self._fetch(parts))
        else:
            self._spare(parts)

    async def place(self, user_id: UUID, recipe: Recipe, layers: VersionLayers, home: Path) -> None:
        """Link the version's code into its empty folders below ``home``.

        :raises NotHere: it is not in the cache; a transfer into it begins.
        :raises EngineUnavailable: it cannot be linked.
        """
        parts = parts_of(user_id, recipe, layers)
        try:
            await finished_in_thread(partial(self._link, parts, home))
        except FileNotFoundError as error:
            if not await asyncio.to_thread(home.is_dir):
                raise EngineUnavailable(f"The folder of the sandbox {home.name} is gone.") from error
            self._fetch(parts)
            raise NotHere("The version's code is not on this machine yet.") from error
        except OSError as error:
            raise EngineUnavailable(f"The version's code cannot be linked: {error}") from error
        self._spare(parts)

    async def add(self, user_id: UUID, recipe: Recipe, layers: VersionLayers, files: Mapping[str, IO[bytes]]) -> None:
        """As :meth:`prepare`, for a version that was just built: ``files`` are its layers that are at hand, by digest.

        An error is only logged: the first start fetches the code then.
        """
        parts = parts_of(user_id, recipe, layers)
        try:
            if await asyncio.to_thread(self._missing, parts):
                await self._bring(parts, files)
        except EngineUnavailable as error:
            _log.warning("a new version's code is not kept", extra={"error": error.message})

    async def close(self) -> None:
        """Return when no transfer runs any more. Idempotent."""
        running = [*self._fetching.values(), *self._sparing.values()]
        for task in self._fetching.values():
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _missing(self, parts: tuple[_Part, ...]) -> tuple[_Part, ...]:
        return tuple(part for part in parts if not self._cache.has(part.entry))

    def _link(self, parts: tuple[_Part, ...], home: Path) -> None:
        for part in parts:
            self._cache.link(part.entry, home / part.folder)

    def _fetch(self, parts: tuple[_Part, ...]) -> asyncio.Task[None]:
        task = self._fetching.get(parts)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._bring(parts, {}), name="fetch-layers")
            self._fetching[parts] = task
            task.add_done_callback(lambda done: self._fetched(parts, done))
        return task

    def _fetched(self, parts: tuple[_Part, ...], task: asyncio.Task[None]) -> None:
        self._fetching.pop(parts, None)
        if not task.cancelled():
            task.exception()  # marks it as read: callers that await the task get it, and a later call tries again

    async def _bring(self, parts: tuple[_Part, ...], files: Mapping[str, IO[bytes]]) -> None:
        """Make the entries that the cache lacks, of ``files`` or else of what the store has."""
        try:
            async with temporary_folder(self._cache.scratch) as scratch:
                missing = await asyncio.to_thread(self._missing, parts)
                wanted = {layer.digest: layer for part in missing for layer in part.layers if layer.digest not in files}
                for digest, layer in wanted.items():
                    await self._layers.fetch(layer, scratch / digest)
                beside = {part.entry for part in parts}
                await finished_in_thread(partial(self._unpack, missing, beside, files, scratch))
        except (OSError, UnsafeEntry) as error:
            raise EngineUnavailable(f"A version's code cannot be kept on this machine: {error}") from error
        self._spare(parts)

    def _unpack(
        self, parts: tuple[_Part, ...], beside: Collection[str], files: Mapping[str, IO[bytes]], fetched: Path
    ) -> None:
        for part in parts:

            def fill(tree: Path, part: _Part = part) -> int:
                size = 0
                with ExitStack() as opened:
                    for layer in part.layers:
                        file = files.get(layer.digest) or opened.enter_context((fetched / layer.digest).open("rb"))
                        file.seek(0)
                        size += unpack_layer(file, part.folder, tree, self._max_bytes)
                return size

            self._cache.add(part.entry, fill, beside)

    def _spare(self, parts: tuple[_Part, ...]) -> None:
        """Begin to make the spares that the next sandbox will take."""
        for part in parts:
            if part.entry not in self._sparing:
                self._sparing[part.entry] = asyncio.get_running_loop().create_task(
                    self._make_spare(part.entry), name=f"spare-{part.entry}"
                )

    async def _make_spare(self, entry: str) -> None:
        try:
            await asyncio.to_thread(self._cache.spare, entry)
        except OSError as error:
            _log.warning("no spare of the code was made", extra={"error": str(error)})
        finally:
            del self._sparing[entry]


def parts_of(user_id: UUID, recipe: Recipe, version: VersionLayers) -> tuple[_Part, ...]:
    """The folders of a version that hold anything. Raises :class:`EngineUnavailable` if it has no code."""
    code, packages = version.of(LayerKind.CODE), version.of(LayerKind.DEPENDENCIES)
    if code is None:
        raise EngineUnavailable("The version has no layer with its code.")
    brought = version.of(LayerKind.RUNTIME) if recipe.brings_packages else None
    folders = [(recipe.dependencies, (brought, packages)), (FUNCTION, (code,))]
    if recipe.compile is not None:
        folders.append((COMPILED, (code,)))
    parts = []
    for folder, layers in folders:
        held = tuple(layer for layer in layers if layer is not None)
        if held:
            name = entry_name(user_id, " ".join((folder, *(layer.digest for layer in held))))
            parts.append(_Part(folder=folder, entry=name, layers=held))
    return tuple(parts)
