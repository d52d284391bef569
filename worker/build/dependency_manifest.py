"""The dependencies of a project, after our own grammar has read and accepted its manifests."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol

from worker.build.packages import parse_packages
from worker.build.python_packages import parse_python_packages
from worker.build.recipe import Recipe
from worker.build.requirements import MAX_FILES, named_files

_MAX_BYTES = 4 * 1024 * 1024


class DependencyManifest(Protocol):
    """Accepted dependencies. False when there is nothing to install."""

    @property
    def files(self) -> Mapping[str, str]:
        """ASCII texts by file name, as the package manager reads them; the install script is told the first one."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what was read, and what was not."""

    def __bool__(self) -> bool: ...


_GRAMMARS: Mapping[str, Callable[[Mapping[str, bytes]], DependencyManifest]] = {
    "requirements.txt": parse_python_packages,
    "package.json": parse_packages,
}


def read_dependency_manifest(artifact: Path, recipe: Recipe) -> DependencyManifest | None:
    """What the artifact's manifests ask for, each by our own grammar; ``None`` for nothing. Blocking.

    :raises BuildRejected: they ask for something that is not allowed.
    """
    found: dict[str, bytes] = {}
    if not recipe.manifests:
        return None
    asked: set[str] = set()
    wanted = set(recipe.manifests)
    while wanted and len(asked) <= MAX_FILES:
        asked |= wanted
        read = _read(artifact, wanted)
        found |= read
        lists = {
            name: text for name, text in read.items() if name == "requirements.txt" or name not in recipe.manifests
        }
        wanted = {path for name, text in lists.items() for path in named_files(text, name)} - asked
    return (_GRAMMARS[recipe.manifests[0]](found) or None) if found else None


def _read(artifact: Path, names: Collection[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with tarfile.open(artifact, mode="r|gz") as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if name in names and member.isreg() and (content := archive.extractfile(member)) is not None:
                found[name] = content.read(_MAX_BYTES + 1)
    return found


def dependency_key(manifest: DependencyManifest) -> str:
    """A key that changes whenever the accepted dependencies do."""
    return "\0".join(part for file in manifest.files.items() for part in file)
