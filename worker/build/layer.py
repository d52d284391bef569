"""One layer of an image as a tar in canonical form: same content, same bytes, same digest, on every machine.

Entries belong to root, have mode 0644 or 0755 and a fixed time. Where the content comes from an installation that ran
foreign code, it arrives as a plain ustar stream and is read here field by field: a library that understands
every extension of the format would let the stream decide how much memory reading it takes.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Protocol, cast

from shared.in_thread import finished_in_thread
from worker.build.plan import BuildRejected
from worker.build.recipe import PLATFORM, Recipe

MAX_ENTRIES = 100_000
_BLOCK = 512
_FOLDER = b"5"  # as the header of an entry says it
_CHUNK = 1024 * 1024
_MOST_EXTENDED = 64 * 1024
_MEMORY = 8 * 1024 * 1024  # larger spools go to disk
_MTIME = 315_619_200  # 1980-01-02: zip files cannot say anything earlier


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A finished layer. ``file`` is open, rewound, unnamed, and closed by the code that was given the layer."""

    file: IO[bytes]
    digest: str  # SHA-256 of the tar, in hex
    size_bytes: int  # of the tar

    @property
    def diff_id(self) -> str:
        """As images name it."""
        return f"sha256:{self.digest}"


class LayerWriter:
    """Writes entries in the order they are given; parents come into being on their own."""

    def __init__(self) -> None:
        # closed with the layer, or by abandon()
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_MEMORY)  # noqa: SIM115
        self._digest = hashlib.sha256()
        self._size = 0
        self._folders: set[str] = set()
        self._files: set[str] = set()
        self._tar = tarfile.open(  # noqa: SIM115
            fileobj=cast(IO[bytes], _Tee(self)), mode="w|", format=tarfile.PAX_FORMAT
        )

    def write(self, data: bytes) -> int:
        """Takes the bytes of the tar itself; called by the tar writer."""
        if self._file.closed:
            return len(data)  # the tar writer of an abandoned layer writes once more when it goes
        self._digest.update(data)
        self._size += len(data)
        return self._file.write(data)

    def folder(self, path: str) -> None:
        parent, _, _ = path.rpartition("/")
        if parent:
            self.folder(parent)
        if path in self._folders:
            return
        if path in self._files:
            raise UnsafeEntry(f"{path!r} is a file and a folder at once")
        self._folders.add(path)
        self._tar.addfile(_entry(path, tarfile.DIRTYPE, 0o755))

    def add(self, path: str, source: Readable, size: int, *, executable: bool = False) -> None:
        """``size`` bytes of ``source``."""
        if path in self._files or path in self._folders:
            raise UnsafeEntry(f"{path!r} is there twice")
        parent, _, _ = path.rpartition("/")
        if parent:
            self.folder(parent)
        self._files.add(path)
        info = _entry(path, tarfile.REGTYPE, 0o755 if executable else 0o644)
        info.size = size
        self._tar.addfile(info, cast(IO[bytes], source))

    def finish(self) -> Layer:
        self._tar.close()
        self._file.seek(0)
        return Layer(
            file=self._file,
            digest=self._digest.hexdigest(),
            size_bytes=self._size,
        )

    def abandon(self) -> None:
        self._file.close()


class UnsafeEntry(Exception):
    """An installation's stream holds something that does not belong into a layer."""


async def in_thread(make: Callable[..., Layer], *args: object) -> Layer:
    """``make(*args)`` off the event loop; a cancel waits for it and closes the layer."""
    return await finished_in_thread(partial(make, *args), lambda layer: layer.file.close())


