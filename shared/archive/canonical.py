"""From an upload to its canonical archive, and from a canonical archive to its entries."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

from shared.archive import tidy
from shared.archive.limits import ArchiveLimits
from shared.archive.member import Member
from shared.archive.names import PROJECT_FILES, NameSet, too_many_entries, vetted
from shared.archive.rejection import broken, rejected, too_large
from shared.archive.source import GzipSource
from shared.archive.tar import BLOCK_BYTES, FileContent, TarReader, looks_like_tar, stream_overhead
from shared.archive.writer import CanonicalArchive, Staged, publish
from shared.archive.zip import zip_members
from shared.errors import TooLarge, Unavailable

MAX_PROJECT_FILE_BYTES = 64 * 1024


class ArchiveEntry(NamedTuple):
    """One entry of a canonical archive. ``mode`` is 0o755 or 0o644; ``reader`` is ``None`` for a folder.

    ``reader.read(n)`` is valid until the next entry is asked for.
    """

    name: str
    mode: int
    size: int
    reader: FileContent | None


def rewrite(source: Path, target: Path, limits: ArchiveLimits, *, own_folder: str | None = None) -> CanonicalArchive:
    """Read the upload at ``source`` and write the canonical archive of its contents to ``target``. Files that tools add
    are left out, and a single folder around everything is taken away unless it is ``own_folder``; the notes say so.

    Blocks: call it in a thread. ``target`` appears complete or not at all; nothing else is written but nameless
    temporary space beside it, at most ``limits.max_unpacked_bytes``. Memory stays below a few MB.

    Raises :class:`shared.errors.ArchiveRejected` or :class:`shared.errors.TooLarge` with a stable code a rule,
    :class:`shared.errors.Unavailable` when this machine cannot read or write its files.
    """
    try:
        with source.open("rb") as upload, tempfile.TemporaryFile(dir=target.parent) as spool:
            file_bytes = os.fstat(upload.fileno()).st_size
            if file_bytes > limits.max_upload_bytes:
                raise TooLarge(
                    f"The archive is larger than {limits.max_upload_bytes} bytes.",
                    code="upload_too_large",
                    field="archive",
                    extra={"max_bytes": limits.max_upload_bytes},
                )
            staged, notes = _stage(_members(upload, file_bytes, limits), spool, limits)
            folder = tidy.top_folder(staged)
            if folder is not None and folder != own_folder:
                staged = tidy.unwrapped(staged, folder, limits)
                notes.append(tidy.taken_out(folder))
            _check_project_files(staged)
            return publish(staged, spool, target, notes)
    except OSError as error:
        raise Unavailable("The server could not store the archive; retry later.", code="storage_unavailable") from error


def read_entries(path: Path, limits: ArchiveLimits | None = None) -> Iterator[ArchiveEntry]:
    """The entries of a canonical archive, each folder before what it holds.

    Names and shape are checked again; sizes and counts only against ``limits``, because an artifact that was accepted
    once stays readable when the limits become narrower. Raises :class:`shared.errors.ArchiveRejected` for anything
    that :func:`rewrite` does not write. Blocks.
    """
    limits = limits or _ANY_SIZE
    folders = {""}
    before = b""
    with path.open("rb") as file:
        source = GzipSource(file, max_bytes=limits.max_unpacked_bytes, overflow=lambda: _unpacks_to_more(limits))
        for count, member in enumerate(TarReader(source, limits), 1):
            if count > limits.max_entries:
                raise too_many_entries(limits)
            name = member.name
            if vetted(name, limits) != name or name.encode() <= before or name.rpartition("/")[0] not in folders:
                raise broken("it is not in canonical order or form")
            before = name.encode()
            if member.is_folder:
                folders.add(name)
                yield ArchiveEntry(name, 0o755, 0, None)
            else:
                assert isinstance(member.content, FileContent)
                yield ArchiveEntry(name, 0o755 if member.executable else 0o644, member.size, member.content)


_ANY_SIZE = ArchiveLimits(
    max_upload_bytes=1 << 62,
    max_unpacked_bytes=1 << 62,
    max_entries=1 << 62,
    max_path_chars=1 << 20,
    max_path_depth=1 << 20,
)


def _unpacks_to_more(limits: ArchiveLimits) -> TooLarge:
    return too_large("The archive unpacks to", limits.max_unpacked_bytes)


def _members(upload: BinaryIO, file_bytes: int, limits: ArchiveLimits) -> Iterator[Member]:
    """The entries of an upload. Its first bytes decide its format; its name does not."""
    head = upload.read(BLOCK_BYTES)
    upload.seek(0)
    if not head:
        raise rejected("archive_empty", "The archive is empty.")
    if head.startswith(b"\x1f\x8b"):
        cap = limits.max_unpacked_bytes + stream_overhead(limits)
        return iter(TarReader(GzipSource(upload, max_bytes=cap, overflow=lambda: _unpacks_to_more(limits)), limits))
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return zip_members(upload, file_bytes, limits)
    if looks_like_tar(head):
        return iter(TarReader(upload, limits))
    raise rejected("archive_unknown_format", "The upload is not an archive; send a tar.gz, a tar or a zip.")


def _stage(members: Iterator[Member], spool: BinaryIO, limits: ArchiveLimits) -> tuple[list[Staged], list[str]]:
    """Check every entry and copy the contents to ``spool``; files and folders in the order in which they are
    written, and notes on what was left out."""
    names = NameSet(limits)
    files: list[Staged] = []
    added: list[str] = []
    total = kept = 0
    for member in members:  # the readers bound how many there are
        name = vetted(member.name, limits)
        if tidy.is_added(name):
            added.append(name)
            continue
        kept += 1
        if kept > limits.max_entries:
            raise too_many_entries(limits)
        if not name:
            if member.is_folder:
                continue  # "./", the root itself
            raise rejected("archive_bad_name", "The archive has a file without a name.")
        content = member.content
        if not member.is_folder and tidy.may_be_apple_double(name):
            chunks = iter(content)
            head = next(chunks, b"")
            if tidy.is_apple_double(head):
                added.append(name)
                kept -= 1
                continue
            content = chain((head,), chunks)
        names.add(name, is_folder=member.is_folder)
        if member.is_folder:
            continue
        if total + member.size > limits.max_unpacked_bytes:
            raise _unpacks_to_more(limits)
        for chunk in content:
            spool.write(chunk)
        files.append(Staged(name=name, executable=member.executable, offset=total, size=member.size))
        total += member.size
    if not files:
        raise rejected("archive_empty", "The archive holds no file.")
    staged = sorted([*files, *(Staged(name=folder) for folder in names.folders)], key=lambda entry: entry.name.encode())
    return staged, [tidy.left_out(added)] if added else []


def _check_project_files(staged: list[Staged]) -> None:
    for entry in staged:
        if entry.name in PROJECT_FILES and (entry.size or 0) > MAX_PROJECT_FILE_BYTES:
            raise rejected(
                "archive_project_file_too_large",
                f"{{name}} is larger than {MAX_PROJECT_FILE_BYTES} bytes.",
                entry.name,
            )
