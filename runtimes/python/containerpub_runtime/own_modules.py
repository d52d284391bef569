"""Modules of the function's own with names of the standard library's: ``random.py``, ``types.py``, ``json/``.

The function's are the ones that it imports, as when Python starts with its folder first on the path. The runtime goes
on with the library's, which it imported before that folder was on the path, and keeps to itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

from containerpub_runtime import STARTED_WITH

_NEEDED = ("ast", "asyncio", "base64", "inspect", "linecache", "logging", "site", "tokenize", "traceback")
"""What the runtime and the library's modules that it uses import only when they need it."""
_SHARED = frozenset(("containerpub", "containerpub_runtime", "containerpub_web", "importlib", "asyncio", "concurrent"))
"""What there must not be a second copy of: the two ends of an event loop have to be of one."""
_MOST_LOOKED_AT = 256 * 1024
_kept: dict[str, ModuleType] = {}


def shadowing(folders: Sequence[str]) -> frozenset[str]:
    """The names of the library's that modules right in ``folders`` have.

    Names that Python has imported before any program starts (``os``, ``abc``) are not among them: there the library's
    goes first.
    """
    entries = (os.listdir(folder) for folder in folders if os.path.isdir(folder))
    names = {entry.partition(".")[0] for several in entries for entry in several}
    names = (names & _library_names()) - STARTED_WITH - set(sys.builtin_module_names)
    if not names:
        return frozenset()
    from importlib.machinery import PathFinder

    found = ((name, PathFinder.find_spec(name, folders)) for name in names)
    # A folder without an __init__.py has no loader: the library's module goes before it.
    return frozenset(name for name, spec in found if spec is not None and spec.loader is not None)


def folders_of(folder: str) -> list[str]:
    """The folders that the function's modules are found in: ``folder``, and if code in it may put others on the path,
    all below it."""
    for entry in os.scandir(folder):
        if entry.name.endswith(".py") and entry.is_file():
            with open(entry.path, "rb") as file:
                if b"sys.path" in file.read(_MOST_LOOKED_AT):
                    return [at for at, _, _ in os.walk(folder)]
    return [folder]


def give_way(folders: Sequence[str]) -> None:
    """Before ``folders`` are put on the path: if modules in them have names of the library's, forget all that was
    imported since Python started, so that the function imports what it would have imported then."""
    own = shadowing(folders)
    if not own:
        return
    for name in _NEEDED:
        __import__(name)
    for name, module in list(sys.modules.items()):
        top = name.partition(".")[0]
        if name in STARTED_WITH or (top in _SHARED and top not in own):
            continue
        if top in own or _is_source(module):
            _kept[name] = sys.modules.pop(name)


def standard(name: str) -> ModuleType | None:
    """The library's module of this name, if anybody has imported it."""
    return _kept.get(name) or sys.modules.get(name)


@contextmanager
def library() -> Iterator[None]:
    """Inside, an import finds the library's modules that the runtime keeps to itself, and not the function's."""
    if not _kept:
        yield
        return
    instead = {name: sys.modules.get(name) for name in _kept}
    sys.modules.update(_kept)
    try:
        yield
    finally:
        for name, module in instead.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


def _library_names() -> frozenset[str]:
    names: frozenset[str] | None = getattr(sys, "stdlib_module_names", None)
    if names is None:  # before Python 3.10
        folder = os.path.dirname(os.__file__)
        names = frozenset(
            entry.partition(".")[0]
            for part in (folder, os.path.join(folder, "lib-dynload"))
            if os.path.isdir(part)
            for entry in os.listdir(part)
        ) - {"site-packages"}
    return names


def _is_source(module: ModuleType) -> bool:
    """Not of those that are written in C: they have one copy, and import hardly anything."""
    return str(getattr(module, "__file__", None) or "").endswith((".py", ".pyc"))