def artifact_layer(artifact: Path, prefix: str, compiled: Layer | None = None) -> Layer:
    """The canonical artifact, its names vetted when it was accepted, under ``prefix``; beside it all that the layer
    ``compiled`` has."""
    writer = LayerWriter()
    try:
        writer.folder(prefix)
        with tarfile.open(artifact, mode="r|gz") as source:
            for member in source:
                path = f"{prefix}/{safe_path(member.name)}"
                if member.isdir():
                    writer.folder(path)
                elif member.isreg() and (content := source.extractfile(member)) is not None:
                    writer.add(path, content, member.size, executable=bool(member.mode & 0o111))
                else:
                    raise UnsafeEntry(f"{member.name!r} is neither a file nor a folder")
        if compiled is not None:
            compiled.file.seek(0)
            for kind, path, size, executable in _entries(compiled.file):
                if kind == _FOLDER:
                    writer.folder(path)
                else:
                    writer.add(path, _Section(compiled.file, size), size, executable=executable)
                    _exactly(compiled.file, -size % _BLOCK)
    except (tarfile.TarError, EOFError, UnsafeEntry) as error:
        writer.abandon()
        raise BuildRejected("build_failed", f"The artifact cannot be read: {error}.") from error
    except BaseException:
        writer.abandon()
        raise
    return writer.finish()


def runtime_layer(recipe: Recipe) -> Layer:
    """A runtime's in-sandbox side, and the folders that all images of the runtime have."""
    writer = LayerWriter()
    for folder in (PLATFORM, *recipe.code_folders):
        writer.folder(folder)
    for file in recipe.files:
        writer.add(file.path, io.BytesIO(file.content), len(file.content))
    return writer.finish()


def installed_layer(stream: Readable, prefix: str, max_bytes: int, note: Callable[[str], None]) -> Layer:
    """What an installation sent as a ustar stream, under ``prefix``.

    :param note: told, once an entry, what was left out.
    :raises UnsafeEntry: the stream breaks a rule.
    """
    writer = LayerWriter()
    try:
        writer.folder(prefix)
        total = 0
        for _ in range(MAX_ENTRIES):
            header = _exactly(stream, _BLOCK)
            if not header.strip(b"\0"):
                return writer.finish()
            kind, name, size, executable = _parse(header)
            total += size
            if total > max_bytes:
                raise UnsafeEntry(f"installed files take more than {max_bytes} bytes")
            path = f"{prefix}/{safe_path(name)}"
            if kind == _FOLDER:
                writer.folder(path)
            elif kind in (b"0", b"\0"):
                writer.add(path, _Section(stream, size), size, executable=executable)
                _exactly(stream, -size % _BLOCK)
            elif kind in (b"1", b"2"):
                note(f"left out the link {name!r}")
            else:
                raise UnsafeEntry(f"{name!r} is neither a file nor a folder")
        raise UnsafeEntry(f"more than {MAX_ENTRIES} files")
    except BaseException:
        writer.abandon()
        raise


def unpack_layer(stream: Readable, folder: str, target: Path, max_bytes: int) -> int:
    """Write out what one of our layers has below ``folder``, as files of ours; how many bytes that takes.

    A file that an earlier layer brought is replaced. ``stream`` was verified; what it says is checked all the same.

    :raises UnsafeEntry: the stream breaks a rule.
    """
    total = 0
    for kind, path, size, executable in _entries(stream):
        inside = target / path.removeprefix(folder).removeprefix("/")
        if path != folder and not path.startswith(f"{folder}/"):
            _skip(stream, size)
        elif kind == _FOLDER:
            inside.mkdir(exist_ok=True)
            inside.chmod(0o755)
        else:
            total += size
            if total > max_bytes:
                raise UnsafeEntry(f"the files take more than {max_bytes} bytes")
            with inside.open("wb") as file:
                content = _Section(stream, size)
                while chunk := content.read(_CHUNK):
                    file.write(chunk)
            _exactly(stream, -size % _BLOCK)
            inside.chmod(0o755 if executable else 0o644)
    return total


