"""Checks that the container engine has the folders that code is linked into under the same path as the worker."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from functools import partial

from shared.in_thread import finished_in_thread
from worker.build.recipe import Recipe
from worker.errors import EngineUnavailable
from worker.sandbox.attached import AttachedSandbox
from worker.sandbox.code_folders import CodeFolders

_LOOK_TIMEOUT_S = 10.0


class Unseen(EngineUnavailable):
    """The engine does not have the data folder under the same path."""


async def look(folders: CodeFolders, recipe: Recipe, sandbox: AttachedSandbox) -> None:
    """Raise :class:`Unseen` unless the sandbox, which has no code yet, sees files that the worker puts into its
    folders."""
    marks = {f"/{name}/{secrets.token_hex(8)}": secrets.token_hex(16) for name in recipe.code_folders}
    try:
        await finished_in_thread(partial(_mark, folders, sandbox.id, marks))
        seen = await sandbox.look(list(marks), _LOOK_TIMEOUT_S)
        await asyncio.to_thread(_unmark, folders, sandbox.id, marks)
    except OSError as error:
        raise EngineUnavailable(f"The folder of the sandbox {sandbox.id} cannot be used: {error.strerror}") from error
    if seen != marks:
        raise unseen(folders, f"the sandbox {sandbox.id} sees nothing in its folders")


def unseen(folders: CodeFolders, reason: str) -> Unseen:
    return Unseen(
        f"The container engine does not have the data folder around {folders.folders.root} under the same path, so "
        f"functions cannot get their code: give worker and engine the same DATA_DIR ({reason})."
    )


def is_unseen(folders: CodeFolders, error: EngineUnavailable) -> bool:
    """Whether the engine says that it does not have one of our folders."""
    return not isinstance(error, Unseen) and str(folders.folders.root) in error.message


def _mark(folders: CodeFolders, sandbox_id: str, marks: Mapping[str, str]) -> None:
    for path, content in marks.items():
        mark = folders.home(sandbox_id) / path.lstrip("/")
        mark.write_text(content, "ascii")
        mark.chmod(0o644)


def _unmark(folders: CodeFolders, sandbox_id: str, marks: Mapping[str, str]) -> None:
    for path in marks:
        (folders.home(sandbox_id) / path.lstrip("/")).unlink()
