"""The interface of an artifact store, and what every implementation of it shares: keys, time bounds, digests."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, BinaryIO, Protocol
from uuid import UUID

from shared.errors import ArtifactCorrupt, Unavailable

CHUNK_BYTES = 1024 * 1024

TRANSFER_FACTOR = 10
"""How many times a store's usual bound the transfer of a layer may take: base images have hundreds of megabytes."""

_KEY = re.compile(r"(sha256|layers)/([0-9a-f]{64})")
_TEXT = re.compile(r"texts/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/([a-z]+)-[0-9a-f]{16}")
PAYLOADS_A_PORTION = 1000


Source = Path | IO[bytes]


class ArtifactStore(Protocol):
    """Immutable files by the SHA-256 of their content: artifacts under ``sha256/<hex>``, layers of versions under
    ``layers/<hex>``; any other key is a ``ValueError``. A store may compress layers, and hands them out as they came.
    Beside them texts of jobs that are too large for a database (:mod:`shared.payload_store`), by names.

    Every call ends within the store's ``timeout_s``, the transfer of a layer within ten times that, give or take a
    short clean-up. It raises :class:`shared.errors.Unavailable`, cause kept, for whatever goes wrong on the store's
    account.
    """

    async def put(self, key: str, source: Source) -> None:
        """Keep the content of ``source``, a file's path or an open file, under ``key``, completely or not at all.

        What is there already and equal is not sent again; a damaged one is replaced. Raises
        :class:`ArtifactCorrupt`, and stores nothing, if the content does not have the digest that ``key`` names.
        """

    async def fetch(self, key: str, target: Path) -> None:
        """Write the content to ``target``, which appears complete and verified or not at all.

        Raises :class:`ArtifactMissing` or :class:`ArtifactCorrupt`.
        """

    async def exists(self, key: str) -> bool:
        """Whether ``key`` is there; says nothing about its content."""

    async def delete(self, key: str) -> None:
        """Drop ``key``; absent is fine."""

    async def write_text(self, name: str, content: bytes) -> None:
        """Keep ``content`` under ``name``, completely or not at all, in place of what was there.

        Names of texts are those of :func:`text_name`, anything else is a ``ValueError``.
        """

    async def read_text(self, name: str) -> bytes:
        """Raises :class:`ArtifactMissing`."""

    async def delete_payloads(self, names: Sequence[str]) -> None:
        """Drop these, a thousand at most; absent is fine."""

    def payloads(self) -> AsyncIterator[Sequence[tuple[str, datetime]]]:
        """All names in portions of a thousand at most, each with the time of its writing."""

    async def check(self) -> None:
        """Return if the store can be used at this moment, raise :class:`Unavailable` if not."""

    async def close(self) -> None:
        """Let go of connections. Idempotent; the store is not used afterwards."""


def artifact_key(sha256: str) -> str:
    """The key of the content with this hex digest."""
    key = f"sha256/{sha256}"
    key_digest(key)
    return key


def key_digest(key: str) -> str:
    """The hex digest in ``key``; ``ValueError`` if it is not a key."""
    match = _KEY.fullmatch(key)
    if not match:
        raise ValueError("a key is sha256/ or layers/, and 64 lower-case hex digits")
    return match[2]


def layer_key(digest: str) -> str:
    """The key of the layer with this hex digest."""
    key = f"layers/{digest}"
    key_digest(key)
    return key


def is_layer(key: str) -> bool:
    return key.startswith("layers/")


def payload_name(job: UUID, part: str) -> str:
    """A name for a text of ``job``, never the same twice."""
    return f"texts/{job}/{part}-{secrets.token_hex(8)}"


def payload_owner(name: str) -> tuple[UUID, str]:
    """The job and the part in the name of a text; ``ValueError`` if it is not one."""
    match = _TEXT.fullmatch(name)
    if not match:
        raise ValueError("a text's name is texts/, its job's id, / and what it is of that job")
    return UUID(match[1]), match[2]


def corrupt(key: str, where: str) -> ArtifactCorrupt:
    return ArtifactCorrupt(f"The {where} of artifact {key} does not have the digest in its name; deploy it again.")


@asynccontextmanager
async def bounded(action: str, timeout_s: float, foreign: tuple[type[Exception], ...]) -> AsyncIterator[None]:
    """The one place where a store's foreign errors, and its running out of time, become ``Unavailable``."""
    caught: tuple[type[BaseException], ...] = (OSError, *foreign)  # TimeoutError is an OSError
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except caught as error:
        why = f"no answer within {timeout_s:g} s" if isinstance(error, TimeoutError) else type(error).__name__
        raise Unavailable(f"The artifact store could not {action} ({why}); retry later.") from error


@contextmanager
def reading(source: Source) -> Iterator[IO[bytes]]:
    """``source`` from its start; a file that is open already stays so. Blocking."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            yield file
    else:
        source.seek(0)
        yield source


@contextmanager
def replacing(target: Path, folder: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write to that becomes ``target`` when the block ends well, and vanishes when it does not.

    Its mode is 0600. ``folder``, on the same file system, holds it until then; ``target``'s own by default.
    """
    descriptor, name = tempfile.mkstemp(dir=folder or target.parent, prefix=".artifact-", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


@asynccontextmanager
async def replacing_off_loop(target: Path) -> AsyncIterator[BinaryIO]:
    """:func:`replacing` with its file work in threads; cancelled at any point it still cleans up."""
    manager = replacing(target)
    opening = asyncio.ensure_future(asyncio.to_thread(manager.__enter__))
    try:
        # Shielded: a thread that is making the file cannot be called back, so its file must be waited for.
        yield await asyncio.shield(opening)
    except BaseException as error:
        await opening
        await asyncio.to_thread(manager.__exit__, type(error), error, error.__traceback__)
        raise
    await asyncio.to_thread(manager.__exit__, None, None, None)


def file_sha256(source: Source) -> str:
    """Blocking."""
    with reading(source) as file:
        # Not hashlib.file_digest: it refuses files that are kept in memory.
        digest = hashlib.sha256()
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
        return digest.hexdigest()
