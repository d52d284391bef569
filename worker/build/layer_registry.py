"""Layers in a registry of the operator's, beside the artifact store: a second copy, pushed and pulled by digest.

A layer is a blob as it is, uncompressed, so that the registry's name for it is ours. A registry collects blobs that no
manifest names, therefore each has a manifest of its own with the tag ``sha256-<digest>``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, TypeVar, cast
from urllib.parse import urlsplit

import requests
from dxf import DXF, DXFBase
from dxf.exceptions import DXFAuthInsecureError, DXFDigestMismatchError, DXFError, DXFUnauthorizedError

from shared.artifacts.store import CHUNK_BYTES, TRANSFER_FACTOR, replacing
from shared.errors import ArtifactCorrupt, ArtifactMissing, Unavailable
from shared.in_thread import finished_in_thread
from shared.scratch import Scratch

T = TypeVar("T")
REPOSITORY = "containerpub/layers"


class _Abandoned(OSError):
    """The caller stopped waiting; the thread gives up at its next step."""


class LayerRegistry:
    """Implements :class:`worker.build.layer_store.SecondCopy`.

    Each call ends within the configured time, the transfer of a layer within ten times that, and raises
    :class:`shared.errors.Unavailable` if the registry is away or refuses.

    :param url: ``http://`` or ``https://``, host, perhaps port, perhaps a path that goes before our repository.
    :param scratch: where a layer is put on its way from the artifact store.
    """

    def __init__(
        self, url: str, scratch: Scratch, *, user: str = "", password: str = "", timeout_s: float = 60.0
    ) -> None:
        self._scratch = scratch
        self._credentials = (user or None, password or None)
        self._timeout_s = timeout_s
        parts = urlsplit(url)
        self._host, self._plain = parts.netloc, parts.scheme == "http"
        self._repository = f"{parts.path.strip('/')}/{REPOSITORY}".lstrip("/")

    async def push(self, digest: str, file: IO[bytes]) -> None:
        """Have the layer in ``file``, which stays open, in the registry; what is there already is not sent again."""
        await self._run("take a layer", lambda abandoned: self._push(digest, file, abandoned), TRANSFER_FACTOR)

    async def pull(self, digest: str, target: Path) -> None:
        """Write the layer to ``target``, which appears complete and verified or not at all.

        Raises :class:`ArtifactMissing` or :class:`ArtifactCorrupt`.
        """
        await self._run("give a layer", lambda abandoned: self._pull(digest, target, abandoned), TRANSFER_FACTOR)

    async def copy(self, digest: str, fetch: Callable[[Path], Awaitable[None]]) -> None:
        """Have the layer, which ``fetch`` writes to a file, in the registry too, if it is not there."""
        if await self._run("look up a layer", lambda _: self._has(digest)):
            return
        async with self._scratch.folder() as folder:
            await fetch(folder / digest)
            with await finished_in_thread(lambda: (folder / digest).open("rb"), IO.close) as file:
                await self.push(digest, file)

    async def delete(self, digest: str) -> None:
        """Drop the layer; absent is fine. Its disk is free once the registry collects its garbage."""
        await self._run("delete a layer", lambda _: self._delete(digest))

    async def _run(self, action: str, step: Callable[[threading.Event], T], factor: int = 1) -> T:
        abandoned, where = threading.Event(), f"The registry {self._host}"
        try:
            async with asyncio.timeout(self._timeout_s * factor):
                return await asyncio.to_thread(step, abandoned)
        except DXFAuthInsecureError as error:
            raise Unavailable(f"{where} asks for a password, which is not sent without TLS.") from error
        except DXFUnauthorizedError as error:
            raise Unavailable(f"{where} refuses the user or password that the settings name.") from error
        except TimeoutError as error:
            raise Unavailable(f"{where} could not {action} (no answer in time); retry later.") from error
        except (requests.RequestException, DXFError, OSError) as error:
            raise Unavailable(f"{where} could not {action} ({_why(error)}); retry later.") from error
        finally:
            abandoned.set()

    def _push(self, digest: str, file: IO[bytes], abandoned: threading.Event) -> None:
        with self._client() as client:
            client.push_blob(data=_chunks(file, abandoned), digest=f"sha256:{digest}")
            if not _is_there(client, digest):
                client.set_alias(_tag(digest), f"sha256:{digest}")

    def _pull(self, digest: str, target: Path, abandoned: threading.Event) -> None:
        name = f"The layer {digest[:12]} in the registry {self._host}"
        try:
            with self._client() as client, replacing(target) as file:
                for chunk in cast(Iterable[bytes], client.pull_blob(f"sha256:{digest}", chunk_size=CHUNK_BYTES)):
                    if abandoned.is_set():
                        raise _Abandoned("the caller stopped waiting")
                    file.write(chunk)
        except DXFDigestMismatchError as error:
            raise ArtifactCorrupt(f"{name} is damaged; deploy again.") from error
        except requests.HTTPError as error:
            if _status(error) == requests.codes.not_found:
                raise ArtifactMissing(f"{name} is not there; deploy again.") from error
            raise

    def _has(self, digest: str) -> bool:
        with self._client() as client:
            return _is_there(client, digest)

    def _delete(self, digest: str) -> None:
        with self._client() as client:
            for delete in (lambda: client.del_alias(_tag(digest)), lambda: client.del_blob(f"sha256:{digest}")):
                try:
                    delete()
                except requests.HTTPError as error:
                    if _status(error) != requests.codes.not_found:
                        raise

    def _client(self) -> DXF:
        def authenticate(base: DXFBase, response: requests.Response) -> None:
            base.authenticate(*self._credentials, response=response)

        return DXF(self._host, self._repository, authenticate, self._plain, timeout=self._timeout_s)


def _is_there(client: DXF, digest: str) -> bool:
    """Whether the layer is, and the manifest that keeps it."""
    try:
        client.blob_size(f"sha256:{digest}")
        client.head_manifest_and_response(_tag(digest))
    except requests.HTTPError as error:
        if _status(error) != requests.codes.not_found:
            raise
        return False
    return True


def _tag(digest: str) -> str:
    return f"sha256-{digest}"


def _chunks(file: IO[bytes], abandoned: threading.Event) -> Iterator[bytes]:
    file.seek(0)
    while chunk := file.read(CHUNK_BYTES):
        if abandoned.is_set():
            raise _Abandoned("the caller stopped waiting")
        yield chunk


def _status(error: requests.HTTPError) -> int | None:
    return None if error.response is None else error.response.status_code


def _why(error: Exception) -> str:
    status = _status(error) if isinstance(error, requests.HTTPError) else None
    return f"HTTP {status}" if status else type(error).__name__
