"""What the analysis finds in a project, refuses and warns of, without running any of it."""

from __future__ import annotations

import asyncio
import io
import tarfile
import uuid
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest

from worker.build.analysis import analyze
from worker.build.plan import BuildPlan, BuildRejected
from worker.build.recipe import load_recipe

HANDLER = "def handler(event, context):\n    return 1\n"
MARKED = "from containerpub import function\n@function\ndef hello(event, context): 0\n"
BROKEN = "print 'Python 2'\n"
Files = Mapping[str, str]
Analyze = Callable[..., Awaitable[Mapping[str, object]]]


@pytest.fixture
def analyzed(tmp_path: Path) -> Analyze:
    async def run(files: Files, handler: str = "", runtime: str = "python") -> Mapping[str, object]:
        path = tmp_path / f"{uuid.uuid4().hex}.tar.gz"
        await asyncio.to_thread(_write, path, files)
        plan = BuildPlan(
            version_id=uuid.uuid4(),
            function_id=uuid.uuid4(),
            user_id=uuid.uuid4(),
            runtime=runtime,
            handler=handler,
            artifact=path,
            artifact_sha256="",
            timeout_s=100,
            memory_mb=512,
            max_unpacked_bytes=1,
            max_log_bytes=1,
        )
        return await analyze(plan, await asyncio.to_thread(load_recipe, runtime))

    return run


def _write(path: Path, files: Files) -> None:
    with tarfile.open(path, "w:gz") as out:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            out.addfile(entry, io.BytesIO(text.encode()))


async def refusal(analyzed: Analyze, files: Files, handler: str = "", runtime: str = "python") -> str:
    with pytest.raises(BuildRejected) as caught:
        await analyzed(files, handler, runtime)
    assert caught.value.reason == "analysis_rejected"
    return caught.value.message


@pytest.mark.parametrize(
    ("files", "handler"),
    [
        ({"main.py": HANDLER, "vendor/shim.py": BROKEN}, "main:handler"),
        ({"main.py": HANDLER, "templates/{{ name }}/app.py": "{{ code }} {% end %}\n"}, "main:handler"),
        ({"main.py": HANDLER, "tests/data/bad.py": "x = '\0'\n"}, "main:handler"),
        ({"main.py": HANDLER, "huge.py": "x = " + "-" * 3_000_000 + "1"}, "main:handler"),
        ({"main.py": HANDLER, "deep.py": "x = " + "a." * 1_000_000 + "a"}, "main:handler"),
        ({"main.py": "import sys\nif sys.version_info < (3,):\n    import shim\n" + HANDLER, "shim.py": BROKEN}, ""),
        ({"main.py": "try:\n    import shim\nexcept Exception:\n    pass\n" + HANDLER, "shim.py": BROKEN}, ""),
        ({"main.py": "def later():\n    import shim\n" + HANDLER, "shim.py": BROKEN}, ""),
        ({"pkg/main.py": HANDLER, "pkg/shim.py": BROKEN, "pkg/__init__.py": ""}, "pkg.main:handler"),
    ],
)  # fmt: skip
async def test_a_file_that_the_handler_does_not_need_gives_a_warning(
    analyzed: Analyze, files: Files, handler: str
) -> None:
    (wrong,) = sorted(set(files) - {"main.py", "pkg/main.py", "pkg/__init__.py"})
    (warning,) = (await analyzed(files, handler))["warnings"]  # type: ignore[misc]
    assert warning.startswith(f"{wrong}:1: ")


@pytest.mark.parametrize(
    "files",
    [
        {"main.py": BROKEN},
        {"main.py": "import pkg.used\n" + HANDLER, "pkg/__init__.py": BROKEN, "pkg/used.py": ""},
        {"main.py": "from pkg import used\n" + HANDLER, "pkg/__init__.py": "", "pkg/used.py": BROKEN},
        {"main.py": "import a\n" + HANDLER, "a.py": "from b import c\n", "b.py": BROKEN},
        {"main.py": "try:\n    import a\nexcept ImportError:\n    pass\n" + HANDLER, "a.py": BROKEN},
        {"main.py": "from pkg.a import x\n" + HANDLER, "pkg/a.py": "from . import b\n", "pkg/b.py": BROKEN},
        {"main.py": "class A:\n    import a\n" + HANDLER, "a.py": BROKEN},
    ],
)
async def test_what_is_imported_with_the_handler_must_parse(analyzed: Analyze, files: Files) -> None:
    broken = next(name for name, text in files.items() if text == BROKEN)
    message = await refusal(analyzed, {**files, "other.py": BROKEN}, "main:handler")
    assert message.startswith(f"{broken}:1: ")
    assert "more)" not in message


