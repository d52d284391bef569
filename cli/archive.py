"""A project folder as a tar.gz that is the same for the same content.

Names are sorted; times, owners and most of the mode are dropped. Links and special files are refused here, with
their names, because the server refuses them too, after the upload.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from cli.errors import UsageError
from cli.ignoring import GIT_IGNORE_FILE, IGNORE_FILE, Rules, file_rules, left_out_by, project_rules

MAX_ARCHIVE_BYTES = 50 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What of a project's folder is deployed.

    :param files: names, ``/`` between their parts, and paths. :param left_out: names and rules, folders as a whole.
    """

    files: list[tuple[str, Path]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


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


def listing(folder: Path) -> Listing:
    """The files below ``folder``, in the order in which they are packed, and what is left out.

    Raises :class:`UsageError` for a link, a special file, a name that is not Unicode, or nothing to deploy.
    """
    found = Listing()
    before, behind = project_rules(folder)
    try:
        found.files.extend(_walk(folder, "", before, behind, found.left_out))
    except OSError as error:
        raise UsageError(f"The folder cannot be read: {error}.") from error
    if not found.files:
        raise UsageError(f"{folder} holds no file to deploy.")
    return found


def pack(folder: Path, *, max_bytes: int = MAX_ARCHIVE_BYTES) -> Archive:
    """The files below ``folder`` that are deployed.

    Raises :class:`UsageError` as :func:`listing`, and for an archive that would exceed ``max_bytes`` (found out before
    all of it is written).
    """
    return pack_listing(listing(folder), max_bytes=max_bytes)


def pack_listing(found: Listing, *, max_bytes: int = MAX_ARCHIVE_BYTES) -> Archive:
    """The files of a listing. Raises :class:`UsageError` for one that changed, and for too many bytes."""
    content = tempfile.TemporaryFile()  # noqa: SIM115 - the archive that is returned owns it
    limited = _LimitedWriter(content, max_bytes)
    try:
        # No file name and no time in the gzip header: they would differ between two runs.
        with (
            gzip.GzipFile(filename="", mode="wb", fileobj=limited, mtime=0, compresslevel=6) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for name, path in found.files:
                _add(tar, name, path)
    except OSError as error:
        content.close()
        raise UsageError(f"The folder cannot be packed: {error}.") from error
    except UsageError:
        content.close()
        raise
    return Archive(content=content, size=limited.written, files=len(found.files))


def _walk(
    folder: Path, prefix: str, before: Sequence[Rules], behind: Sequence[Rules], left_out: list[tuple[str, str]]
) -> Iterator[tuple[str, Path]]:
    own = file_rules(folder / GIT_IGNORE_FILE, source=f"{prefix}{GIT_IGNORE_FILE}", base=prefix)
    if own is not None:
        before = (*before, own)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name, path = f"{prefix}{entry.name}", Path(entry.path)
        # A link to a folder is matched like a folder: virtual environments may be linked.
        reason = left_out_by(name, path, is_folder=entry.is_dir(), rules=(*before, *behind))
        is_folder = entry.is_dir(follow_symlinks=False)
        if reason is not None:
            left_out.append((f"{name}/" if is_folder else name, reason))
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
            yield from _walk(path, f"{name}/", before, behind, left_out)
        elif entry.is_file(follow_symlinks=False):
            yield name, path
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
