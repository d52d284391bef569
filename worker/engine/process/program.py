"""The programs that recipes name, on this machine."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from worker.build.builds import content_key
from worker.build.recipe import Recipe
from worker.errors import EngineUnavailable

BASE = "process-"
"""How the bases of versions begin that this engine built."""
_PYTHON = "python3"


def local_argv(argv: Sequence[str], *python_options: str) -> tuple[str, ...]:
    """``argv`` with its program's path here. Python is our own interpreter, with ``python_options``.

    Blocking.

    :raises EngineUnavailable: the program is not installed.
    """
    program, *arguments = argv
    if program == _PYTHON:
        return (sys.executable, *python_options, *arguments)
    return (str(_find(program)), *arguments)


def program_identity(argv: Sequence[str]) -> str:
    """Changes whenever ``argv``'s program is another one. Blocking."""
    program = argv[0]
    if program == _PYTHON:
        return sys.version
    path = _find(program).resolve()
    found = path.stat()
    return f"{path} {found.st_size} {found.st_mtime_ns}"


def base_identity(recipe: Recipe) -> str:
    """What versions of a runtime stand on here, in place of an image. Blocking."""
    return BASE + content_key(program_identity(recipe.install.argv if recipe.install else recipe.argv))


def _find(program: str) -> Path:
    path = shutil.which(program)
    if path is None:
        raise EngineUnavailable(f"The process engine needs the program {program!r}, which is not installed here.")
    return Path(path)
