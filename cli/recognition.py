"""What a folder of code is written for: its runtime and its handler, as far as its files tell."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path

from shared.textfile import NotText, text_of

_WEB = {"Flask": "Flask", "FastAPI": "FastAPI", "Starlette": "Starlette", "Quart": "Quart"}
_WEB_FACTORIES = {"get_wsgi_application": "Django", "get_asgi_application": "Django"}
_HANDLERS = {"handler": "handler", "lambda_handler": "Lambda handler"}
_FIRST_MODULES = ("main", "app", "lambda_function", "wsgi", "asgi", "index")
_NODE_SUFFIXES = (".mjs", ".js", ".cjs")
_NODE_EXPORT = re.compile(
    r"^\s*(?:module\.)?exports\.(handler)\s*=|^\s*export\s+(?:async\s+)?(?:function|const|let|var)\s+(handler)\b", re.M
)
_MOST_BYTES = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognised:
    """``what`` it is, for a person; ``handler`` is None where no file has one. ``package``: what it needs from the
    package index to run at all. ``advice``: what is left to do."""

    what: str
    runtime: str
    handler: str | None
    package: str | None = None
    advice: str | None = None


def recognised(folder: Path) -> Recognised | None:
    """What ``folder`` holds; None if its files at the top do not tell. The files are read and never run."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if folder.joinpath("pubspec.yaml").is_file():
        programs = [path for path in ("bin/main.dart", "main.dart") if folder.joinpath(path).is_file()]
        return Recognised(what="a Dart program", runtime="dart", handler=programs[0] if programs else None)
    return _python([path for path in files if path.suffix == ".py"]) or _node(folder, files)


def _python(files: list[Path]) -> Recognised | None:
    order = {name: at for at, name in enumerate(_FIRST_MODULES)}
    found = [
        recognised
        for path in sorted(files, key=lambda path: order.get(path.stem, len(order)))
        if path.stem.isidentifier() and (recognised := _python_module(path)) is not None
    ]
    # A web application goes first: a module beside it may well have something called handler.
    return next((one for one in found if one.runtime == "python-flask"), found[0] if found else None)


def _python_module(path: Path) -> Recognised | None:
    try:
        tree = ast.parse(_text(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    handler = None
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            called = node.value.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            what = _WEB.get(name) or _WEB_FACTORIES.get(name)
            if what is not None and isinstance(target, ast.Name):
                spelling = f"{path.stem}:{target.id}"
                return Recognised(
                    what=f"a {what} application", runtime="python-flask", handler=spelling, package=what.lower()
                )
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and handler is None:
            marked = any(getattr(mark, "id", getattr(mark, "attr", "")) == "function" for mark in node.decorator_list)
            if marked or node.name in _HANDLERS:
                handler = f"{path.stem}:{node.name}"
    if handler is None:
        return None
    return Recognised(
        what=f"a {_HANDLERS.get(handler.partition(':')[2], 'handler')}", runtime="python", handler=handler
    )


def _node(folder: Path, files: list[Path]) -> Recognised | None:
    manifest = folder / "package.json"
    try:
        package = json.loads(_text(manifest)) if manifest.is_file() else None
    except (ValueError, RecursionError):
        package = {}
    modules = [path for path in files if path.suffix in _NODE_SUFFIXES]
    if package is None and not any(path.stem in _FIRST_MODULES for path in modules):
        return None
    for path in modules:
        if _NODE_EXPORT.search(_text(path)):
            return Recognised(what="a Node.js handler", runtime="node", handler=f"{path.stem}:handler")
    needs = package.get("dependencies") if isinstance(package, dict) else None
    if isinstance(needs, dict) and "express" in needs:
        return Recognised(
            what="an Express application",
            runtime="node",
            handler=None,
            advice="The node runtime calls a handler and serves no application that listens: have the handler in "
            "main.mjs do what the routes do.",
        )
    return Recognised(
        what="a Node.js package",
        runtime="node",
        handler=None,
        advice="No module exports a handler: have the one in main.mjs call your code.",
    )


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return text_of(file.read(_MOST_BYTES))
    except (OSError, NotText):
        return ""
