"""A streaming zip reader: stored and deflated files and folders, nothing that two readers could read differently.

The directory at the end is walked one entry at a time and must agree with the header before each entry's data;
entries must not overlap; nothing may stand behind the end.
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from shared.archive.limits import ArchiveLimits
from shared.archive.member import Member
from shared.archive.names import decoded, slashed, too_many_entries
from shared.archive.rejection import broken, rejected, too_large
from shared.archive.source import CHUNK_BYTES, inflated

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")

_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF  # "see the zip64 field"
_FLAG_ENCRYPTED, _FLAG_DESCRIPTOR, _FLAG_PATCH, _FLAG_STRONG, _FLAG_MASKED = 1 << 0, 1 << 3, 1 << 5, 1 << 6, 1 << 13
_STORED, _DEFLATED = 0, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class _DirectoryEntry:
    """One entry of the directory at the end."""

    name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    offset: int
    attributes: int


def zip_members(file: BinaryIO, file_bytes: int, limits: ArchiveLimits) -> Iterator[Member]:
    """The entries of the zip that ``file`` consists of, in the order of their data."""
    start, end, count = _find_directory(file, file_bytes)
    if count > limits.max_read_entries:
        raise too_many_entries(limits)
    entries = sorted(_directory(file, start, end, count, limits), key=lambda entry: entry.offset)
    if sum(entry.size for entry in entries) > limits.max_unpacked_bytes:
        raise too_large("The archive unpacks to", limits.max_unpacked_bytes)
    position = 0
    for entry in entries:
        if entry.offset < position:
            raise broken("two of its entries overlap")
        data_start = _check_local(file, entry, start)
        position = data_start + entry.packed
        if position > start:
            raise broken("an entry reaches into the directory")
        yield _member(file, entry, data_start)


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise broken("it ends too early")
    return data


def _find_directory(file: BinaryIO, file_bytes: int) -> tuple[int, int, int]:
    """Where the directory starts and ends, and how many entries it has."""
    tail_start = max(0, file_bytes - _END.size - _FULL16)
    tail = _read(file, tail_start, file_bytes - tail_start)
    found = []
    position = tail.find(b"PK\5\6")
    while 0 <= position <= len(tail) - _END.size:
        if position + _END.size + int.from_bytes(tail[position + 20 : position + 22], "little") == len(tail):
            found.append(position)
        position = tail.find(b"PK\5\6", position + 1)
    if len(found) != 1:
        # None: truncated, or data behind the end. Two: a comment that holds another end record.
        raise broken("it has no clear end record")
    end = tail_start + found[0]
    _, disk, start_disk, count_here, count, size, start, _ = _END.unpack_from(tail, found[0])
    if end >= _END64_LOCATOR.size:
        locator = _read(file, end - _END64_LOCATOR.size, _END64_LOCATOR.size)
        if locator.startswith(b"PK\6\7"):
            values = _end64(file, locator, end - _END64_LOCATOR.size)
            narrow = (disk, start_disk, count_here, count, size, start)
            full = (_FULL16, _FULL16, _FULL16, _FULL16, _FULL32, _FULL32)
            if any(n not in (f, v) for n, f, v in zip(narrow, full, values, strict=True)):
                raise broken("its two end records differ")
            disk, start_disk, count_here, count, size, start = values
            end = _END64_LOCATOR.unpack(locator)[2]
    if disk or start_disk or count_here != count:
        raise broken("it is one part of several")
    if start + size != end:
        raise broken("its directory does not end where its end record starts")
    return start, end, count


def _end64(file: BinaryIO, locator: bytes, locator_start: int) -> tuple[int, int, int, int, int, int]:
    _, disk, offset, disks = _END64_LOCATOR.unpack(locator)
    if disk or disks > 1 or offset > locator_start - _END64.size:
        raise broken("its zip64 locator is malformed")
    magic, size, _, _, *values = _END64.unpack(_read(file, offset, _END64.size))
    if magic != b"PK\6\6" or offset + 12 + size != locator_start:
        raise broken("its zip64 end record is malformed")
    disk, start_disk, count_here, count, directory_size, start = values
    return disk, start_disk, count_here, count, directory_size, start


def _directory(file: BinaryIO, start: int, end: int, count: int, limits: ArchiveLimits) -> Iterator[_DirectoryEntry]:
    position = start
    for _ in range(count):
        if position + _CENTRAL.size > end:
            raise broken("its directory is shorter than it says")
        fields = _CENTRAL.unpack(_read(file, position, _CENTRAL.size))
        magic, _, _, flags, method, _, _, crc, packed, size, name_len, extra_len, comment_len, disk = fields[:14]
        attributes, offset = fields[15:]
        if magic != b"PK\1\2":
            raise broken("its directory is malformed")
        variable = _read(file, position + _CENTRAL.size, name_len + extra_len)
        if name_len > 4 * limits.max_path_chars + 16:
            # Before 2,000 of them are held; the exact rule comes later, on characters.
            raise rejected("archive_path_too_long", "The path {name} is too long.", variable[:name_len])
        extra = variable[name_len:]
        wide = [size == _FULL32, packed == _FULL32, offset == _FULL32, disk == _FULL16]
        if any(wide):
            size, packed, offset, disk = _widened(extra, (size, packed, offset, disk), wide)
        if disk:
            raise broken("it is one part of several")
        yield _DirectoryEntry(
            name=variable[:name_len],
            flags=flags,
            method=method,
            crc=crc,
            packed=packed,
            size=size,
            offset=offset,
            attributes=attributes,
        )
        position += _CENTRAL.size + name_len + extra_len + comment_len
    if position != end:
        raise broken("its directory is longer than it says")


def _widened(extra: bytes, values: tuple[int, int, int, int], wide: list[bool]) -> tuple[int, int, int, int]:
    """``values`` with those that are ``wide`` taken from the zip64 extra field."""
    position = 0
    while position + 4 <= len(extra):
        tag, size = struct.unpack_from("<2H", extra, position)
        position += 4
        if tag == 1:
            field = extra[position : position + size]
            layout = struct.Struct("<" + "".join("QQQL"[i] for i in range(4) if wide[i]))
            if len(field) < layout.size:
                break
            found = iter(layout.unpack_from(field))
            size_, packed, offset, disk = (next(found) if wide[i] else values[i] for i in range(4))
            return size_, packed, offset, disk
        position += size
    raise broken("a zip64 field is missing")


def _check_local(file: BinaryIO, entry: _DirectoryEntry, directory_start: int) -> int:
    """Where the entry's data starts, once its own header agrees with the directory."""
    if entry.offset + _LOCAL.size > directory_start:
        raise broken("an entry starts outside of the archive")
    local = _LOCAL.unpack(_read(file, entry.offset, _LOCAL.size))
    magic, _, flags, method, _, _, crc, packed, size, name_len, extra_len = local
    if magic != b"PK\3\4" or _read(file, entry.offset + _LOCAL.size, name_len) != entry.name:
        raise broken("an entry's header differs from the directory")
    if (flags | entry.flags) & (_FLAG_ENCRYPTED | _FLAG_STRONG | _FLAG_MASKED):
        raise rejected("archive_encrypted", "The entry {name} is encrypted; pack it without a password.", entry.name)
    if method != entry.method or flags & _FLAG_PATCH:
        raise broken("an entry's header differs from the directory")
    if not flags & _FLAG_DESCRIPTOR and (
        crc != entry.crc or packed not in (entry.packed, _FULL32) or size not in (entry.size, _FULL32)
    ):
        raise broken("an entry's header differs from the directory")
    return int(entry.offset + _LOCAL.size + name_len + extra_len)


