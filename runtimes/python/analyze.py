"""Checks a Python artifact without running any of it.

Runs as ``python -I -S -c SOURCE ARTIFACT HANDLER`` on the worker and prints one JSON object on stdout: ``errors`` (a
list of sentences), ``warnings``, ``files`` (how many .py), ``handler`` (as found) and ``imports`` (top-level names).
Only the handler's module, and what is imported together with it, can have errors: of all other files a function may
never import one, and what is wrong in them is a warning. Parsers can be crashed by hostile source, so this process
limits itself before it reads any, and a child reads the files that are not needed.
"""

from __future__ import annotations

import ast
import json
import os
import re
import resource
import signal
import sys
import tarfile
import warnings
from collections.abc import Iterator

MEMORY_BYTES = 1 << 30
CPU_S = 20
BESIDE_S = 5
MAX_REPORTED = 20
SDK = "containerpub"
MARK = "function"
DECLARING = ("requirements.txt", "pyproject.toml", "Pipfile", "setup.cfg", "setup.py")
MODULE = re.compile(r"[^\W-][\w-]*(?:\.[^\W-][\w-]*)*")
# Ways to bind a name that only running the module tells of.
UNSEEN = {"globals", "vars", "locals", "exec", "eval", "setattr", "modules", "__dict__", "__import__", "__getattr__"}
Imported = tuple[str, bool]  # a module's full name, and whether an error of its import is caught


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def parse(name: str, source: bytes) -> ast.Module | str:
    """The module, or the sentence that says why there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = compile(source, name, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
            # some rules, such as 'return' outside of a function, are only applied by the compiler proper
            compile(tree, name, "exec", dont_inherit=True)
    except SyntaxError as error:
        return f"{name}:{error.lineno or 1}: {error.msg}"
    except (RecursionError, MemoryError):
        return f"{name}:1: nested too deeply or too large to be checked"
    except ValueError as error:
        return f"{name}:1: {error}"
    return tree


class Module:
    """What a module's text says of it."""

    def __init__(self, path: str, tree: ast.Module) -> None:
        self.bound: set[str] = set()
        self.marked: list[str] = []
        self.imports: set[str] = set()
        self.needed: list[Imported] = list(_needed(tree.body, _package(path), guarded=False))
        self.unseen = False  # it may bind names in ways that only running it tells of
        marks = {MARK}
        pending: list[tuple[ast.AST, bool]] = [(tree, True)]
        while pending:
            node, own = pending.pop()
            if isinstance(node, ast.Import | ast.ImportFrom):
                marks |= self._read_import(node, own=own)
            elif own:
                self._read(node)
            if isinstance(node, ast.Global):
                self.bound |= set(node.names)
            elif isinstance(node, ast.Name | ast.Attribute):
                self.unseen |= (node.id if isinstance(node, ast.Name) else node.attr) in UNSEEN
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef)
            pending += [(child, own and not inside) for child in reversed(list(ast.iter_child_nodes(node)))]
        self.unseen |= bool(self.bound & {"*", "__getattr__"})
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name in self.bound:
                self.marked += [node.name] if any(_name(one) in marks for one in node.decorator_list) else []

    def _read_import(self, node: ast.Import | ast.ImportFrom, *, own: bool) -> set[str]:
        """The names that ``@function`` has here."""
        module = node.module if isinstance(node, ast.ImportFrom) else None
        for alias in node.names:
            if own:
                self.bound.add(alias.asname or alias.name.split(".")[0])
            if isinstance(node, ast.Import):
                self.imports.add(alias.name.split(".")[0])
        if module and isinstance(node, ast.ImportFrom) and not node.level:
            self.imports.add(module.split(".")[0])
        return {alias.asname or alias.name for alias in node.names if module == SDK and alias.name == MARK}

    def _read(self, node: ast.AST) -> None:
        """The names that ``node`` itself binds in the module."""
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            self.bound.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            self.bound.add(node.name)
        else:
            name = getattr(node, "rest" if isinstance(node, ast.MatchMapping) else "name", None)
            if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar | ast.MatchMapping) and name:
                self.bound.add(name)


def _name(decorator: ast.expr) -> str | None:
    """Of ``@function``, ``@function(...)`` or ``@containerpub.function``."""
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return called.id if isinstance(called, ast.Name) else getattr(called, "attr", None)


def _package(path: str) -> list[str]:
    """What relative imports of a file are relative to."""
    return path.split("/")[:-1]


