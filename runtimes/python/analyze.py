"""Checks a Python artifact without running any of it.

Runs as ``python -I -S -c SOURCE ARTIFACT HANDLER`` on the worker and prints one JSON object on stdout: ``errors`` (a
list of sentences), ``warnings``, ``files`` (how many .py), ``handler`` (as found) and ``imports`` (top-level names).
Parsers can be crashed by hostile source, so this process limits itself before it reads any.
"""

from __future__ import annotations

import ast
import json
import resource
import sys
import tarfile
import warnings
from collections.abc import Iterator

MEMORY_BYTES = 1 << 30
CPU_S = 20
MAX_REPORTED = 20
SDK = "containerpub"
MARK = "function"


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


def top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run at import, branches included."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.TryStar | ast.With | ast.For | ast.While):
            yield from top_level(node.body)
            yield from top_level(getattr(node, "orelse", []))
            yield from top_level(getattr(node, "finalbody", []))
            for handler in getattr(node, "handlers", []):
                yield from top_level(handler.body)


def names(node: ast.stmt) -> Iterator[str]:
    """What a statement binds in its module; ``*`` when that cannot be known."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        for alias in node.names:
            yield alias.asname or alias.name.split(".")[0]
    elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            for part in ast.walk(target):
                if isinstance(part, ast.Name):
                    yield part.id


def marked(module: ast.Module) -> Iterator[str]:
    """Functions decorated with ``@function``, ``@function(...)`` or ``@containerpub.function``."""
    for node in top_level(module.body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for decorator in node.decorator_list:
                called = decorator.func if isinstance(decorator, ast.Call) else decorator
                name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", None)
                if name == MARK:
                    yield node.name


def candidates(module: str) -> tuple[str, str]:
    """Where a module may be."""
    path = module.replace(".", "/")
    return f"{path}.py", f"{path}/__init__.py"


def default_module(files: set[str]) -> str:
    """``main``, or the only module there is beside it."""
    lone = [name for name in files if "/" not in name]
    return lone[0].removesuffix(".py") if len(lone) == 1 else "main"


def find_handler(handler: str, modules: dict[str, ast.Module], files: set[str]) -> tuple[str, str | None]:
    """The handler as ``module:name``, and the sentence that says what is wrong with it."""
    name, _, attribute = handler.partition(":")
    name = name or default_module(files)
    path = next((path for path in candidates(name) if path in files), None)
    if path is None:
        problem = f"{candidates(name)[0]}:1: there is no such file, but the handler is {handler or name!r}"
        module, _, function = name.rpartition(".")
        if not attribute and any(path in files for path in candidates(module)):
            problem += f'; between module and function stands a colon: handler = "{module}:{function}"'
        return handler, problem
    module = modules.get(path)
    if module is None:
        return handler, None  # already reported: it does not parse
    if not attribute:
        found = list(marked(module))
        if len(found) > 1:
            return handler, f"{path}:1: more than one @{MARK}: {', '.join(found)}; name one as the handler"
        if not found and any(True for other in modules.values() for _ in marked(other)):
            return handler, None  # marked elsewhere, and imported from here
        attribute = found[0] if found else "handler"
    bound = {bound for node in top_level(module.body) for bound in names(node)}
    if attribute.split(".")[0] not in bound and not bound & {"*", "__getattr__"}:
        return handler, f"{path}:1: there is no {attribute!r}, but the handler is {handler or f'{name}:{attribute}'!r}"
    return f"{name}:{attribute}", None


def imported(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.split(".")[0]


def main() -> None:
    artifact, handler = sys.argv[1:]
    limit()
    modules: dict[str, ast.Module] = {}
    errors: list[str] = []
    files: set[str] = set()
    imports: set[str] = set()
    has_requirements = False
    with tarfile.open(artifact, mode="r|gz") as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if name == "requirements.txt" and member.size:
                has_requirements = True
            if not member.isreg() or not name.endswith(".py"):
                continue
            files.add(name)
            content = archive.extractfile(member)
            parsed = parse(name, content.read() if content else b"")
            if isinstance(parsed, str):
                errors.append(parsed)
                continue
            imports |= set(imported(parsed))
            modules[name] = parsed
    found, problem = find_handler(handler, modules, files)
    if problem is not None:
        errors.append(problem)
    own = {name.split("/")[0].removesuffix(".py") for name in files} | {SDK}
    foreign = sorted(imports - own - sys.stdlib_module_names)
    missing = [] if has_requirements else [name[:100] for name in foreign[:MAX_REPORTED]]
    report = {
        "errors": errors[:MAX_REPORTED],
        "warnings": [f"{name!r} is imported, but there is no requirements.txt" for name in missing],
        "files": len(files),
        "handler": found,
        "imports": [name[:100] for name in sorted(imports)[:200]],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
