"""Bytes out of an untrusted file: as they stand, or out of one gzip member, never more than asked for."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

from shared.archive.rejection import broken
from shared.errors import ContainerPubError

CHUNK_BYTES = 128 * 1024
_INPUT_BYTES = 32 * 1024


class ByteSource(Protocol):
    def read(self, size: int, /) -> bytes:
        """Exactly ``size`` bytes, fewer only at the end."""


def inflated(file: BinaryIO, compressed_bytes: int | None, wbits: int) -> Iterator[bytes]:
    """Chunks of at most :data:`CHUNK_BYTES` out of one deflate stream that must end where its input ends.

    :param compressed_bytes: how much of ``file`` the stream takes; ``None`` for all the rest.
    :param wbits: as in :func:`zlib.decompressobj`; 31 has zlib check the gzip header, CRC and length.
    """
    decompressor = zlib.decompressobj(wbits)
    left = compressed_bytes
    pending = b""
    while not decompressor.eof:
        if not pending:
            pending = file.read(_INPUT_BYTES if left is None else min(left, _INPUT_BYTES))
            left = None if left is None else left - len(pending)
        try:
            # With no input left this still drains what zlib holds back after a chunk was full.
            chunk = decompressor.decompress(pending, CHUNK_BYTES)
        except zlib.error:
            raise broken("its compressed data or checksum is wrong") from None
        if not pending and not chunk and not decompressor.eof:
            raise broken("its compressed data ends too early")
        pending = decompressor.unconsumed_tail
        if chunk:
            yield chunk
    if decompressor.unused_data or pending or left or (left is None and file.read(1)):
        raise broken("there is more data after the end of its compressed data")


class GzipSource:
    """The content of the one gzip member that ``file`` consists of.

    :param max_bytes: ``overflow()`` is raised as soon as more than this came out.
    """

    def __init__(self, file: BinaryIO, *, max_bytes: int, overflow: Callable[[], ContainerPubError]) -> None:
        self._chunks = inflated(file, None, wbits=31)
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
