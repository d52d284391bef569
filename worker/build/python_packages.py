"""Where a Python project declares its packages, of which only some places are read."""

from __future__ import annotations

import configparser
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from worker.build.encoding import read_text
from worker.build.plan import BuildRejected
from worker.build.requirements import MAX_BYTES, Requirements, parse_requirements, requirements_of

REQUIREMENTS = "requirements.txt"
PROJECT = "pyproject.toml"
_LOCKS = {"uv.lock": "uv export -o requirements.txt", "poetry.lock": "poetry export -o requirements.txt", "pdm.lock":
          "pdm export -o requirements.txt"}  # fmt: skip
_INSTALLED_BY_SETUP = re.compile(rb"""\binstall_requires\s*=\s*\[\s*["']""")
_SEPARATORS = re.compile(r"[-_.]+")


def parse_python_packages(files: Mapping[str, bytes]) -> Requirements:
    """What ``requirements.txt`` asks for, or else ``pyproject.toml``.

    :raises BuildRejected: ``build_failed``: they ask for something that is not allowed, or packages are declared where
        nothing is read, which says what to do.
    """
    asked = parse_requirements(files.get(REQUIREMENTS, b""), REQUIREMENTS, files)
    if asked:
        return asked
    if PROJECT in files:
        table = _toml(files[PROJECT], PROJECT)
        if found := _of_project(table, files):
            return found
    if "Pipfile" in files and _toml(files["Pipfile"], "Pipfile").get("packages"):
        raise _elsewhere("Pipfile", "pipenv requirements > requirements.txt")
    if "setup.cfg" in files and _asks_in_setup(files["setup.cfg"]):
        raise _elsewhere("setup.cfg", "pip-compile setup.cfg, or copy install_requires into it")
    if _INSTALLED_BY_SETUP.search(files.get("setup.py", b"")):
        raise _elsewhere("setup.py", "copy install_requires into it")
    return asked


def _of_project(table: Mapping[str, Any], files: Mapping[str, bytes]) -> Requirements | None:
    project, tool = _table(table, "project"), _table(table, "tool")
    listed = project.get("dependencies")
    if listed is not None and not (isinstance(listed, list) and all(isinstance(one, str) for one in listed)):
        raise _rejected(f"{PROJECT}: project.dependencies is not a list of texts.")
    if listed:
        _check_sources(listed, _table(_table(tool, "uv"), "sources"))
        notes = [f"the packages are those of project.dependencies in {PROJECT}"]
        notes += [
            f"{lock} is not read, so packages are resolved anew; to keep to it: {command}"
            for lock, command in _LOCKS.items()
            if lock in files
        ]
        return requirements_of({f"{PROJECT}: dependencies[{at}]": one for at, one in enumerate(listed)}, tuple(notes))
    if set(_table(_table(tool, "poetry"), "dependencies")) - {"python"}:
        raise _elsewhere(f"{PROJECT}, for Poetry", "poetry export --without-hashes -o requirements.txt")
    if _table(_table(tool, "flit"), "metadata").get("requires"):
        raise _elsewhere(f"{PROJECT}, for Flit", "copy tool.flit.metadata.requires into it")
    if "dependencies" in (project.get("dynamic") or ()) and REQUIREMENTS not in files:
        raise _elsewhere(f"{PROJECT}, as dynamic", "pip-compile pyproject.toml")
    return None


def _check_sources(listed: list[str], sources: Mapping[str, Any]) -> None:
    """A package that uv takes from elsewhere may have a stranger's namesake at the index."""
    elsewhere = {_SEPARATORS.sub("-", name).lower() for name in sources}
    for one in listed:
        name = re.split(r"[^A-Za-z0-9._-]", one.strip(), maxsplit=1)[0]
        if _SEPARATORS.sub("-", name).lower() in elsewhere:
            raise _rejected(
                f"{PROJECT}: tool.uv.sources has {name!r} from elsewhere than the index, which is not allowed."
            )


def _asks_in_setup(content: bytes) -> bool:
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(read_text(content))
    except (configparser.Error, UnicodeDecodeError):
        return False  # other tools than pip keep their settings there
    return bool(parser.get("options", "install_requires", fallback="").strip())


def _toml(content: bytes, name: str) -> dict[str, Any]:
    if len(content) > MAX_BYTES:
        raise _rejected(f"{name} is larger than {MAX_BYTES // 1024} KiB.")
    try:
        return tomllib.loads(read_text(content))
    except UnicodeDecodeError as error:
        raise _rejected(f"{name} is not UTF-8 text: save it as UTF-8.") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise _rejected(f"{name} is not TOML: {error}.") from error


def _table(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = table.get(name)
    return found if isinstance(found, dict) else {}


def _elsewhere(place: str, command: str) -> BuildRejected:
    return _rejected(
        f"The packages are declared in {place}, which is not read: put them into requirements.txt ({command}), "
        f"or into project.dependencies of {PROJECT}."
    )


def _rejected(message: str) -> BuildRejected:
    return BuildRejected("build_failed", message)