def _entries(stream: Readable) -> Iterator[tuple[bytes, str, int, bool]]:
    """Type, path, size, and whether it is executable, of what one of our layers holds. The caller reads the content of
    each file, and what pads it, before the next."""
    long_name: str | None = None
    for _ in range(2 * MAX_ENTRIES):
        header = _exactly(stream, _BLOCK)
        if not header.strip(b"\0"):
            return
        kind, name, size, executable = _parse(header)
        if kind == b"x":
            long_name = _long_name(stream, size)
            continue
        path, long_name = safe_path(long_name or name), None
        if kind not in (_FOLDER, b"0", b"\0"):
            raise UnsafeEntry(f"{path!r} is neither a file nor a folder")
        yield kind, path, size, executable
    raise UnsafeEntry(f"more than {MAX_ENTRIES} files")


def _skip(stream: Readable, size: int) -> None:
    content = _Section(stream, size + -size % _BLOCK)
    while content.read(_CHUNK):
        pass


def _long_name(stream: Readable, size: int) -> str | None:
    """The name that an extended header gives the next entry, if it does."""
    if size > _MOST_EXTENDED:
        raise UnsafeEntry("an extended header is too long")
    rest, name = _exactly(stream, size), None
    _exactly(stream, -size % _BLOCK)
    try:
        while rest:
            length = int(rest.partition(b" ")[0])
            record, rest = rest[:length], rest[length:]
            key, _, value = record.partition(b" ")[2].removesuffix(b"\n").partition(b"=")
            if key == b"path":
                name = value.decode()
            elif key == b"size" or length <= 0:
                raise UnsafeEntry("an extended header gives a size")
    except ValueError as error:
        raise UnsafeEntry("an extended header cannot be read") from error
    return name


def safe_path(name: str) -> str:
    """``name`` without a trailing slash, if it is relative, stays inside, and has only printable parts."""
    path = name.rstrip("/")
    if not path.isprintable() or "\\" in path:
        raise UnsafeEntry(f"{name[:200]!r} has characters that no file name needs")
    if len(path) > 1024 or any(part in ("", ".", "..") or len(part.encode()) > 255 for part in path.split("/")):
        raise UnsafeEntry(f"{name[:200]!r} is not a plain relative path")
    return path


def _parse(header: bytes) -> tuple[bytes, str, int, bool]:
    """Type, name, size and whether it is executable, of one ustar header."""
    try:
        stated = int(header[148:156].strip(b" \0"), 8)
        if stated != sum(header[:148]) + sum(header[156:]) + 8 * ord(" ") or header[257:262] != b"ustar":
            raise UnsafeEntry("the stream is not a plain ustar archive")
        size, mode = int(header[124:136].strip(b" \0") or b"0", 8), int(header[100:108].strip(b" \0") or b"0", 8)
        name, prefix = header[:100].split(b"\0")[0].decode(), header[345:500].split(b"\0")[0].decode()
    except ValueError as error:
        raise UnsafeEntry("the stream is not a plain ustar archive") from error
    if size < 0:
        raise UnsafeEntry("an entry has a negative size")
    return header[156:157], f"{prefix}/{name}" if prefix else name, size, bool(mode & 0o111)


def _exactly(stream: Readable, size: int) -> bytes:
    data = stream.read(size) if size else b""
    if len(data) != size:
        raise UnsafeEntry("the stream ends in the middle of an entry")
    return data


def _entry(path: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.type, info.mode, info.mtime = kind, mode, _MTIME
    return info


class _Section:
    """Exactly ``size`` bytes of a stream, so that a short one is noticed where it ends."""

    def __init__(self, stream: Readable, size: int) -> None:
        self._stream, self._left = stream, size

    def read(self, size: int, /) -> bytes:
        data = _exactly(self._stream, min(size, self._left))
        self._left -= len(data)
        return data


class _Tee:
    """What the tar writer writes to."""

    def __init__(self, writer: LayerWriter) -> None:
        self._writer = writer

    def write(self, data: bytes) -> int:
        return self._writer.write(data)
