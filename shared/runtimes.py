"""Which runtimes there are: the folders of ``runtimes/`` that have a recipe."""

from __future__ import annotations

from functools import cache
from importlib import resources

RECIPE = "runtime.toml"
DOCKERFILE = "dockerfile"
"""The runtime that an operator has to turn on: its functions bring their own image along."""


@cache
def known_runtimes() -> tuple[str, ...]:
    """Their names in order. Reads the installed files once."""
    folders = resources.files("runtimes").iterdir()
    return tuple(sorted(folder.name for folder in folders if folder.is_dir() and (folder / RECIPE).is_file()))
