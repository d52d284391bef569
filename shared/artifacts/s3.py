"""Artifacts in a bucket of Amazon S3 or of anything that speaks its API (MinIO, Ceph, Cloudflare R2, Garage)."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import re
import tempfile
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, BinaryIO

import aioboto3
import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore.exceptions import BotoCoreError, ClientError

from shared.artifacts.store import (
    CHUNK_BYTES,
    PAYLOADS_A_PORTION,
    TRANSFER_FACTOR,
    Source,
    bounded,
    corrupt,
    is_layer,
    key_digest,
    payload_owner,
    reading,
    replacing_off_loop,
)
from shared.errors import ArtifactMissing, Misconfigured, Unavailable

PART_BYTES = 5 * 1024 * 1024
"""Above this a file goes up in parts of this size, S3's smallest: each is hashed for its signature on the loop."""

_CONNECT_TIMEOUT_S = 5.0
_QUICK = 1
"""Compresses layers nearly as fast as they can be sent."""
_GZIP = 31
"""What zlib calls a stream with the head of gzip."""
_ABORT_TIMEOUT_S = 2.0
_FOREIGN = (BotoCoreError, ClientError, aiohttp.ClientError)
_ABSENT = frozenset({"NoSuchKey", "404", "NotFound"})
_ENCRYPTIONS_WITH_MD5_ETAGS = (None, "AES256")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Summary:
    """Digests and size of a local file that is about to be sent."""

    sha256: str
    size: int
    etag: str


