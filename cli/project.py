"""A function's project folder: ``containerpub.toml`` (or ``function.json``) and the name it deploys under."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.errors import UsageError
from cli.names import checked
from shared.textfile import NotText, text_of

PROJECT_FILES = ("containerpub.toml", "function.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """``settings`` are the project file's members besides ``name``, as the server will judge them."""

    folder: Path
    name: str
    settings: Mapping[str, object]

    def check_handler_is_in(self, left_out: Sequence[tuple[str, str]]) -> None:
        """Raise :class:`UsageError` if the handler's file is not deployed, or lies in a folder that is not.

        :param left_out: names and rules, as in a listing.
        """
        written = str(self.settings.get("handler", "")).partition(":")[0].removeprefix("./")
        modules = (written, written.replace(".", "/"))
        for name, rule in left_out:
            if name.endswith("/"):
                found = any(module.startswith(name) for module in modules)
            else:
                found = Path(name).with_suffix("").as_posix() in modules
            if found:
                raise UsageError(
                    f"The handler {written} is in {name}, which is not deployed ({rule}).",
                    hint=f"Put the line !{name} into .containerpubignore.",
                )


def read_project(folder: Path, *, name: str | None = None) -> Project:
    """The project in ``folder``; ``name`` goes before the file's, and that before the folder's.

    Raises :class:`UsageError` when there is no project file, two of them, or one that cannot be read.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder.", hint="Give the folder that holds containerpub.toml.")
    found = [folder / file for file in PROJECT_FILES if (folder / file).is_file()]
    if not found:
        raise UsageError(
            f"{folder} has no containerpub.toml.", hint="Make a project with `containerpub init`, or give its folder."
        )
    if len(found) > 1:
        raise UsageError(f"{folder} has both containerpub.toml and function.json.", hint="Keep one of them.")
    members = _read(found[0])
    own_name = members.pop("name", None)
    if own_name is not None and not isinstance(own_name, str):
        raise UsageError(f"name in {found[0].name} must be a text.")
    if name:
        chosen = checked(name, whose="--name")
    elif own_name:
        chosen = checked(own_name, whose=f"name in {found[0].name}")
    else:
        chosen = checked(folder.name, whose="The folder's name")
    return Project(folder=folder, name=chosen, settings=members)


def _read(path: Path) -> dict[str, object]:
    try:
        text = text_of(path.read_bytes())
        members: object = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except NotText as error:
        raise UsageError(f"{path.name} cannot be read: {error}") from error
    except (OSError, ValueError) as error:  # both decoders' errors are ValueErrors
        raise UsageError(f"{path.name} cannot be read: {error}.") from error
    if not isinstance(members, dict):
        raise UsageError(f"{path.name} must hold an object of settings.")
    for key, value in members.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:  # TOML knows dates, infinities and NaN; JSON does not
            raise UsageError(f"{key} in {path.name} cannot be sent: {error}.") from error
    return members
