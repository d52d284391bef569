"""Artifacts in a folder of this machine (or of a volume that its machines share)."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, TypeVar

from shared.artifacts.store import (
    CHUNK_BYTES,
    PAYLOADS_A_PORTION,
    TRANSFER_FACTOR,
    Source,
    bounded,
    corrupt,
    file_sha256,
    is_layer,
    key_digest,
    payload_owner,
    reading,
    replacing,
)
from shared.errors import ArtifactMissing

T = TypeVar("T")

STALE_S = 3600.0
"""Age at which a half-written file in ``incoming`` cannot belong to a living process any more."""


class _Abandoned(OSError):
    """The caller stopped waiting; the thread gives up at its next step."""


class LocalStore:
    """Files ``<folder>/sha256/<first two digits>/<digest>`` of mode 0600 in folders of mode 0700; layers stand in
    ``layers`` in the same way, uncompressed.

    A new file is written to ``<folder>/incoming``, synced, then renamed. All file work happens in threads, so a disk
    that hangs costs a thread but never the event loop.
    """

    def __init__(self, folder: Path, *, timeout_s: float = 30.0) -> None:
        self._folder = folder
        self._incoming = folder / "incoming"
        self._timeout_s = timeout_s

    async def open(self) -> None:
        """Make the folders, and remove half-written files of killed processes. Idempotent."""
        await self._run("open its folder", self._prepare)

    async def put(self, key: str, source: Source) -> None:
        path = self._path(key)
        await self._run("store an artifact", lambda abandoned: self._put(key, source, path, abandoned), is_layer(key))

    async def fetch(self, key: str, target: Path) -> None:
        path = self._path(key)
        await self._run("read an artifact", lambda abandoned: self._fetch(key, path, target, abandoned), is_layer(key))

    async def exists(self, key: str) -> bool:
        path = self._path(key)
        return await self._run("look up an artifact", lambda _: self._exists(path))

    async def delete(self, key: str) -> None:
        path = self._path(key)
        await self._run("delete an artifact", lambda _: self._delete(path))

    async def write_text(self, name: str, content: bytes) -> None:
        path = self._payload_path(name)
        await self._run("store a text", lambda _: self._write_payload(path, content))

    async def read_text(self, name: str) -> bytes:
        path = self._payload_path(name)
        return await self._run("read a text", lambda _: self._read_payload(path))

    async def delete_payloads(self, names: Sequence[str]) -> None:
        paths = [self._payload_path(name) for name in names]
        await self._run("delete texts", lambda _: _unlink(paths))

    async def payloads(self) -> AsyncIterator[Sequence[tuple[str, datetime]]]:
        for folder in await self._run("list texts", lambda _: sorted((self._folder / "texts").iterdir())):
            found = await self._run("list texts", lambda _, folder=folder: _payloads_in(folder))  # type: ignore[misc]
            for start in range(0, len(found), PAYLOADS_A_PORTION):
                yield found[start : start + PAYLOADS_A_PORTION]

    async def check(self) -> None:
        await self._run("write to its folder", self._probe)

    async def close(self) -> None:
        """Does nothing: no file stays open."""

    def _path(self, key: str) -> Path:
        digest = key_digest(key)
        return self._folder / key.partition("/")[0] / digest[:2] / digest

    def _payload_path(self, name: str) -> Path:
        job, _ = payload_owner(name)
        return self._folder / "texts" / job.hex[-2:] / name.removeprefix("texts/").replace("/", ".")

    async def _run(self, action: str, step: Callable[[threading.Event], T], large: bool = False) -> T:
        abandoned = threading.Event()
        try:
            async with bounded(action, self._timeout_s * (TRANSFER_FACTOR if large else 1), ()):
                return await asyncio.to_thread(step, abandoned)
        finally:
            # A thread cannot be cancelled. It reads this flag, stops, and removes what it wrote.
            abandoned.set()

    def _prepare(self, _: threading.Event) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (*(self._folder / name for name in ("sha256", "layers", "texts")), self._incoming):
            folder.mkdir(mode=0o700, exist_ok=True)
        oldest = time.time() - STALE_S
        for left_over in self._incoming.iterdir():
            if left_over.stat().st_mtime < oldest:
                left_over.unlink(missing_ok=True)

    def _put(self, key: str, source: Source, path: Path, abandoned: threading.Event) -> None:
        digest = key_digest(key)
        if self._exists(path) and file_sha256(path) == digest:
            if file_sha256(source) != digest:
                raise corrupt(key, "file")
            return
        with replacing(path, self._incoming) as file:
            if _copy(source, file, abandoned) != digest:
                raise corrupt(key, "file")
            path.parent.mkdir(mode=0o700, exist_ok=True)
        _sync_folder(path.parent)

    def _fetch(self, key: str, path: Path, target: Path, abandoned: threading.Event) -> None:
        if not self._exists(path):
            raise ArtifactMissing(f"Artifact {key} is not in the artifact store; deploy it again.")
        with replacing(target) as file:
            if _copy(path, file, abandoned) != key_digest(key):
                raise corrupt(key, "stored copy")

    def _write_payload(self, path: Path, content: bytes) -> None:
        with replacing(path, self._incoming) as file:
            file.write(content)
            path.parent.mkdir(mode=0o700, exist_ok=True)
        _sync_folder(path.parent)

    def _read_payload(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            (self._folder / "texts").stat()
            raise ArtifactMissing("The text is not in the artifact store any more.") from None

    def _exists(self, path: Path) -> bool:
        if path.is_file():
            return True
        # Without its root the store is away (a volume is not mounted): that must not read as "the file is not there".
        (self._folder / "sha256").stat()
        return False

    def _delete(self, path: Path) -> None:
        if self._exists(path):
            path.unlink(missing_ok=True)
            _sync_folder(path.parent)

    def _probe(self, _: threading.Event) -> None:
        (self._folder / "sha256").stat()
        with tempfile.TemporaryFile(dir=self._incoming) as file:
            file.write(b"probe")
            file.flush()


def _unlink(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _payloads_in(folder: Path) -> list[tuple[str, datetime]]:
    found = []
    for path in folder.iterdir():
        try:
            written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        except FileNotFoundError:
            continue
        found.append((f"texts/{path.name.replace('.', '/')}", written))
    return found


def _copy(source: Source, file: BinaryIO, abandoned: threading.Event) -> str:
    """Copy ``source`` and return its SHA-256."""
    digest = hashlib.sha256()
    with reading(source) as content:
        while chunk := content.read(CHUNK_BYTES):
            if abandoned.is_set():
                raise _Abandoned("the caller stopped waiting")
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
