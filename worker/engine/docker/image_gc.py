"""The images of this installation on one engine, and which of them go: runtimes, base images that were loaded, and
those of versions whose Dockerfile made them.

An image is this installation's if it has one of its names and its label. Neither alone is enough: images inherit labels
from their base, and installations that share an engine share its names. Postgres decides which versions stand.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

from worker.build.builds import content_key
from worker.config import EngineConfig
from worker.engine.contract import Standing
from worker.engine.disk_budget import Kept, Kind, Layers, shrink
from worker.engine.docker.client import EngineClient
from worker.engine.docker.hardening import LABEL_INSTALLATION, LABEL_VERSION
from worker.engine.docker.image import Images, ListedImage
from worker.engine.image_use import ImageUse

FUNCTION = "containerpub/function"
RUNTIME = "containerpub/runtime"
BASE = "containerpub/base"
_DEPENDENCIES = "containerpub/dependencies"  # of older releases, which had images of them
_HALF_MADE = "-source-"
_LOCAL = "localhost/"  # how Podman says that a name has no registry
_ASKED_AT_ONCE = 8


def half_made_tag(version: UUID, worker: str) -> str:
    """The tag of what a worker makes on the way to a version's image."""
    return f"{version}{_HALF_MADE}{_short(worker)}"


def base_tag(installation: str, image_id: str) -> str:
    """The tag of a base image that was loaded; it can have no label of ours, since that would make it another image."""
    return f"{_short(installation)}-{image_id.rpartition(':')[2][:32]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ours:
    image: ListedImage
    names: tuple[str, ...]  # of its names, ours
    kind: Kind
    version: UUID | None
    outdated: bool = False  # no version of this release stands on it