@pytest.mark.parametrize(
    ("runtime", "files", "handler", "written"),
    [
        ("python", {"src/main.py": HANDLER}, "src/main:handler", "src.main:handler"),
        ("python", {"src/main.py": HANDLER}, "./src/main:handler", "src.main:handler"),
        ("python", {"src/main.py": HANDLER}, "src\\main:handler", "src.main:handler"),
        ("python", {"src/main.py": HANDLER}, "/src/main.py:handler", "src.main:handler"),
        ("python", {"src/main.py": HANDLER}, "src.main:handler()", "src.main:handler"),
        ("python", {"src/main.py": HANDLER}, "src.main.handler", "src.main:handler"),
        ("python", {"src/main.py": HANDLER}, "src/main.handler", "src.main:handler"),
        ("python", {"main.py": HANDLER}, "./main:handler", "main:handler"),
        ("python", {"main.py": HANDLER}, " main : handler ", "main:handler"),
        ("python", {"main.py": HANDLER}, "main.py", "main:handler"),
        ("python", {"main.py": HANDLER}, "handler", "main:handler"),
        ("python", {"lambda_function.py": "def lambda_handler(event, context): 0\n"}, "lambda_function.lambda_handler",
         "lambda_function:lambda_handler"),
        ("python", {"app.py": MARKED, "other.py": ""}, "", "app:hello"),
        ("python-flask", {"main.py": "app = 1\n"}, "", "main:app"),
        ("node", {"index.mjs": ""}, "index.handler", "index:handler"),
        ("node", {"src/app.js": ""}, "src/app.run", "src/app:run"),
        ("node", {"src/app.js": ""}, "src.app:run", "src/app:run"),
        ("node", {"src/app.js": ""}, "src\\app:run", "src/app:run"),
        ("node", {"src/app.js": ""}, "/src/app:run", "src/app:run"),
        ("node", {"main.js": ""}, "handler", "main:handler"),
        ("node", {"main.js": ""}, "main:handler()", "main:handler"),
        ("node", {"main.js": ""}, " main: handler ", "main:handler"),
    ],
)  # fmt: skip
async def test_a_handler_that_is_spelled_as_elsewhere_is_told_how_it_is_written_here(
    analyzed: Analyze, runtime: str, files: Files, handler: str, written: str
) -> None:
    message = await refusal(analyzed, files, handler, runtime)
    assert f"{written!r}" in message or f'"{written}"' in message, message
    assert (await analyzed(files, written, runtime))["handler"] == written


@pytest.mark.parametrize(
    "text",
    [
        "match 1:\n    case handler: pass\n",
        "match {}:\n    case {**handler}: pass\n",
        "match [1]:\n    case [*handler]: pass\n",
        "(handler := print)\n",
        "[1 for _ in [1] if (handler := print)]\n",
        "for handler in [print]: pass\n",
        "with open('x') as handler: pass\n",
        "try:\n    pass\nexcept Exception as handler:\n    pass\n",
        "_, *handler = 1, 2\n",
        "def bind():\n    global handler\n    handler = print\nbind()\n",
        "while True:\n    def handler(event, context): 0\n    break\n",
    ],
)
async def test_a_handler_may_be_bound_in_every_way_that_is_seen(analyzed: Analyze, text: str) -> None:
    report = await analyzed({"main.py": text}, "main:handler")
    assert (report["handler"], report["warnings"]) == ("main:handler", [])


@pytest.mark.parametrize(
    "text",
    [
        "globals()['handler'] = print\n",
        "exec('handler = print')\n",
        "import sys\nsetattr(sys.modules[__name__], 'handler', print)\n",
        "vars()['handler'] = print\n",
        "from os import *\n",
        "def __getattr__(name): return print\n",
    ],
)
async def test_a_handler_that_is_not_seen_gives_a_warning(analyzed: Analyze, text: str) -> None:
    report = await analyzed({"main.py": text}, "main:handler")
    assert report["handler"] == "main:handler"
    (warning,) = report["warnings"]  # type: ignore[misc]
    assert warning.startswith("main.py: 'handler' is not seen in it")


@pytest.mark.parametrize("text", ["x = 1\n", "def f():\n    handler = 1\n", "class A:\n    def handler(self): 0\n"])
async def test_a_handler_that_cannot_be_there_is_refused(analyzed: Analyze, text: str) -> None:
    assert (await refusal(analyzed, {"main.py": text}, "main:handler")).startswith("main.py:1: there is no 'handler'")


@pytest.mark.parametrize(
    ("runtime", "files", "found"),
    [
        ("python", {"main.py": HANDLER, "other.py": ""}, "main:handler"),
        ("python", {"app.py": HANDLER}, "app:handler"),
        ("python", {"main.py": MARKED}, "main:hello"),
        ("python", {"main.py": MARKED.replace("function\n@function", "function as fn\n@fn")}, "main:hello"),
        ("python-flask", {"app.py": "app = 1\n", "main.py": ""}, "app:app"),
        ("node", {"index.mjs": ""}, "index:handler"),
        ("node", {"index.mjs": "", "main.js": ""}, "main:handler"),
    ],
)
async def test_a_project_that_names_no_handler_has_its_runtimes_default(
    analyzed: Analyze, runtime: str, files: Files, found: str
) -> None:
    assert (await analyzed(files, "", runtime))["handler"] == found


@pytest.mark.parametrize(
    ("name", "handler"),
    [
        ("main.ts", ""),
        ("index.mts", ""),
        ("src/app.ts", "src/app:run"),
        ("src/app.ts", "./src/app.ts:run"),
        ("main.ts", "main"),
    ],
)
async def test_typescript_is_told_to_be_compiled(analyzed: Analyze, name: str, handler: str) -> None:
    message = await refusal(analyzed, {name: "", "lib/other.js": ""}, handler, "node")
    assert message == f"{name}:1: TypeScript is not run: compile it, and deploy the JavaScript that it becomes"


async def test_only_what_is_needed_is_missed_where_no_packages_are_declared(analyzed: Analyze) -> None:
    files = {
        "main.py": "import numpy\ntry:\n    import orjson\nexcept ImportError:\n    import json\n" + HANDLER,
        "tests/test_main.py": "import pytest\n",
    }
    report = await analyzed(files)
    assert report["warnings"] == ["'numpy' is imported, but there is no requirements.txt"]
    assert (await analyzed(files | {"requirements.txt": "numpy\n"}))["warnings"] == []
