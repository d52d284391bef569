"""Writing the canonical archive.

Sorted by name; every folder has its own entry; owner 0, time 0, mode 0755 for folders and for files with any execute
bit, else 0644; ustar, with a pax header where a name needs one; one gzip member of a fixed level without name or time.
Headers are written here and not by ``tarfile``, whose bytes changed between Python releases: the SHA-256 of this file
is an artifact's identity. (A different zlib may still compress differently; that costs one more copy, nothing else.)
"""

from __future__ import annotations

import gzip
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from shared.archive.names import PROJECT_FILES
from shared.archive.source import CHUNK_BYTES
from shared.archive.tar import BLOCK_BYTES

_GZIP_LEVEL = 6
_USTAR_MAX_SIZE = 8**11 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CanonicalArchive:
    """What was written.

    :param sha256: of the written file, in hex: the artifact's identity.
    :param size_bytes: of the written file.
    :param unpacked_bytes: of all file contents.
    :param entries: files and folders in the written file, folders that were only implied by a path included.
    :param project_file: content of ``containerpub.toml``, else of ``function.json``, at the top level.
    :param notes: lines for the build log on how it differs from the upload.
    """

    sha256: str
    size_bytes: int
    unpacked_bytes: int
    entries: int
    project_file: bytes | None
    project_file_name: str | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A file whose content stands in the spool, or a folder (``size`` is ``None``)."""

    name: str
    executable: bool = False
    offset: int = 0
    size: int | None = None


class _Hashing:
    """A file to write to that knows the SHA-256 and the size of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes, /) -> int:
        self.sha256.update(data)
        self.size += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def publish(staged: list[Staged], spool: BinaryIO, target: Path, notes: Iterable[str] = ()) -> CanonicalArchive:
    """Write ``staged``, in that order, to ``target``, which appears complete or not at all."""
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:32]}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            out = _Hashing(file)
            # filename="" and mtime=0 keep name and time out of the header.
            with closing(gzip.GzipFile("", "wb", _GZIP_LEVEL, out, mtime=0)) as packed:
                for piece in _tar_pieces(staged, spool):
                    packed.write(piece)
        project = _project_file(staged, spool)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    return CanonicalArchive(
        sha256=out.sha256.hexdigest(),
        size_bytes=out.size,
        unpacked_bytes=sum(entry.size or 0 for entry in staged),
        entries=len(staged),
        project_file=project[1] if project else None,
        project_file_name=project[0] if project else None,
        notes=tuple(notes),
    )


def _project_file(staged: Iterable[Staged], spool: BinaryIO) -> tuple[str, bytes] | None:
    files = {entry.name: entry for entry in staged if entry.size is not None and entry.name in PROJECT_FILES}
    for name in PROJECT_FILES:
        if entry := files.get(name):
            spool.seek(entry.offset)
            return name, spool.read(entry.size or 0)
    return None


def _tar_pieces(staged: Iterable[Staged], spool: BinaryIO) -> Iterator[bytes]:
    for entry in staged:
        yield _headers(entry)
        left = entry.size or 0
        spool.seek(entry.offset)
        while left:
            chunk = spool.read(min(left, CHUNK_BYTES))
            if not chunk:
                raise OSError("the spool file lost its end")
            left -= len(chunk)
            yield chunk
        yield bytes(-(entry.size or 0) % BLOCK_BYTES)
    yield bytes(2 * BLOCK_BYTES)


def _headers(entry: Staged) -> bytes:
    size = entry.size or 0
    name = entry.name.encode() + (b"/" if entry.size is None else b"")
    records = []
    if len(name) > 100 or not name.isascii():
        records.append((b"path", name))
    if size > _USTAR_MAX_SIZE:
        records.append((b"size", b"%d" % size))
    kind, mode = (b"5", 0o755) if entry.size is None else (b"0", 0o755 if entry.executable else 0o644)
    main = _header(name[:100], mode, 0 if size > _USTAR_MAX_SIZE else size, kind)
    if not records:
        return main
    pax = b"".join(_pax_record(key, value) for key, value in records)
    return _header(b"././@PaxHeader", 0o644, len(pax), b"x") + pax + bytes(-len(pax) % BLOCK_BYTES) + main


def _header(name: bytes, mode: int, size: int, kind: bytes) -> bytes:
    fields = [
        name.ljust(100, b"\0"),
        b"%07o\0" % mode,
        b"%07o\0" % 0,  # uid
        b"%07o\0" % 0,  # gid
        b"%011o\0" % size,
        b"%011o\0" % 0,  # mtime
        b" " * 8,  # the checksum, as it counts in itself
        kind,
        bytes(100),  # link name
        b"ustar\00000",
        bytes(64),  # names of owner and group
        b"%07o\0" % 0,  # device major
        b"%07o\0" % 0,  # device minor
        bytes(155 + 12),  # prefix, and the rest of the block
    ]
    block = b"".join(fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _pax_record(key: bytes, value: bytes) -> bytes:
    """``length key=value`` and a newline, where the length counts its own digits."""
    bare = len(key) + len(value) + 3
    length = bare + len(str(bare))
    length = bare + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)
