"""Bytes out of an untrusted file: as they stand, or out of a gzip file, never more than asked for."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

from shared.archive.rejection import broken
from shared.errors import ContainerPubError

CHUNK_BYTES = 128 * 1024
_INPUT_BYTES = 32 * 1024
_MOST_MEMBERS = 16_384  # of a gzip file; a tool that makes a member of every 64 kB needs 4,000 for 250 MB


class ByteSource(Protocol):
    def read(self, size: int, /) -> bytes:
        """Exactly ``size`` bytes, fewer only at the end."""


def inflated(file: BinaryIO, compressed_bytes: int) -> Iterator[bytes]:
    """Chunks of at most :data:`CHUNK_BYTES` out of one bare deflate stream that must end where its input ends.

    :param compressed_bytes: how much of ``file`` the stream takes.
    """
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
    left = compressed_bytes
    pending = b""
    while not decompressor.eof:
        if not pending:
            pending = file.read(min(left, _INPUT_BYTES))
            left -= len(pending)
        chunk = _inflate(decompressor, pending)
        pending = decompressor.unconsumed_tail
        if chunk:
            yield chunk
    if decompressor.unused_data or pending or left:
        raise broken("there is more data after the end of its compressed data")


def gunzipped(file: BinaryIO) -> Iterator[bytes]:
    """Chunks of at most :data:`CHUNK_BYTES` out of a gzip file: the contents of its members, one after the other
    (RFC 1952). It must end with a member's end."""
    pending = b""
    for _ in range(_MOST_MEMBERS):
        decompressor = zlib.decompressobj(16 + zlib.MAX_WBITS)  # which checks header, CRC and length
        while not decompressor.eof:
            pending = pending or file.read(_INPUT_BYTES)
            chunk = _inflate(decompressor, pending)
            pending = decompressor.unconsumed_tail
            if chunk:
                yield chunk
        pending = decompressor.unused_data or file.read(_INPUT_BYTES)
        if not pending:
            return
    raise broken("its compressed data has too many parts")


def _inflate(decompressor: zlib._Decompress, pending: bytes) -> bytes:
    try:
        # With no input left this still drains what zlib holds back after a chunk was full.
        chunk = decompressor.decompress(pending, CHUNK_BYTES)
    except zlib.error:
        raise broken("its compressed data or checksum is wrong") from None
    if not pending and not chunk and not decompressor.eof:
        raise broken("its compressed data ends too early")
    return chunk


class GzipSource:
    """The content of the gzip file ``file``.

    :param max_bytes: ``overflow()`` is raised as soon as more than this came out.
    """

    def __init__(self, file: BinaryIO, *, max_bytes: int, overflow: Callable[[], ContainerPubError]) -> None:
        self._chunks = gunzipped(file)
        self._buffer = bytearray()
        self._budget = max_bytes
        self._overflow = overflow

    def read(self, size: int, /) -> bytes:
        while len(self._buffer) < size:
            chunk = next(self._chunks, b"")
            if not chunk:
                break
            self._budget -= len(chunk)
            if self._budget < 0:
                raise self._overflow()
            self._buffer += chunk
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data
