"""What tools add to an archive beside the project: files of macOS and Windows, and a folder around everything."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from shared.archive.limits import ArchiveLimits
from shared.archive.names import vetted
from shared.archive.rejection import shown
from shared.archive.writer import Staged

_FOLDERS = frozenset({"__MACOSX"})
_FILES = frozenset({".DS_Store"})
_APPLE_DOUBLE = (b"\x00\x05\x16\x07", b"\x00\x05\x16\x00")
_MOST_SHOWN = 3


def is_added(name: str) -> bool:
    """Whether the name alone tells that a tool added an entry."""
    parts = name.split("/")
    return parts[-1] in _FILES or not _FOLDERS.isdisjoint(parts)


def may_be_apple_double(name: str) -> bool:
    """Whether a file has the name under which macOS keeps what belongs to another file. Its content tells."""
    return name.rpartition("/")[2].startswith("._")


def is_apple_double(head: bytes) -> bool:
    return head.startswith(_APPLE_DOUBLE)


def top_folder(staged: Iterable[Staged]) -> str | None:
    """The one folder that everything is in; None if there is none."""
    tops = {entry.name.partition("/")[0] for entry in staged}
    files = any(entry.size is not None and "/" not in entry.name for entry in staged)
    return tops.pop() if len(tops) == 1 and not files else None


def unwrapped(staged: Iterable[Staged], folder: str, limits: ArchiveLimits) -> list[Staged]:
    """The entries as they are named within ``folder``. Raises :class:`shared.errors.ArchiveRejected` for a name that
    may stand within a folder and not at the top."""
    inside = (entry for entry in staged if entry.name != folder)
    return [replace(entry, name=vetted(entry.name[len(folder) + 1 :], limits)) for entry in inside]


def left_out(names: list[str]) -> str:
    """A line of the build log about files that tools added."""
    some = ", ".join(shown(name) for name in names[:_MOST_SHOWN])
    more = ", …" if len(names) > _MOST_SHOWN else ""
    return f"archive: left out what a tool added to it: {some}{more}"


def taken_out(folder: str) -> str:
    """A line of the build log about a folder around everything."""
    return f"archive: everything is in the folder {shown(folder)}; its content was taken as the project"
