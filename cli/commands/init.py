"""``init``: a new project from a runtime's template."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.commands import JsonFlag, output_of
from cli.errors import ExitStatus, UsageError
from cli.names import checked, legal
from cli.output import Output

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from cli.recognition import Recognised

_NAME_LINE = re.compile(r"^name\s*=.*$", re.MULTILINE)
_NOT_TEMPLATE = frozenset({"__pycache__"})
_DEFAULT_RUNTIME = "python"
_MANIFESTS = ("requirements.txt", "pyproject.toml", "Pipfile")
_REPLACEABLE = frozenset({"README.md", "requirements.txt", "package.json"})
"""Files of a template that a folder may have already: its own stay."""


def init(
    ctx: typer.Context,
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Where; made when it is not there.", show_default=False)
    ] = Path(),
    runtime: Annotated[
        str | None, typer.Option("--runtime", help="What the function is written for; python, or what the code tells.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The function's name; the folder's when left out.")] = None,
    as_json: JsonFlag = False,
) -> ExitStatus:
    """Make a new project, ready to deploy; in a folder that has code, write what it lacks."""
    from cli.project import PROJECT_FILES
    from cli.recognition import recognised

    output = output_of(ctx, as_json)
    target = (output.env.cwd / folder).resolve()
    chosen = legal(target.name) if name is None else checked(name, whose="--name")
    projects = [file for file in PROJECT_FILES if (target / file).exists()]
    if projects:
        raise UsageError(
            f"{target} is a project already: it has {projects[0]}.", hint="Deploy it, or give another folder."
        )
    found = recognised(target) if target.is_dir() else None
    if found is not None and runtime in (None, found.runtime):
        return _complete(output, target, chosen, found)
    files = dict(_files(_template(runtime or _DEFAULT_RUNTIME), ""))
    taken = sorted(each for each in files if (target / each).exists())
    kept = [each for each in taken if each not in _REPLACEABLE]
    if kept:
        raise UsageError(
            f"{target} already has {', '.join(kept)}, and nothing tells what they are written for.",
            hint="Write containerpub.toml yourself, or give another folder.",
        )
    made = {each: source.read_bytes() for each, source in files.items() if each not in taken}
    made["containerpub.toml"] = with_name(made["containerpub.toml"].decode("utf-8"), chosen).encode("utf-8")
    if "README.md" in made:
        made["README.md"] = made["README.md"].replace(b"my-function", chosen.encode())
    _write(target, made)
    _say(output, target, chosen, runtime or _DEFAULT_RUNTIME, made)
    return ExitStatus.OK


def _complete(output: Output, target: Path, name: str, found: Recognised) -> ExitStatus:
    """Write the project file of code that is there, and what it cannot do without."""
    handler = found.handler or default_handler(found.runtime)
    lines = [f"name = {json.dumps(name)}", f"runtime = {json.dumps(found.runtime)}", f"handler = {json.dumps(handler)}"]
    made = {"containerpub.toml": "\n".join([*lines, ""]).encode()}
    if found.package is not None and not any((target / each).exists() for each in _MANIFESTS):
        made["requirements.txt"] = f"{found.package}\n".encode()
    if found.handler is None and found.runtime == "node" and not any(target.glob("main.*js")):
        made["main.mjs"] = _template("node").joinpath("main.mjs").read_bytes()
    _write(target, made)
    if not output.as_json:
        output.note(f"This is {found.what}: runtime {found.runtime}, handler {handler}.")
    if found.advice is not None:
        output.note(found.advice)
    _say(output, target, name, found.runtime, made)
    return ExitStatus.OK


def _write(target: Path, files: Mapping[str, bytes]) -> None:
    try:
        for relative, content in files.items():
            path = target / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:  # never over one that came meanwhile
                file.write(content)
    except OSError as error:
        raise UsageError(f"The project cannot be written: {error}.") from error


def _say(output: Output, target: Path, name: str, runtime: str, files: Iterable[str]) -> None:
    if output.as_json:
        output.document({"name": name, "runtime": runtime, "folder": str(target), "files": sorted(files)})
        return
    for each in sorted(files):
        output.line(str(target / each))
    try:
        shown = target.relative_to(output.env.cwd.resolve())
    except ValueError:
        shown = target
    output.note(f"Deploy it with `containerpub deploy {shlex.quote(str(shown))}`: its name is {name}.")


def default_handler(runtime: str) -> str:
    """The handler that the runtime's recipe names."""
    from importlib.resources import files

    recipe = tomllib.loads((files("runtimes") / runtime / "runtime.toml").read_text(encoding="utf-8"))
    return str(recipe["default_handler"])


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
