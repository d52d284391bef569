"""Which names an archive's entries may have, alone and together."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from shared.archive.limits import ArchiveLimits
from shared.archive.rejection import rejected
from shared.errors import ArchiveRejected

MAX_COMPONENT_BYTES = 255  # NAME_MAX of every file system in use

PROJECT_FILES = ("containerpub.toml", "function.json")
"""Files that may describe the project, the first one found wins."""

_DRIVE = re.compile(r"[A-Za-z]:")
# Zs (spaces) stays allowed: macOS puts U+202F into the names of screenshots.
_FORBIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_IMPORTABLE = ("", "py", "pyc", "pyd", "pyw", "so")


def decoded(raw: bytes) -> str:
    """An entry's name from its bytes, which must be UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise rejected("archive_bad_name", "The name {name} is not valid UTF-8; rename the file.", raw) from None


def slashed(name: str) -> str:
    """``name`` with the backslashes of archives from Windows read as what they mean. All checks come after this."""
    return name.replace("\\", "/")


def vetted(name: str, limits: ArchiveLimits) -> str:
    """``name`` relative, without a leading ``./``; ``""`` for the archive's own root.

    A folder's trailing slash must have been removed. Raises :class:`ArchiveRejected`.
    """
    original = name
    while name.startswith("./"):
        name = name[2:]
    if name in ("", "."):
        return ""
    # Lengths first, so that nothing below works on more than a few hundred characters.
    if len(name) > limits.max_path_chars:
        raise rejected(
            "archive_path_too_long", f"The path {{name}} is longer than {limits.max_path_chars} characters.", original
        )
    if name[0] in "/\\" or _DRIVE.match(name):
        raise rejected("archive_absolute_path", "The path {name} is absolute; pack relative paths only.", original)
    parts = name.split("/")
    if any(_folded(part) == ".." for part in parts) or ".." in name.replace("\\", "/").split("/"):
        raise rejected("archive_path_traversal", "The path {name} leads out of the archive.", original)
    if len(parts) > limits.max_path_depth:
        raise rejected(
            "archive_path_too_long", f"The path {{name}} is deeper than {limits.max_path_depth} levels.", original
        )
    for part in parts:
        _check_component(part, original)
    _check_reserved(parts[0], original)
    return name


def _check_component(part: str, original: str) -> None:
    if part in ("", "."):
        raise rejected("archive_bad_name", 'The path {name} has an empty or "." component.', original)
    if "\\" in part:
        raise rejected("archive_bad_name", "The name {name} contains a backslash.", original)
    if any(unicodedata.category(char) in _FORBIDDEN_CATEGORIES for char in part):
        raise rejected("archive_bad_name", "The name {name} contains a control or invisible character.", original)
    if len(part.encode()) > MAX_COMPONENT_BYTES:
        raise rejected(
            "archive_path_too_long", f"The name {{name}} is longer than {MAX_COMPONENT_BYTES} bytes.", original
        )


def _check_reserved(top: str, original: str) -> None:
    """Refuse names that an import would find in place of the runtime's SDK, ``containerpub``."""
    key = _folded(top)
    stem, _, rest = key.partition(".")
    if key.startswith(".containerpub") or (stem == "containerpub" and rest.rpartition(".")[2] in _IMPORTABLE):
        raise rejected("archive_reserved_name", "The name {name} is reserved for the platform; rename it.", original)


@lru_cache(maxsize=4096)
def _folded(part: str) -> str:
    """A key that is equal for all spellings which some file system or import system takes for one name."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", part).casefold())


class NameSet:
    """The names seen so far, as a tree: no two alike, nothing below a file.

    ``folders`` holds every folder, whether it had an entry or is only implied by a path.
    """

    def __init__(self, limits: ArchiveLimits) -> None:
        self._limits = limits
        # One component at a time: NFKC can make a "/" of a character that is none, so folded paths are tuples.
        self._files: dict[tuple[str, ...], str] = {}
        self._folders: dict[tuple[str, ...], str] = {}
        self._explicit: set[tuple[str, ...]] = set()

    @property
    def folders(self) -> list[str]:
        return list(self._folders.values())

    def add(self, name: str, *, is_folder: bool) -> None:
        """Take a vetted name in. Raises :class:`ArchiveRejected`."""
        parts = name.split("/")
        key = tuple(_folded(part) for part in parts)
        for depth in range(1, len(parts)):
            self._add_folder(key[:depth], "/".join(parts[:depth]), name)
        if not is_folder:
            if key in self._files:
                raise _duplicate(self._files[key], name)
            if key in self._folders:
                raise _conflict(self._folders[key], name)
            self._files[key] = name
            return
        if key in self._explicit:
            raise _duplicate(self._folders[key], name)
        self._add_folder(key, name, name)
        self._explicit.add(key)

    def _add_folder(self, key: tuple[str, ...], folder: str, name: str) -> None:
        if key in self._files:
            raise _conflict(self._files[key], name)
        known = self._folders.setdefault(key, folder)
        if known != folder:
            raise _duplicate(known, name)
        if len(self._folders) > self._limits.max_entries:
            raise too_many_entries(self._limits)


def too_many_entries(limits: ArchiveLimits) -> ArchiveRejected:
    return rejected(
        "archive_too_many_entries",
        f"The archive has more than {limits.max_entries} entries; leave out what the function does not need.",
    )


def _duplicate(first: str, second: str) -> ArchiveRejected:
    if first == second:
        return rejected("archive_duplicate_name", "The name {name} occurs twice.", second)
    return rejected(
        "archive_duplicate_name",
        "The path {name} differs from another one only by case or by Unicode form.",
        second,
    )


def _conflict(first: str, second: str) -> ArchiveRejected:
    return rejected("archive_path_conflict", "The path {name} makes one name both a file and a folder.", second)