def _member(file: BinaryIO, entry: _DirectoryEntry, data_start: int) -> Member:
    name = slashed(decoded(entry.name))
    mode = entry.attributes >> 16
    kind = stat.S_IFMT(mode)
    if kind == stat.S_IFLNK:
        raise rejected("archive_link", "The entry {name} is a link; only plain files and folders are accepted.", name)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise rejected(
            "archive_special_file", "The entry {name} is special; only plain files and folders are accepted.", name
        )
    if entry.method not in (_STORED, _DEFLATED):
        raise rejected(
            "archive_unknown_compression", "The entry {name} is compressed in an unusual way; use deflate.", name
        )
    is_folder = name.endswith("/")
    if (kind == stat.S_IFDIR and not is_folder) or (kind == stat.S_IFREG and is_folder):
        raise broken("an entry is both a file and a folder")
    if is_folder and entry.size:
        raise broken("a folder has content")
    if entry.method == _STORED and entry.packed != entry.size:
        raise broken("a stored entry has two sizes")
    return Member(
        name=name[:-1] if is_folder and name != "/" else name,
        is_folder=is_folder,
        executable=bool(mode & 0o111) and not is_folder,
        size=entry.size,
        content=() if is_folder else _content(file, entry, data_start),
    )


def _content(file: BinaryIO, entry: _DirectoryEntry, data_start: int) -> Iterator[bytes]:
    """The entry's bytes; raises as soon as there are more than declared, and at the end unless all of it agrees."""
    file.seek(data_start)
    chunks = _stored(file, entry.packed) if entry.method == _STORED else inflated(file, entry.packed)
    left, crc = entry.size, 0
    for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            raise broken("an entry is larger than it says")
        crc = zlib.crc32(chunk, crc)
        yield chunk
    if left:
        raise broken("an entry is smaller than it says")
    if crc != entry.crc:
        raise broken("an entry has a wrong checksum")


def _stored(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size:
        chunk = file.read(min(size, CHUNK_BYTES))
        if not chunk:
            raise broken("it ends too early")
        size -= len(chunk)
        yield chunk
