"""Hostile and well-meant archives, made byte by byte: the standard writers refuse to make most of these."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

BLOCK = 512


def tar_header(
    name: bytes,
    *,
    kind: bytes = b"0",
    size: int | bytes = 0,
    mode: int | bytes = 0o644,
    link: bytes = b"",
    prefix: bytes = b"",
    magic: bytes = b"ustar\00000",
    checksum: bytes | None = None,
) -> bytes:
    """One header block; a number given as bytes is written as it stands."""
    fields = [
        name.ljust(100, b"\0")[:100],
        (mode if isinstance(mode, bytes) else b"%07o\0" % mode).ljust(8, b"\0"),
        b"%07o\0" % 1000,
        b"%07o\0" % 1000,
        (size if isinstance(size, bytes) else b"%011o\0" % size).ljust(12, b"\0"),
        b"%011o\0" % 1_700_000_000,
        b" " * 8,
        kind,
        link.ljust(100, b"\0"),
        magic,
        b"somebody".ljust(32, b"\0"),
        b"somebody".ljust(32, b"\0"),
        b"0000000\0" * 2,
        prefix.ljust(155, b"\0"),
        bytes(12),
    ]
    block = b"".join(fields)
    assert len(block) == BLOCK
    return block[:148] + (b"%06o\0 " % sum(block) if checksum is None else checksum) + block[156:]


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def tar_file(name: bytes, content: bytes = b"", **header: object) -> bytes:
    return tar_header(name, size=len(content), **header) + padded(content)  # type: ignore[arg-type]


def tar_folder(name: bytes) -> bytes:
    return tar_header(name, kind=b"5", mode=0o755)


def pax_record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    while len(str(length)) + len(key) + len(value) + 3 != length:
        length += 1
    return b"%d %s=%s\n" % (length, key, value)


def pax(records: Iterable[tuple[bytes, bytes]] = (), *, raw: bytes | None = None, kind: bytes = b"x") -> bytes:
    body = b"".join(pax_record(key, value) for key, value in records) if raw is None else raw
    return tar_file(b"pax", body, kind=kind)


def gnu_long_name(name: bytes) -> bytes:
    return tar_file(b"././@LongLink", name + b"\0", kind=b"L")


def tar(*pieces: bytes) -> bytes:
    return b"".join(pieces) + bytes(2 * BLOCK)


def tar_gz(*pieces: bytes) -> bytes:
    return gzip.compress(tar(*pieces), 6)


def gzip_stream(pieces: Iterable[bytes]) -> bytes:
    """``pieces`` compressed without ever being held together."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(compressor.compress(piece) for piece in pieces) + compressor.flush()


def zeros(size: int) -> Iterator[bytes]:
    chunk = bytes(1024 * 1024)
    for _ in range(size // len(chunk)):
        yield chunk
    yield bytes(size % len(chunk))


@dataclass(frozen=True, slots=True, kw_only=True)
class ZipEntry:
    """One entry of :func:`zip_archive`; what is ``None`` is computed from ``content``."""

    name: bytes
    content: bytes = b""
    method: int = 8
    flags: int = 0
    mode: int = 0o100644
    system: int = 3
    local_name: bytes | None = None
    local_flags: int | None = None
    local_method: int | None = None
    packed: bytes | None = None
    packed_size: int | None = None
    size: int | None = None
    crc: int | None = None
    offset: int | None = None
    extra: bytes = b""
    local_extra: bytes = b""
    local_packed_size: int | None = None
    local_size: int | None = None
    disk: int = 0
    descriptor: bytes = b""


def deflated(content: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(content) + compressor.flush()


def zip_archive(
    *entries: ZipEntry,
    comment: bytes = b"",
    count: int | None = None,
    directory_size: int | None = None,
    directory_offset: int | None = None,
    before_end: bytes = b"",
    gap: bytes = b"",
) -> bytes:
    """A zip of ``entries``, with whatever was asked to be wrong being wrong."""
    body = b""
    directory = b""
    for entry in entries:
        packed = entry.packed
        if packed is None:
            packed = deflated(entry.content) if entry.method == 8 else entry.content
        packed_size = len(packed) if entry.packed_size is None else entry.packed_size
        size = len(entry.content) if entry.size is None else entry.size
        crc = zlib.crc32(entry.content) if entry.crc is None else entry.crc
        offset = len(body) if entry.offset is None else entry.offset
        local_name = entry.name if entry.local_name is None else entry.local_name
        body += struct.pack(
            "<4s5H3L2H",
            b"PK\3\4",
            20,
            entry.flags if entry.local_flags is None else entry.local_flags,
            entry.method if entry.local_method is None else entry.local_method,
            0,
            0x21,
            0 if entry.descriptor else crc,
            0 if entry.descriptor else packed_size if entry.local_packed_size is None else entry.local_packed_size,
            0 if entry.descriptor else size if entry.local_size is None else entry.local_size,
            len(local_name),
            len(entry.local_extra),
        )
        body += local_name + entry.local_extra + packed + entry.descriptor
        directory += struct.pack(
            "<4s6H3L5H2L",
            b"PK\1\2",
            20 | entry.system << 8,
            20,
            entry.flags,
            entry.method,
            0,
            0x21,
            crc,
            packed_size,
            size,
            len(entry.name),
            len(entry.extra),
            0,
            entry.disk,
            0,
            (entry.mode & 0xFFFF) << 16 | (0x10 if entry.name.endswith(b"/") else 0),
            offset,
        )
        directory += entry.name + entry.extra
    body += gap
    end = struct.pack(
        "<4s4H2LH",
        b"PK\5\6",
        0,
        0,
        min(len(entries) if count is None else count, 0xFFFF),
        min(len(entries) if count is None else count, 0xFFFF),
        len(directory) if directory_size is None else directory_size,
        len(body) if directory_offset is None else directory_offset,
        len(comment),
    )
    return body + directory + before_end + end + comment


def zip64_end(offset: int, count: int, directory_size: int, directory_offset: int) -> bytes:
    """A zip64 end record that stands at ``offset``, and its locator."""
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, directory_size, directory_offset)
    return record + struct.pack("<4sLQL", b"PK\6\7", 0, offset, 1)
