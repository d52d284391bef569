"""``init``: a new project from a runtime's template."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.commands import JsonFlag, output_of
from cli.errors import ExitStatus, UsageError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

_NAME_LINE = re.compile(r"^name\s*=.*$", re.MULTILINE)
_NOT_TEMPLATE = frozenset({"__pycache__"})


def init(
    ctx: typer.Context,
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Where; made when it is not there.", show_default=False)
    ] = Path(),
    runtime: Annotated[str, typer.Option("--runtime", help="What the function is written for.")] = "python",
    name: Annotated[str | None, typer.Option("--name", help="The function's name; the folder's when left out.")] = None,
    as_json: JsonFlag = False,
) -> ExitStatus:
    """Make a new project, ready to deploy."""
    output = output_of(ctx, as_json)
    target = (output.env.cwd / folder).resolve()
    template = _template(runtime)
    files = dict(_files(template, ""))
    taken = [each for each in files if (target / each).exists()]
    if taken:
        raise UsageError(f"{target} already has {', '.join(sorted(taken))}.", hint="Give another folder.")
    chosen = name or target.name
    try:
        for relative, source in files.items():
            path = target / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            content = source.read_bytes()
            if relative == "containerpub.toml":
                content = with_name(content.decode("utf-8"), chosen).encode("utf-8")
            path.write_bytes(content)
    except OSError as error:
        raise UsageError(f"The project cannot be written: {error}.") from error
    if output.as_json:
        output.document({"name": chosen, "runtime": runtime, "folder": str(target), "files": sorted(files)})
    else:
        for each in sorted(files):
            output.line(str(target / each))
        output.note(f"Deploy it with `containerpub deploy {folder}`.")
    return ExitStatus.OK


def with_name(toml: str, name: str) -> str:
    """``toml`` with its ``name`` set to ``name``, everything else as it was."""
    line = f"name = {json.dumps(name)}"  # a JSON string is a TOML string too
    if "name" in tomllib.loads(toml):
        return _NAME_LINE.sub(lambda _: line, toml, count=1)
    return f"{line}\n{toml}"


def _template(runtime: str) -> Traversable:
    from importlib.resources import files

    root = files("runtimes")
    known = sorted(each.name for each in root.iterdir() if (each / "template").is_dir())
    if runtime not in known:
        raise UsageError(f"There is no runtime {runtime!r}.", hint=f"Choose one of {', '.join(known)}.")
    return root / runtime / "template"


def _files(folder: Traversable, prefix: str) -> list[tuple[str, Traversable]]:
    found: list[tuple[str, Traversable]] = []
    for each in folder.iterdir():
        if each.name in _NOT_TEMPLATE:
            continue
        if each.is_dir():
            found.extend(_files(each, f"{prefix}{each.name}/"))
        else:
            found.append((f"{prefix}{each.name}", each))
    return found
