"""A streaming tar reader: old, ustar, GNU long names and pax; plain files and folders only.

The standard library's reader is not used: it holds whole pax headers in memory, skips over damage, and has looped on
negative sizes. This reader bounds every header before it reads it, and stops at the first malformed byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from shared.archive.limits import ArchiveLimits
from shared.archive.member import Member
from shared.archive.names import decoded, slashed, too_many_entries
from shared.archive.rejection import broken, rejected, too_large
from shared.archive.source import CHUNK_BYTES, ByteSource

BLOCK_BYTES = 512
MAX_EXTENSION_BYTES = 64 * 1024  # one pax header or long name
MAX_EXTENSIONS_BYTES = 4 * 1024 * 1024  # all of them in one archive: parsing them is what costs time
MAX_GLOBAL_HEADERS = 64

_ZERO_BLOCK = bytes(BLOCK_BYTES)
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*\Z")
_PAX_LENGTH = re.compile(rb"([1-9][0-9]{0,6}) ")
_DECIMAL = re.compile(rb"[0-9]{1,19}\Z")


def stream_overhead(limits: ArchiveLimits) -> int:
    """How many bytes a tar within ``limits`` may have beside its contents: headers, padding, the last record."""
    return 2 * BLOCK_BYTES * limits.max_read_entries + 2 * MAX_EXTENSIONS_BYTES + 16 * 1024 * 1024


def looks_like_tar(block: bytes) -> bool:
    return len(block) == BLOCK_BYTES and (block == _ZERO_BLOCK or _checksum_holds(block))


@dataclass(slots=True)
class _Pending:
    """The settings of extension headers for the entry that follows them."""

    path: bytes | None = None
    size: int | None = None
    seen: set[bytes] = field(default_factory=set)


class FileContent:
    """The content of one entry, to be read before the next entry is asked for."""

    def __init__(self, source: ByteSource, size: int) -> None:
        self._source = source
        self.left = size

    def read(self, size: int = -1, /) -> bytes:
        """At most ``size`` bytes (all that is left when negative), none at the end."""
        wanted = self.left if size < 0 else min(size, self.left)
        data = _exactly(self._source, wanted)
        self.left -= wanted
        return data

    def __iter__(self) -> Iterator[bytes]:
        while self.left:
            yield self.read(CHUNK_BYTES)


class TarReader:
    """Iterates over the entries of the tar in ``source``; it must end there, with its two zero blocks."""

    def __init__(self, source: ByteSource, limits: ArchiveLimits) -> None:
        self._source = source
        self._limits = limits
        self._extension_bytes = 0
        self._global_headers = 0
        self._entries = 0

    def __iter__(self) -> Iterator[Member]:
        pending = _Pending()
        while True:
            block = _exactly(self._source, BLOCK_BYTES)
            if block == _ZERO_BLOCK:
                if pending.seen:
                    raise broken("an extension header has no entry after it")
                self._expect_end()
                return
            if not _checksum_holds(block):
                raise broken("a tar header has a wrong checksum")
            kind = block[156:157]
            size = _number(block[124:136])
            if kind in b"xgLK":
                self._read_extension(kind, self._extension(size), pending)
                continue
            self._entries += 1
            if self._entries > self._limits.max_read_entries:
                raise too_many_entries(self._limits)
            member, content = self._member(block, kind, size, pending)
            yield member
            for _ in content:  # whatever the caller left
                pass
            padding = -member.size % BLOCK_BYTES
            _exactly(self._source, padding)
            pending = _Pending()

    def _member(self, block: bytes, kind: bytes, size: int, pending: _Pending) -> tuple[Member, FileContent]:
        name = slashed(decoded(_field_name(block) if pending.path is None else pending.path))
        if kind not in (b"0", b"\0", b"5"):
            raise _refused(kind, name)
        if pending.size is not None:
            size = pending.size
        is_folder = kind == b"5"
        if is_folder:
            name = name[:-1] if name.endswith("/") and name != "/" else name
            if size:
                raise broken("a folder has content")
        elif name.endswith("/"):
            # Readers differ on whether this is a folder, and on whether content follows.
            raise rejected("archive_bad_name", "The file name {name} ends with a slash.", name)
        content = FileContent(self._source, size)
        executable = bool(_number(block[100:108]) & 0o111)
        return Member(name=name, is_folder=is_folder, executable=executable, size=size, content=content), content

    def _extension(self, size: int) -> bytes:
        self._extension_bytes += size
        if size > MAX_EXTENSION_BYTES:
            raise too_large("An extended header of the archive has", MAX_EXTENSION_BYTES)
        if self._extension_bytes > MAX_EXTENSIONS_BYTES:
            raise too_large("The extended headers of the archive have", MAX_EXTENSIONS_BYTES)
        data = _exactly(self._source, size)
        _exactly(self._source, -size % BLOCK_BYTES)
        return data

    def _read_extension(self, kind: bytes, data: bytes, pending: _Pending) -> None:
        if kind == b"g":
            self._global_headers += 1
            if self._global_headers > MAX_GLOBAL_HEADERS:
                raise broken("it has too many global headers")
            for key, _ in _pax_records(data):
                if key in (b"path", b"size", b"linkpath") or key.startswith(b"GNU.sparse"):
                    raise broken("a global header sets what belongs to one entry")
            return
        if kind in pending.seen:
            raise broken("an entry has two extension headers of one kind")
        pending.seen.add(kind)
        if kind == b"L":
            self._set_path(pending, data[:-1] if data.endswith(b"\0") else data)
        elif kind == b"x":
            self._read_pax(data, pending)

    def _read_pax(self, data: bytes, pending: _Pending) -> None:
        seen = set()
        for key, value in _pax_records(data):
            if key in seen:
                raise broken("a pax header sets a key twice")
            seen.add(key)
            if key == b"path":
                self._set_path(pending, value)
            elif key == b"size":
                if not _DECIMAL.match(value):
                    raise broken("a pax header has a malformed size")
                pending.size = int(value)
            elif key.startswith(b"GNU.sparse") or key == b"SCHILY.realsize":
                raise rejected("archive_special_file", "The archive contains a sparse file; pack it as a plain one.")

    def _set_path(self, pending: _Pending, path: bytes) -> None:
        if pending.path is not None:
            raise broken("an entry has two long names")
        pending.path = path

    def _expect_end(self) -> None:
        if _exactly(self._source, BLOCK_BYTES) != _ZERO_BLOCK:
            raise broken("there is data after its end")
        while rest := self._source.read(CHUNK_BYTES):
            if rest.count(0) != len(rest):
                raise broken("there is data after its end")


def _exactly(source: ByteSource, size: int) -> bytes:
    data = source.read(size)
    if len(data) != size:
        raise broken("it ends too early")
    return data


def _checksum_holds(block: bytes) -> bool:
    match = _OCTAL.match(block[148:156])
    if not match or not match[1]:
        return False
    return int(match[1], 8) == sum(block) - sum(block[148:156]) + 8 * 0x20


def _number(raw: bytes) -> int:
    """A header's number, octal or in GNU's base 256; a negative one is refused, and so is one past 2^63."""
    if raw[0] == 0x80:
        value = int.from_bytes(raw[1:], "big")
        if value < 1 << 63:
            return value
    elif match := _OCTAL.match(raw):
        return int(match[1] or b"0", 8)
    raise broken("a tar header has a malformed or negative number")


def _field_name(block: bytes) -> bytes:
    name = _text(block[0:100])
    # GNU's own variant ("ustar  ") keeps times where the standard has the prefix.
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _text(raw: bytes) -> bytes:
    text, _, rest = raw.partition(b"\0")
    if rest.count(0) != len(rest):
        raise rejected("archive_bad_name", "The name {name} contains a NUL byte.", raw.rstrip(b"\0"))
    return text


def _pax_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The ``length key=value`` lines of a pax header, each length checked against where its line ends."""
    position = 0
    while position < len(data):
        match = _PAX_LENGTH.match(data, position)
        end = position + int(match[1]) if match else 0
        if not match or end > len(data) or end <= match.end() or data[end - 1] != 0x0A:
            raise broken("a pax header is malformed")
        key, equals, value = data[match.end() : end - 1].partition(b"=")
        if not equals or not key:
            raise broken("a pax header is malformed")
        yield key, value
        position = end


def _refused(kind: bytes, name: str) -> Exception:
    if kind in b"12":
        return rejected("archive_link", "The entry {name} is a link; only plain files and folders are accepted.", name)
    what = {b"3": "a device", b"4": "a device", b"6": "a named pipe", b"S": "a sparse file"}.get(kind, "special")
    return rejected(
        "archive_special_file", f"The entry {{name}} is {what}; only plain files and folders are accepted.", name
    )
