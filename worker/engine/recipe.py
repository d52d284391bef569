"""A runtime's recipe: what its folder in ``runtimes/`` says about building and starting functions."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from shared.errors import Invalid


class Contract(StrEnum):
    """How a sandbox of the runtime is spoken to; DESIGN calls these the function contracts."""

    HANDLER = "handler"
    COMMAND = "command"
    WEB = "web"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeFile:
    """One file of a runtime's in-sandbox side. ``path`` is relative, with ``/``."""

    path: str
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Read from ``runtimes/<name>/runtime.toml``."""

    name: str
    contract: Contract
    base_image: str  # pulled unless the installation names another
    command: tuple[str, ...]  # what a sandbox runs, inside the image
    default_handler: str  # what a project that names no handler means
    files: tuple[RuntimeFile, ...]  # the in-sandbox side, placed under /containerpub
    manifests: tuple[str, ...]  # names of the files that declare dependencies
    install: str | None  # source of the script that installs them, run inside the base image
    analyze: str | None  # source of the script that checks an artifact, run by the worker's own Python
    fingerprint: str  # changes whenever anything that shapes an image does

    @property
    def install_fingerprint(self) -> str:
        """Changes whenever installed dependencies could turn out otherwise."""
        return hashlib.sha256((self.install or "").encode()).hexdigest()


def known_runtimes() -> tuple[str, ...]:
    """Names of all runtimes of this installation, sorted."""
    return tuple(
        sorted(folder.name for folder in files("runtimes").iterdir() if (folder / "runtime.toml").is_file()),
    )


@cache
def load_recipe(runtime: str) -> Recipe:
    """The recipe of ``runtime``.

    :raises Invalid: there is no such runtime; the message names those there are.
    """
    known = known_runtimes()
    if runtime not in known:
        raise Invalid(
            f"There is no runtime called {runtime!r}; known runtimes: {', '.join(known)}.",
            code="unknown_runtime",
            field="runtime",
        )
    folder = files("runtimes") / runtime
    table = tomllib.loads((folder / "runtime.toml").read_text("utf-8"))
    inside = tuple(
        RuntimeFile(path=path, content=file.read_bytes())
        for name in table["files"]
        for path, file in _walk(folder / name, name)
    )
    recipe = Recipe(
        name=table["name"],
        contract=Contract(table["contract"]),
        base_image=table["base_image"],
        command=tuple(table["command"]),
        default_handler=table.get("default_handler", ""),
        files=inside,
        manifests=tuple(table.get("manifests", ())),
        install=_script(folder, table.get("install")),
        analyze=_script(folder, table.get("analyze")),
        fingerprint=_fingerprint(inside),
    )
    if recipe.name != runtime:
        raise ValueError(f"runtimes/{runtime}/runtime.toml calls itself {recipe.name!r}")
    return recipe


def _script(folder: Traversable, name: str | None) -> str | None:
    return None if name is None else (folder / name).read_text("utf-8")


def _walk(node: Traversable, path: str) -> Iterator[tuple[str, Traversable]]:
    if node.is_file():
        yield path, node
        return
    for child in sorted(node.iterdir(), key=lambda entry: entry.name):
        if child.name != "__pycache__":
            yield from _walk(child, f"{path}/{child.name}")


def _fingerprint(inside: tuple[RuntimeFile, ...]) -> str:
    digest = hashlib.sha256()
    for file in inside:
        digest.update(f"{file.path}\0{len(file.content)}\0".encode() + file.content)
    return digest.hexdigest()