class ImageCollector:
    """Sweeps the images of one engine."""

    def __init__(self, client: EngineClient, config: EngineConfig, use: ImageUse) -> None:
        self._config = config
        self._images = Images(client, config)
        self._use = use
        self._layers: dict[str, Layers] = {}  # by image id; neither ever changes

    async def sweep(self, live_workers: frozenset[str]) -> int:
        """Remove what workers that are not live left half made; how many images that were."""
        live = {_short(worker) for worker in live_workers | {self._config.worker_id}}
        count = 0
        for image in await self._images.listed():
            if image.labels.get(LABEL_INSTALLATION) != self._config.installation:
                continue
            for name in image.names:
                repository, _, tag = name.removeprefix(_LOCAL).rpartition(":")
                _, half_made, worker = tag.partition(_HALF_MADE)
                if repository == FUNCTION and half_made and worker not in live:
                    count += await self._images.remove(name)
        return count

    async def collect_garbage(self, standing: Standing, in_use: Iterable[str]) -> int:
        """See :meth:`worker.engine.contract.Engine.collect_garbage`. ``in_use`` are the ids that our own sandboxes run
        from."""
        await asyncio.to_thread(self._use.write, in_use)
        listed = await self._images.listed()
        used_at = await asyncio.to_thread(self._use.last)
        ours = [one for image in listed if (one := self._ours(image, used_at)) is not None]
        stands = await standing(frozenset(one.version for one in ours if one.version is not None))
        idle_since = time.time() - self._config.image_in_use_s
        removed: set[str] = set()
        stay: list[_Ours] = []
        for one in ours:
            if self._stands(one, stands, used_at, idle_since):
                stay.append(one)
            elif await self._remove(one):
                removed.add(one.image.id)
        if self._config.image_disk_bytes:
            there = [image for image in listed if image.id not in removed]
            removed |= await self._shrink(there, stay, used_at, idle_since)
        here = {image.id for image in listed} - removed
        new = [one.image.id for one in stay if one.image.id not in used_at]
        await asyncio.to_thread(self._write_down, new, [image for image in used_at if image not in here], idle_since)
        return len(removed)

    def _write_down(self, new: Iterable[str], absent: Iterable[str], idle_since: float) -> None:
        for image in new:
            self._use.mark(image)
        # One that was marked a moment ago may have been made since we looked.
        last = self._use.last()
        self._use.forget([image for image in absent if last.get(image, 0) <= idle_since])

    def _ours(self, image: ListedImage, used_at: Mapping[str, float]) -> _Ours | None:
        loaded = f"{BASE}:{_short(self._config.installation)}-"
        if names := tuple(name for name in image.names if name.removeprefix(_LOCAL).startswith(loaded)):
            return _Ours(image=image, names=names, kind=Kind.BASE, version=None)
        if image.labels.get(LABEL_INSTALLATION) != self._config.installation:
            return None
        if not image.names:
            # Another image or an operator took its name: it is ours if there is a file for it in ImageUse.
            version = _uuid(image.labels.get(LABEL_VERSION, ""))
            kind = Kind.VERSION if version is not None else Kind.RUNTIME
            return _Ours(image=image, names=(), kind=kind, version=version) if image.id in used_at else None
        kinds = {FUNCTION: Kind.VERSION, _DEPENDENCIES: Kind.VERSION, RUNTIME: Kind.RUNTIME}
        named = [(name, *name.removeprefix(_LOCAL).rpartition(":")[::2]) for name in image.names]
        names = tuple(name for name, repository, _ in named if repository in kinds)
        for _, repository, tag in named:
            named_so = kinds.get(repository)
            version = _uuid(tag) if named_so is Kind.VERSION else None
            if repository == _DEPENDENCIES:
                return _Ours(image=image, names=names, kind=Kind.VERSION, version=None, outdated=True)
            if named_so is not None and (version is not None or named_so is not Kind.VERSION):
                return _Ours(image=image, names=names, kind=named_so, version=version)
        return None

    @staticmethod
    def _stands(one: _Ours, stands: Mapping[UUID, str | None], used_at: Mapping[str, float], idle_since: float) -> bool:
        used_of_late = used_at.get(one.image.id, 0.0) > idle_since
        if one.version is None:
            return (not one.outdated and bool(one.names)) or used_of_late
        # A version's image that it does not stand on was made by an older release, or by an attempt that was lost.
        stands_on = stands.get(one.version, "")
        return stands_on == one.image.id or (one.version in stands and used_of_late) or (not one.names and used_of_late)

    async def _shrink(
        self, listed: list[ListedImage], ours: list[_Ours], used_at: Mapping[str, float], idle_since: float
    ) -> set[str]:
        """Bring ``ours`` below the budget; the ids of those that went."""
        if sum(one.image.size_bytes for one in ours) <= self._config.image_disk_bytes:
            return set()  # even with all that they share counted again and again
        await self._find_layers([image.id for image in listed])
        sizes = {layers: image.size_bytes for image in listed if (layers := self._layers.get(image.id))}
        now = time.time()
        kept = [
            Kept(name=one.image.id, kind=one.kind, layers=layers, used_at=used_at.get(one.image.id, now))
            for one in ours
            if (layers := self._layers.get(one.image.id))
        ]
        by_id = {one.image.id: one for one in ours}
        removed: set[str] = set()

        async def remove(one: Kept) -> bool:
            if not await self._remove(by_id[one.name]):
                return False
            removed.add(one.name)
            return True

        await shrink(kept, sizes, self._config.image_disk_bytes, idle_since=idle_since, remove=remove)
        return removed

    async def _remove(self, one: _Ours) -> bool:
        """Take our names from an image, with the last of which it goes; False if a container uses it."""
        for name in one.names or (one.image.id,):
            if not await self._images.remove(name):
                return False
        return True

    async def _find_layers(self, ids: list[str]) -> None:
        self._layers = {image: layers for image, layers in self._layers.items() if image in set(ids)}
        at_once = asyncio.Semaphore(_ASKED_AT_ONCE)

        async def find(image: str) -> None:
            async with at_once:
                found = await self._images.find(image)
            if found is not None:
                self._layers[image] = found.diff_ids

        looking = [find(image) for image in ids if image not in self._layers]
        failed = [one for one in await asyncio.gather(*looking, return_exceptions=True) if one is not None]
        if failed:
            raise failed[0]


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _short(worker: str) -> str:
    return content_key(worker)[:12]
