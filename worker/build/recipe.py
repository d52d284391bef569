"""A runtime's recipe: how to build and start functions, as its folder in ``runtimes/`` describes it."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from shared.errors import Invalid

PLATFORM = "containerpub"
"""The folder at the image's root that holds the runtime's in-sandbox side."""


FUNCTION = "function"
"""The folder at the root that holds a version's code."""
COMPILED = "compiled"
"""The folder at the root that holds the compiler's output."""


class Contract(StrEnum):
    """How the worker talks to a sandbox of the runtime."""

    HANDLER = "handler"
    COMMAND = "command"
    WEB = "web"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeFile:
    """One file of a runtime's in-sandbox side. ``path`` is relative to the image's root, with ``/``."""

    path: str
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A program of a runtime's that runs inside its base image, and the command line that takes it as text."""

    source: str
    argv: tuple[str, ...]  # in which ``{script}`` stands for the source

    def arguments(self, *more: str) -> tuple[str, ...]:
        """The whole command line."""
        return (*(self.source if one == "{script}" else one for one in self.argv), *more)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhaustion:
    """How a runtime ends that has reached a limit of its own before the sandbox's."""

    exit_code: int
    says: str  # on stderr


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Read from ``runtimes/<name>/runtime.toml``."""

    name: str
    contract: Contract
    base_image: str  # pulled unless the installation names another
    argv: tuple[str, ...]  # of a sandbox, inside the image; empty if the image brings its own
    dockerfile: bool  # images are built by the Dockerfile of the project, and the rest of this is not used
    default_handler: str  # what a project that names no handler means
    files: tuple[RuntimeFile, ...]  # the in-sandbox side
    dependencies: str  # the folder at the image's root that installed packages are found in
    manifests: tuple[str, ...]  # names of the files that declare dependencies, the one that has to be there first
    install: Script | None  # installs them
    analyze: str | None  # source of the script that checks an artifact, run by the worker's own Python
    compile: Script | None  # makes what is run out of an artifact's code
    check: Script | None  # checks source files whose language only the base image can parse
    check_files: tuple[str, ...]  # suffixes of the files that it checks
    address_space_extra_mb: int  # what a process of the runtime maps beside the function's memory
    data_extra_mb: int  # what of that is private and writable; a function that hoards memory meets this limit
    exhaustion: Exhaustion | None
    generics: bool  # its in-sandbox side can be started before the function is known
    start_variables: tuple[str, ...]  # patterns of variables that the runtime reads only at its start
    fingerprint: str  # changes whenever anything that shapes an image does

    @property
    def code_folders(self) -> tuple[str, ...]:
        """The folders at the image's root that hold what is a version's own."""
        return (self.dependencies, FUNCTION, *((COMPILED,) if self.compile is not None else ()))

    @property
    def brings_packages(self) -> bool:
        """Whether the runtime's own packages stand in the folder of the installed ones."""
        return any(file.path.startswith(f"{self.dependencies}/") for file in self.files)

    @property
    def install_fingerprint(self) -> str:
        """Changes whenever installed dependencies could turn out otherwise."""
        return hashlib.sha256("\0".join(self.install.arguments() if self.install else ()).encode()).hexdigest()


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
    dependencies = table.get("dependencies", "dependencies")
    places = [(name, f"{PLATFORM}/{_inside(name)}") for name in table.get("files", ())]
    if "packages" in table:
        places.append((table["packages"], dependencies))
    inside = tuple(
        RuntimeFile(path=path, content=file.read_bytes())
        for name, place in places
        for path, file in _walk(folder / name, place)
    )
    process = table.get("process", {})
    recipe = Recipe(
        name=table["name"],
        contract=Contract(table["contract"]),
        base_image=table.get("base_image", ""),
        argv=tuple(table.get("command", ())),
        dockerfile=table.get("dockerfile", False),
        default_handler=table.get("default_handler", ""),
        files=inside,
        dependencies=dependencies,
        manifests=tuple(table.get("manifests", ())),
        install=_script(folder, table.get("install")),
        analyze=(folder / table["analyze"]).read_text("utf-8") if "analyze" in table else None,
        compile=_script(folder, table.get("compile")),
        check=_script(folder, table.get("check")),
        check_files=tuple(table.get("check", {}).get("files", ())),
        address_space_extra_mb=process.get("address_space_extra_mb", 0),
        data_extra_mb=process.get("data_extra_mb", 0),
        exhaustion=Exhaustion(**table["exhaustion"]) if "exhaustion" in table else None,
        generics=table.get("generics", False),
        start_variables=tuple(table.get("start_variables", ())),
        fingerprint=_fingerprint(inside),
    )
    if not recipe.dockerfile and not (recipe.base_image and recipe.argv):
        raise ValueError(f"runtimes/{runtime}/runtime.toml lacks base_image or command")
    if recipe.name != runtime:
        raise ValueError(f"runtimes/{runtime}/runtime.toml calls itself {recipe.name!r}")
    return recipe


def _script(folder: Traversable, table: Mapping[str, Any] | None) -> Script | None:
    if table is None:
        return None
    return Script(source=(folder / table["script"]).read_text("utf-8"), argv=tuple(table["command"]))


def _inside(name: str) -> str:
    """Where a file is in the image: one of another runtime's (``../<runtime>/<file>``) as if it were its own."""
    return name.split("/", 2)[2] if name.startswith("../") else name


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
