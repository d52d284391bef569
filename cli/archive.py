"""A project folder as a tar.gz that is the same for the same content.

Names are sorted; times, owners and most of the mode are dropped. Links and special files are refused here, with
their names, because the server refuses them too, after the upload.
"""

from __future__ import annotations

import fnmatch
import gzip
import io
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cli.errors import UsageError

MAX_ARCHIVE_BYTES = 50 * 1024 * 1024
IGNORE_FILE = ".containerpubignore"
ALWAYS_IGNORED = (
    ".git",
    "__pycache__",
    ".venv",
    "node_modules",
    "*.pyc",
    ".env",
    ".DS_Store",
    IGNORE_FILE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """``content`` is an unnamed temporary file: nothing of it is left however the command ends."""

    content: IO[bytes]
    size: int
    files: int

    def reader(self) -> IO[bytes]:
        """A file at the first byte; the reader may close it."""
        self.content.seek(0)
        return os.fdopen(os.dup(self.content.fileno()), "rb")


def pack(folder: Path, *, max_bytes: int = MAX_ARCHIVE_BYTES) -> Archive:
    """The files below ``folder`` that are not ignored.

    Raises :class:`UsageError` for a link, a special file, a name that is not Unicode, nothing to pack, or an archive
    that would exceed ``max_bytes`` (found out before all of it is written).
    """
    patterns = (*ALWAYS_IGNORED, *read_patterns(folder / IGNORE_FILE))
    content = tempfile.TemporaryFile()  # noqa: SIM115 - the archive that is returned owns it
    limited = _LimitedWriter(content, max_bytes)
    files = 0
    try:
        # No file name and no time in the gzip header: they would differ between two runs.
        with (
            gzip.GzipFile(filename="", mode="wb", fileobj=limited, mtime=0, compresslevel=6) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for name, path in _walk(folder, "", patterns):
                _add(tar, name, path)
                files += 1
        if not files:
            raise UsageError(f"{folder} holds no file to deploy.")
    except OSError as error:
        content.close()
        raise UsageError(f"The folder cannot be packed: {error}.") from error
    except UsageError:
        content.close()
        raise
    return Archive(content=content, size=limited.written, files=files)


def read_patterns(path: Path) -> tuple[str, ...]:
    """The patterns of an ignore file, one a line; empty lines and ``#`` comments do not count."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path.name} cannot be read: {error}.") from error
    patterns = tuple(line.strip() for line in lines if line.strip() and not line.strip().startswith("#"))
    negated = [pattern for pattern in patterns if pattern.startswith("!")]
    if negated:
        raise UsageError(f"{path.name}: {negated[0]} would include again, which is not possible.", hint="Remove it.")
    return patterns


def ignored(name: str, *, is_folder: bool, patterns: Sequence[str]) -> bool:
    """Whether ``name`` (path from the project folder, ``/`` between parts) is left out.

    A pattern with a ``/`` before its end matches the whole path, another one the last part wherever it is; one that
    ends with ``/`` matches folders only. ``*`` matches any characters, also ``/``.
    """
    for pattern in patterns:
        if pattern.endswith("/") and not is_folder:
            continue
        bare = pattern.rstrip("/")
        subject = name if "/" in bare else name.rsplit("/", 1)[-1]
        if fnmatch.fnmatchcase(subject, bare.lstrip("/")):
            return True
    return False


def _walk(folder: Path, prefix: str, patterns: Sequence[str]) -> Iterator[tuple[str, Path]]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = f"{prefix}{entry.name}"
        is_folder = entry.is_dir(follow_symlinks=False)
        if ignored(name, is_folder=is_folder, patterns=patterns):
            continue
        try:
            name.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError(f"{name!r} has a name that is not Unicode.", hint="Rename it.") from error
        if entry.is_symlink():
            raise UsageError(
                f"{name} is a symbolic link; links are not deployed.",
                hint=f"Put a copy of its target there, or list it in {IGNORE_FILE}.",
            )
        if is_folder:
            yield from _walk(Path(entry.path), f"{name}/", patterns)
        elif entry.is_file(follow_symlinks=False):
            yield name, Path(entry.path)
        else:
            raise UsageError(f"{name} is neither a file nor a folder.", hint=f"List it in {IGNORE_FILE}.")


def _add(tar: tarfile.TarFile, name: str, path: Path) -> None:
    # Had the file become a link or a pipe since it was listed, the open refuses the one and the check the other.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{name} changed while it was packed.", hint="Try again.")
        entry = tarfile.TarInfo(name)
        entry.size = status.st_size
        entry.mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
        tar.addfile(entry, file)


class _LimitedWriter(io.RawIOBase):
    def __init__(self, target: IO[bytes], max_bytes: int) -> None:
        self._target = target
        self._max_bytes = max_bytes
        self._failed = False
        self.written = 0

    def writable(self) -> bool:
        return True

    def write(self, data: object, /) -> int:
        if self._failed:  # gzip and tar write their ends while the error passes through them
            return len(memoryview(data))  # type: ignore[arg-type]
        view = memoryview(data)  # type: ignore[arg-type]
        self.written += len(view)
        if self.written > self._max_bytes:
            self._failed = True
            raise UsageError(
                f"The packed folder is larger than {self._max_bytes / 1024 / 1024:g} MB.",
                hint=f"List what the function does not need in {IGNORE_FILE}.",
            )
        return self._target.write(view)
