"""Checks what can be said of a JavaScript artifact without a JavaScript parser.

Runs as ``python -I -S -c SOURCE ARTIFACT HANDLER`` on the worker and prints one JSON object on stdout: ``errors`` (a
list of sentences), ``warnings``, ``files`` (how many scripts and modules), ``handler`` (as found) and ``file`` (that
its module is). Whether they parse is checked in the base image, by ``check.cjs``.
"""

from __future__ import annotations

import json
import posixpath
import re
import resource
import sys
import tarfile

MEMORY_BYTES = 1 << 30
CPU_S = 20
EXTENSIONS = (".mjs", ".js", ".cjs")
DEFAULT_MODULES = ("main", "index")


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def candidates(module: str) -> list[str]:
    """Where a module may be, in the order in which serve.cjs looks."""
    direct = [module] if module.endswith(EXTENSIONS) else [module + one for one in EXTENSIONS]
    return [posixpath.normpath(name) for name in (*direct, *(f"{module}/index{one}" for one in EXTENSIONS))]


def find(module: str, files: set[str]) -> str | None:
    """The file that a module is, as serve.cjs finds it."""
    return next((path for path in candidates(module) if path in files), None)


def find_source(handler: str, typescript: set[str]) -> str | None:
    """The file of TypeScript that the handler's module is, if it is one."""
    module = re.split(r"[:.]", handler.removeprefix("./"), maxsplit=1)[0]
    wanted = {f"{one}{end}" for one in (module, *DEFAULT_MODULES) for end in ("", "/index")}
    return next((name for name in sorted(typescript) if name.rpartition(".")[0] in wanted), None)


def spelled(handler: str, files: set[str]) -> str | None:
    """How a handler is written here that has the spelling of another platform."""
    text = handler.strip().replace("\\", "/").removesuffix("()").lstrip("/")
    module, colon, name = (part.strip() for part in text.rpartition(":"))
    guesses = [(module, name)]
    if not colon:
        cut = text.rfind(".")
        guesses = [(text[: max(cut, 0)], text[cut + 1 :]), *((one, text) for one in DEFAULT_MODULES)]
    for guess, attribute in guesses:
        for one in (guess, guess.replace(".", "/")):
            if one and find(one, files) is not None and f"{one}:{attribute}" != handler:
                return f"{one}:{attribute or 'handler'}"
    return None


def find_handler(handler: str, files: set[str]) -> tuple[str, str | None, str | None]:
    """The handler as ``module:name``, the file that its module is, and the sentence that says what is wrong with it."""
    module, colon, name = handler.rpartition(":")
    if not colon:
        module, name = handler, ""
    for wanted in (module,) if module else DEFAULT_MODULES:
        if (path := find(wanted, files)) is not None and name == name.strip().removesuffix("()"):
            return f"{wanted}:{name or 'handler'}", path, None
    expected = candidates(module or DEFAULT_MODULES[0])[0]
    if handler and (written := spelled(handler, files)) is not None:
        place = find(written.rpartition(":")[0], files)
        told = f'the handler {handler!r} is written {written!r} here: put handler = "{written}" into the project file'
        return handler, None, f"{place}:1: {told}"
    missing = f"there is no such file, but the handler is {handler or 'main:handler'!r}"
    return handler, None, f"{expected}:1: {missing}; it is written module:name, such as 'main:handler'"


def main() -> None:
    artifact, handler = sys.argv[1:]
    limit()
    with tarfile.open(artifact, mode="r|gz") as archive:
        names = {member.name.removeprefix("./") for member in archive if member.isreg()}
    typescript = {name for name in names if name.endswith((".ts", ".mts", ".cts"))}
    scripts = {name for name in names if name.endswith(EXTENSIONS)}
    found, path, problem = find_handler(handler, scripts)
    if problem is not None and (source := find_source(handler, typescript)) is not None:
        problem = f"{source}:1: TypeScript is not run: compile it, and deploy the JavaScript that it becomes"
    report = {
        "errors": [] if problem is None else [problem],
        "warnings": [],
        "files": len([name for name in scripts if not name.startswith("node_modules/")]),
        "handler": found,
        "file": path,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