def _needed(body: list[ast.stmt], package: list[str], *, guarded: bool) -> Iterator[Imported]:
    """What is imported whenever a module is. An import under a condition may never be made."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, guarded) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level > len(package) + 1:
                continue
            base = [*package[: len(package) + 1 - node.level], node.module] if node.level else [node.module]
            start = [part for part in base if part]
            yield from ((".".join([*start, alias.name]), guarded) for alias in node.names)
        elif isinstance(node, ast.With | ast.ClassDef):
            yield from _needed(node.body, package, guarded=guarded)
        elif isinstance(node, ast.Try | ast.TryStar):
            caught = {name for handler in node.handlers for name in _caught(handler.type)}
            if not caught & {"SyntaxError", "Exception", "BaseException"}:
                yield from _needed(node.body, package, guarded=guarded or bool(caught))
            yield from _needed(node.finalbody, package, guarded=guarded)


def _caught(kind: ast.expr | None) -> Iterator[str]:
    if kind is None:
        yield "BaseException"
    for part in ast.walk(kind) if kind is not None else ():
        if isinstance(part, ast.Name | ast.Attribute):
            yield part.id if isinstance(part, ast.Name) else part.attr


class Project:
    """The files of an artifact. Modules are parsed when they are asked for."""

    def __init__(self, artifact: str) -> None:
        self.sources: dict[str, bytes] = {}
        self.names: set[str] = set()
        self.errors: list[str] = []
        self._modules: dict[str, Module | None] = {}
        with tarfile.open(artifact, mode="r|gz") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if member.isreg():
                    self.names.add(name)
                    if name.endswith(".py") and (content := archive.extractfile(member)) is not None:
                        self.sources[name] = content.read()

    def module(self, path: str) -> Module | None:
        """``None`` if it does not parse, which is one of the errors then."""
        if path not in self._modules:
            parsed = parse(path, self.sources[path])
            if isinstance(parsed, str):
                self.errors.append(parsed)
            self._modules[path] = None if isinstance(parsed, str) else Module(path, parsed)
        return self._modules[path]

    def path(self, module: str) -> str | None:
        return next((path for path in candidates(module) if path in self.sources), None)

    def is_compiled(self, module: str) -> bool:
        """Whether the module is there without its source."""
        stem = module.replace(".", "/") + "."
        return any(name.startswith(stem) and name.endswith((".so", ".pyc")) for name in self.names)

    def need(self, module: str) -> tuple[list[Module], set[str]]:
        """Parse a module and what is imported together with it; the modules, and the foreign names they need."""
        found, foreign, seen, pending = [], set[str](), set[str](), [(module, False)]
        own = {name.split("/")[0].split(".")[0] for name in self.names} | {SDK} | sys.stdlib_module_names
        while pending:
            name, guarded = pending.pop()
            if not guarded and name.split(".")[0] not in own:
                foreign.add(name.split(".")[0])
            parts = name.split(".")
            for path in {self.path(".".join(parts[:count])) for count in range(1, len(parts) + 1)} - seen - {None}:
                seen.add(str(path))
                if (one := self.module(str(path))) is not None:
                    found.append(one)
                    pending += one.needed
        return found, foreign

    def check_others(self) -> tuple[list[str], set[str]]:
        """What is wrong with the files that nothing has asked for, and what they import."""
        others = sorted(set(self.sources) - set(self._modules))
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_CPU, (BESIDE_S, BESIDE_S))
            signal.alarm(2 * BESIDE_S)  # where processors are scarce
            for name in others:
                parsed = parse(name, self.sources[name])
                problem, imports = parsed, list[str]()
                if isinstance(parsed, ast.Module):
                    problem, imports = "", sorted(Module(name, parsed).imports)
                os.write(writer, (json.dumps([problem, imports]) + "\n").encode())
            os._exit(0)
        os.close(writer)
        with open(reader, encoding="ascii") as lines:
            told = [json.loads(line) for line in lines if line.endswith("\n")]
        if os.waitpid(child, 0)[1] != 0:
            told.append([f"{others[len(told)]}:1: this file cannot be checked, and neither are those after it", []])
        return [problem for problem, _ in told if problem], {name for _, names in told for name in names}


def candidates(module: str) -> tuple[str, str]:
    """Where a module may be."""
    path = module.replace(".", "/")
    return f"{path}.py", f"{path}/__init__.py"


def default_module(project: Project) -> str:
    """``main``, or the only module that there is; empty if there are others."""
    lone = [name.removesuffix(".py") for name in project.sources if "/" not in name]
    return "main" if "main" in lone else lone[0] if len(lone) == 1 else ""


def spelled(handler: str, project: Project) -> str | None:
    """How ``handler`` is written here, if it has the spelling of another platform, or is in another module."""
    text = handler.strip().replace("\\", "/").removesuffix("()")
    module, colon, name = (part.strip() for part in text.partition(":"))
    guesses = [(module, name)]
    if not colon:
        cut = max(text.rfind("."), text.rfind("/"))
        guesses = [(text[: max(cut, 0)], text[cut + 1 :]), (default_module(project), text)]
    tops = [path for path in sorted(project.sources) if "/" not in path.removesuffix("/__init__.py")]
    for guess, attribute in [*guesses, *((top, name) for top in tops)]:
        clean = re.sub(r"^(?:\.?/)+", "", guess).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        path = project.path(clean)
        parsed = None if path is None else parse(path, project.sources[path])
        if path is None or not isinstance(parsed, ast.Module):
            continue
        there = Module(path, parsed)
        wanted = attribute or next(iter(there.marked), "handler")
        if wanted.split(".")[0] in there.bound and f"{clean}:{wanted}" != handler:
            return f"{clean}:{wanted}"
    return None


def find_handler(handler: str, project: Project) -> tuple[str, str | None, str | None]:
    """The handler as ``module:name``, and the sentences that say what is wrong with it, and what is not seen."""
    name, _, attribute = handler.partition(":")
    name = name or default_module(project)
    path = project.path(name) if MODULE.fullmatch(name) else None
    if path is None:
        if MODULE.fullmatch(name) and project.is_compiled(name):
            return handler, None, f"the module {name!r} of the handler is compiled: it is not checked"
        missing = f"there is no such file, but the handler is {handler or 'main'!r}"
        place, advice = candidates(name or "main")[0], "it is written module:name, such as 'main:handler'"
        if (written := spelled(handler, project)) is not None:
            advice = f'put handler = "{written}" into the project file'
            if not handler or ":" not in handler or not MODULE.fullmatch(name):
                place = str(project.path(written.partition(":")[0]))
                missing = f"the handler {handler!r} is written {written!r} here" if handler else "no handler is named"
        return handler, f"{place}:1: {missing}: {advice}", None
    needed, _ = project.need(name)
    module = project.module(path)
    if module is None:
        return handler, None, None  # already reported: it does not parse
    marking = False
    if not attribute:
        if len(module.marked) > 1:
            marked = ", ".join(module.marked)
            return handler, f"{path}:1: more than one @{MARK}: {marked}; name one as the handler", None
        if not module.marked and any(one.marked for one in needed):
            return handler, None, None  # marked elsewhere, and imported from here
        attribute = module.marked[0] if module.marked else "handler"
        marking = any(SDK in one.imports for one in needed)
    found = f"{name}:{attribute}"
    if attribute.split(".")[0] in module.bound:
        return found, None, None
    if module.unseen or marking:
        return (
            found,
            None,
            f"{path}: {attribute!r} is not seen in it: whether it is there shows when the function starts",
        )
    what = f"{path}:1: there is no {attribute!r}, but the handler is {handler or found!r}"
    written = spelled(handler, project)
    return handler, what if written is None else f"{what}; it is written {written!r}", None


def main() -> None:
    artifact, handler = sys.argv[1:]
    limit()
    project = Project(artifact)
    found, problem, unseen = find_handler(handler, project)
    module = found.partition(":")[0] or default_module(project)
    needed, foreign = project.need(module) if problem is None else ([], set[str]())
    beside, imports = project.check_others()
    imports = imports.union(*(one.imports for one in needed))
    told = [] if unseen is None else [unseen]
    told += [f"{sentence} (the handler does not need this file)" for sentence in beside[:MAX_REPORTED]]
    if not project.names & set(DECLARING):
        told += [f"{name[:100]!r} is imported, but there is no requirements.txt" for name in sorted(foreign)]
    report = {
        "errors": (project.errors + ([] if problem is None else [problem]))[:MAX_REPORTED],
        "warnings": told[:MAX_REPORTED],
        "files": len(project.sources),
        "handler": found,
        "imports": [name[:100] for name in sorted(imports)[:200]],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