class S3Store:
    """Objects ``sha256/<digest>`` in one bucket, over one client that stays open for the life of the store. Layers are
    objects ``layers/<digest>``, compressed by gzip: the digest is that of what was compressed.

    :param endpoint: URL of the service, addressed path-style; ``None`` means Amazon's own, or R2's (see below).
    :param access_key_id: with ``secret_access_key`` and perhaps ``session_token``; without them botocore's chain
        of sources is asked (environment, shared files, instance role).
    :param region: ``None`` means ``auto`` for R2 and ``us-east-1`` for all others.
    :param account_id: twelve digits are an AWS account: every call then carries it as ``ExpectedBucketOwner``, so
        that a bucket of that name in foreign hands is refused. 32 hex digits are a Cloudflare account: they make
        R2's endpoint, unless ``endpoint`` is given. Anything else is a mistake.

    The store cannot find multipart uploads that killed processes began; a lifecycle rule of the bucket has to end them.
    """

    def __init__(
        self,
        *,
        bucket: str,
        endpoint: str | None = None,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
        session_token: str | None = None,
        region: str | None = None,
        account_id: str | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        self.bucket_owner: str | None = None
        is_r2 = False
        if account_id and re.fullmatch(r"[0-9]{12}", account_id):
            self.bucket_owner = account_id
        elif account_id and re.fullmatch(r"[0-9a-f]{32}", account_id):
            is_r2 = endpoint is None
            endpoint = endpoint or f"https://{account_id}.r2.cloudflarestorage.com"
        elif account_id:
            raise Misconfigured(
                "The S3 account id is neither an AWS account (12 digits) nor a Cloudflare one (32 hex digits).",
                field="s3_account_id",
            )
        if bool(access_key_id) != bool(secret_access_key):
            raise Misconfigured("S3 needs both an access key id and a secret access key.", field="s3_access_key_id")
        self._bucket = {"Bucket": bucket}
        if self.bucket_owner:
            self._bucket["ExpectedBucketOwner"] = self.bucket_owner
        self._timeout_s = timeout_s
        self._credentials = {
            "aws_access_key_id": access_key_id or None,
            "aws_secret_access_key": secret_access_key or None,
            "aws_session_token": session_token or None,
        }
        self.endpoint = endpoint or None
        self.region = region or ("auto" if is_r2 else "us-east-1")
        self._client: Any = None
        self._resources = AsyncExitStack()

    async def open(self) -> None:
        """Make the client, without contacting the service. Idempotent."""
        if self._client is not None:
            return
        config = AioConfig(
            connect_timeout=min(_CONNECT_TIMEOUT_S, self._timeout_s),
            read_timeout=self._timeout_s,
            retries={"mode": "standard", "total_max_attempts": 3},
            s3={"addressing_style": "path" if self.endpoint else "auto"},
            # Many services do not know the newer checksum trailers; content is checked by its SHA-256 anyway.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            # The endpoint comes from our settings only, never from a variable or file of botocore's.
            ignore_configured_endpoint_urls=True,
        )
        session = AioSession()
        await asyncio.to_thread(_warm, session)
        try:
            self._client = await self._resources.enter_async_context(
                aioboto3.Session(botocore_session=session).client(
                    "s3", region_name=self.region, endpoint_url=self.endpoint, config=config, **self._credentials
                )
            )
        except (ValueError, BotoCoreError) as error:
            raise Misconfigured(
                f"The S3 settings make no client ({type(error).__name__}); check endpoint, region and credentials.",
                field="s3_endpoint",
            ) from error

    async def put(self, key: str, source: Source) -> None:
        digest = key_digest(key)
        async with self._bounded("store an artifact", is_layer(key)):
            content = await asyncio.to_thread(_packed, key, source) if is_layer(key) else source
            try:
                summary = await asyncio.to_thread(_summary, content)
                # What was packed had the right digest before.
                if not is_layer(key) and summary.sha256 != digest:
                    raise corrupt(key, "file")
                if not await self._has_equal(key, summary):
                    await self._send(key, content, summary)
            finally:
                if content is not source and not isinstance(content, Path):
                    await asyncio.to_thread(content.close)

    async def fetch(self, key: str, target: Path) -> None:
        digest = key_digest(key)
        async with self._bounded("read an artifact", is_layer(key)):
            try:
                answer = await self._client.get_object(**self._object(key))
            except ClientError as error:
                if _code(error) in _ABSENT:
                    raise ArtifactMissing(f"Artifact {key} is not in the artifact store; deploy it again.") from error
                raise
            body = answer["Body"]
            async with body, replacing_off_loop(target) as file:
                taking = _Taking(file, packed=is_layer(key))
                try:
                    while chunk := await body.read(CHUNK_BYTES):
                        await asyncio.to_thread(taking.take, chunk)
                except zlib.error as error:
                    raise corrupt(key, "stored copy") from error
                if not taking.is_whole(digest):
                    raise corrupt(key, "stored copy")

    async def exists(self, key: str) -> bool:
        key_digest(key)
        async with self._bounded("look up an artifact"):
            return await self._head(key) is not None

    async def delete(self, key: str) -> None:
        key_digest(key)
        async with self._bounded("delete an artifact"):
            try:
                await self._client.delete_object(**self._object(key))
            except ClientError as error:
                if _code(error) not in _ABSENT:
                    raise

    async def write_text(self, name: str, content: bytes) -> None:
        payload_owner(name)
        async with self._bounded("store a text"):
            await self._client.put_object(**self._object(name), Body=content)

    async def read_text(self, name: str) -> bytes:
        payload_owner(name)
        async with self._bounded("read a text"):
            try:
                answer = await self._client.get_object(**self._object(name))
            except ClientError as error:
                if _code(error) in _ABSENT:
                    raise ArtifactMissing("The text is not in the artifact store any more.") from error
                raise
            async with answer["Body"] as body:
                content: bytes = await body.read()
                return content

    async def delete_payloads(self, names: Sequence[str]) -> None:
        for name in names:
            payload_owner(name)
        async with self._bounded("delete texts"):
            for name in names:  # not all services know the call that deletes many
                await self._client.delete_object(**self._object(name))

    async def payloads(self) -> AsyncIterator[Sequence[tuple[str, datetime]]]:
        more: dict[str, str] = {}
        while True:
            async with self._bounded("list texts"):
                answer = await self._client.list_objects_v2(
                    **self._bucket, Prefix="texts/", MaxKeys=PAYLOADS_A_PORTION, **more
                )
            yield [(item["Key"], item["LastModified"]) for item in answer.get("Contents", ())]
            if not answer.get("IsTruncated"):
                return
            more = {"ContinuationToken": answer["NextContinuationToken"]}

    async def check(self) -> None:
        async with self._bounded("reach its bucket"):
            await self._client.head_bucket(**self._bucket)

    async def close(self) -> None:
        self._client = None
        await self._resources.aclose()

    def _bounded(self, action: str, large: bool = False) -> AbstractAsyncContextManager[None]:
        if self._client is None:
            raise Unavailable("The artifact store is not open.")
        return bounded(action, self._timeout_s * (TRANSFER_FACTOR if large else 1), _FOREIGN)

    def _object(self, key: str) -> dict[str, str]:
        return {**self._bucket, "Key": key}

    async def _head(self, key: str) -> dict[str, Any] | None:
        try:
            answer: dict[str, Any] = await self._client.head_object(**self._object(key))
        except ClientError as error:
            # A HEAD has no body to tell a missing key from a missing bucket; check() tells.
            if _code(error) in _ABSENT:
                return None
            raise
        return answer

    async def _has_equal(self, key: str, summary: _Summary) -> bool:
        head = await self._head(key)
        if head is None or head["ContentLength"] != summary.size:
            return False
        # If the ETag is no digest of the content, equal sizes have to do.
        return head.get("ServerSideEncryption") not in _ENCRYPTIONS_WITH_MD5_ETAGS or head["ETag"] == summary.etag

    async def _send(self, key: str, content: Source, summary: _Summary) -> None:
        with reading(content) as file:
            if summary.size <= PART_BYTES:
                await self._client.put_object(**self._object(key), Body=await asyncio.to_thread(file.read))
            else:
                await self._put_in_parts(key, file)

    async def _put_in_parts(self, key: str, file: IO[bytes]) -> None:
        """Send one part after the other.

        aioboto3's ``upload_fileobj`` is not used: cancelled, as by our time bound, it leaves its tasks waiting for
        ever and the upload neither complete nor aborted.
        """
        # Shielded, because an upload whose id never arrived could not be aborted.
        creating = asyncio.ensure_future(self._client.create_multipart_upload(**self._object(key)))
        parts: list[dict[str, Any]] = []
        try:
            this = {**self._object(key), "UploadId": (await asyncio.shield(creating))["UploadId"]}
            while part := await asyncio.to_thread(file.read, PART_BYTES):
                number = len(parts) + 1
                answer = await self._client.upload_part(**this, PartNumber=number, Body=part)
                parts.append({"PartNumber": number, "ETag": answer["ETag"]})
            await self._client.complete_multipart_upload(**this, MultipartUpload={"Parts": parts})
        except BaseException:
            await self._abort(key, creating)
            raise

    async def _abort(self, key: str, creating: asyncio.Future[dict[str, Any]]) -> None:
        try:
            async with asyncio.timeout(_ABORT_TIMEOUT_S):
                upload_id = (await creating)["UploadId"]
                await self._client.abort_multipart_upload(**self._object(key), UploadId=upload_id)
        except (OSError, *_FOREIGN):
            pass  # the first error says more; the bucket's lifecycle rule collects the parts


def _warm(session: AioSession) -> None:
    """Read the service's description, some MB of JSON, into the session's cache, off the event loop."""
    loader = session.get_component("data_loader")
    for name in ("service-2", "endpoint-rule-set-1", "paginators-1", "waiters-2"):
        loader.load_service_model("s3", name)
    for name in ("endpoints", "partitions", "sdk-default-configuration", "_retry"):
        loader.load_data(name)


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


class _Taking:
    """Takes an object in as it arrives: unpacks it, hashes the content and writes it. Its methods block."""

    def __init__(self, file: BinaryIO, *, packed: bool) -> None:
        self._file = file
        self._hashing = hashlib.sha256()
        self._unpacking = zlib.decompressobj(wbits=_GZIP) if packed else None

    def take(self, chunk: bytes) -> None:
        unpacking = self._unpacking
        if unpacking is None:
            self._write(chunk)
            return
        while chunk and not unpacking.eof:
            self._write(unpacking.decompress(chunk, CHUNK_BYTES))
            chunk = unpacking.unconsumed_tail

    def is_whole(self, digest: str) -> bool:
        return (self._unpacking is None or self._unpacking.eof) and self._hashing.hexdigest() == digest

    def _write(self, data: bytes) -> None:
        self._hashing.update(data)
        self._file.write(data)


def _packed(key: str, source: Source) -> IO[bytes]:
    """``source`` compressed, in a file without a name; equal content gives equal bytes."""
    packed: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the caller
    digest = hashlib.sha256()
    with (
        reading(source) as file,
        gzip.GzipFile(filename="", mode="wb", compresslevel=_QUICK, fileobj=packed, mtime=0) as out,
    ):
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            out.write(chunk)
    if digest.hexdigest() != key_digest(key):
        packed.close()
        raise corrupt(key, "file")
    return packed


def _summary(source: Source) -> _Summary:
    """Digests of ``source``: its SHA-256, and the ETag that S3 gives it when it is sent in our parts."""
    whole = hashlib.sha256()
    parts: list[bytes] = []
    size = 0
    with reading(source) as file:
        # One pass more for an empty file, which is one empty part.
        while (part := file.read(PART_BYTES)) or not parts:
            whole.update(part)
            size += len(part)
            parts.append(hashlib.md5(part, usedforsecurity=False).digest())
    if size <= PART_BYTES:
        etag = f'"{parts[0].hex()}"'
    else:
        etag = f'"{hashlib.md5(b"".join(parts), usedforsecurity=False).hexdigest()}-{len(parts)}"'
    return _Summary(sha256=whole.hexdigest(), size=size, etag=etag)
