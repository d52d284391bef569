"""A function's own modules may have names of the standard library's: they go first, as in a plain start of Python, and
neither the runtime nor the way in which a sandbox was started makes a difference."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from engines import Bench, bench, call, code_of, docker_bench, engine_config, short_dir

from worker.sandbox.contract import CallOutcome

__all__ = ["bench", "docker_bench", "engine_config", "short_dir"]

_NAMES = [
    # Without those that some builds have within the interpreter (array, binascii, math, select): these win over files.
    *("abc_", "ast", "asyncio", "base64", "bisect", "calendar", "code", "codeop", "collections"),
    *(
        "concurrent",
        "contextlib",
        "copy",
        "copyreg",
        "dataclasses",
        "datetime",
        "decimal",
        "email",
        "enum",
        "functools",
    ),
    *("heapq", "html", "http", "importlib", "inspect", "json", "keyword", "linecache", "locale", "logging"),
    *("mimetypes", "numbers", "operator", "parser", "pickle", "platform", "queue", "random", "re", "resource"),
    *("secrets", "selectors", "signal", "socket", "ssl", "statistics", "string", "struct", "subprocess"),
    *("tempfile", "test", "textwrap", "threading", "token", "tokenize", "traceback", "types", "typing", "urllib"),
    *("uuid", "warnings", "weakref", "zipfile"),
]
_FAILS = """
import {name}

def handler(event, context):
    context.logger.info("%s", {name}.OWN)
    try:
        int("one")
    except ValueError:
        context.logger.exception("caught")
    raise KeyError({name}.OWN)
"""


async def _both(bench: Bench, files: dict[str, str], handler: str = "main:handler") -> list[CallOutcome]:
    """The outcomes of two calls each in a sandbox that was started for the function, and in one that was generic."""
    layers = await code_of(bench, files)
    outcomes = []
    for bench.generic in (False, True):
        sandbox = await bench.start(handler, layers=layers)
        outcomes += [await sandbox.call(call()), await sandbox.call(call())]
        await sandbox.destroy()
    return outcomes


def _seen(outcome: CallOutcome) -> tuple[object, ...]:
    """What must not differ between two calls."""
    said = [*(outcome.error or {}).values(), *(entry.message for entry in outcome.logs)]
    # As processes each sandbox has its code in a folder of its own.
    shown = [re.sub(r"/[^\"(]*/function/", "/function/", one) for one in said]
    return outcome.reason, outcome.result, shown, [entry.level for entry in outcome.logs]


@pytest.mark.parametrize("name", _NAMES)
async def test_an_own_module_is_the_one_imported_and_errors_and_logs_are_true(bench: Bench, name: str) -> None:
    for files in ({f"{name}.py": "OWN = 'own'\n"}, {f"{name}/__init__.py": "OWN = 'own'\n"}):
        outcomes = await _both(bench, {"main.py": _FAILS.format(name=name), **files})
        first = outcomes[0]
        assert first.reason == "handler_error", first
        assert first.error is not None
        assert first.error["type"] == "KeyError"
        assert "raise KeyError" in first.error["traceback"]
        assert '/function/main.py", line 10, in handler' in first.error["traceback"]
        logged = [entry for entry in first.logs if entry.stream == "logger"]
        assert [entry.level for entry in logged] == ["info", "error"]
        assert logged[0].message == "own"
        assert logged[1].message.startswith("caught\nTraceback")
        assert [_seen(outcome) for outcome in outcomes] == [_seen(first)] * 4


@pytest.mark.parametrize(
    ("own", "imported"),
    [
        ("random", "tempfile"),
        ("token", "tokenize"),
        ("string", "logging"),
        ("types", "enum"),
        ("enum", "re"),
        ("socket", "http.client"),
        ("numbers", "decimal"),
        ("struct", "zipfile"),
        ("statistics", "random"),
        ("calendar", "email.utils"),
        ("signal", "asyncio"),
        ("queue", "concurrent.futures"),
    ],
)
async def test_what_the_library_finds_is_what_it_finds_in_a_plain_start(
    bench: Bench, own: str, imported: str, tmp_path: Path
) -> None:
    main = f"import {imported}\n\ndef handler(event, context):\n    return True\n"
    files = {"main.py": main, f"{own}.py": "def pick():\n    return 1\n"}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    plain = subprocess.run(
        [sys.executable, "-S", "-B", "main.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    outcomes = await _both(bench, files)
    assert (outcomes[0].reason is None) == (plain.returncode == 0), (outcomes[0], plain.stderr)
    if plain.returncode:
        assert outcomes[0].error is not None
        assert plain.stderr.strip().splitlines()[-1].startswith(outcomes[0].error["type"])
    assert [_seen(outcome) for outcome in outcomes] == [_seen(outcomes[0])] * 4


async def test_a_folder_that_is_no_package_does_not_go_before_the_library(bench: Bench) -> None:
    main = "import email.message, json, html\n\ndef handler(event, context):\n    return json.loads('[1]')\n"
    for outcome in await _both(bench, {"main.py": main, "email/note.txt": "", "html/index.html": ""}):
        assert outcome.result == b"[1]", outcome


async def test_async_handlers_go_with_the_asyncio_that_they_import(bench: Bench) -> None:
    main = """
import asyncio
import random

async def handler(event, context):
    task = asyncio.ensure_future(asyncio.sleep(60))
    await asyncio.sleep(0)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        pass
    try:
        await asyncio.wait_for(asyncio.Event().wait(), 0.01)
    except asyncio.TimeoutError:
        return [random.pick(), await asyncio.to_thread(int, "3")]
"""
    for outcome in await _both(bench, {"main.py": main, "random.py": "def pick():\n    return 2\n"}):
        assert outcome.result is not None, outcome
        assert orjson.loads(outcome.result) == [2, 3]


_LIBRARY = {"lib/json.py": "OWN = 1\n", "lib/token.py": "OWN = 2\n", "lib/uuid.py": "OWN = 3\n"}
_ALL = """
def handler(event, context):
    import json, token, uuid
    context.logger.info("%s", uuid.OWN)
    raise KeyError(json.OWN + token.OWN + uuid.OWN)
"""


@pytest.mark.parametrize("first", ["", "import sys, os\nsys.path.insert(0, os.path.dirname(__file__) + '/lib')\n"])
async def test_folders_that_the_function_puts_on_the_path_go_first_too(bench: Bench, first: str) -> None:
    layers = await code_of(bench, {"main.py": first + _ALL, **_LIBRARY})
    env = () if first else (("PYTHONPATH", "lib"),)
    seen = []
    for bench.generic in (False, True):
        sandbox = await bench.start("main:handler", layers=layers, env=env)
        for _ in range(2):
            outcome = await sandbox.call(call())
            assert (outcome.error or {})["message"] == "Function execution failed: 6", outcome
            assert "in handler" in (outcome.error or {})["traceback"]
            assert [entry.message for entry in outcome.logs] == ["3"]
            seen.append(_seen(outcome))
    assert seen == [seen[0]] * 4


async def test_a_function_that_extends_the_path_otherwise_is_not_started_twice(bench: Bench) -> None:
    main = (
        "import sys\nsys.path.append('vendor')\n\ndef handler(event, context):\n    return 'decimal' in sys.modules\n"
    )
    layers = await code_of(bench, {"main.py": main, "vendor/other.py": ""})
    bench.generic = True
    sandbox = await bench.start("main:handler", layers=layers)
    assert (await sandbox.call(call())).result == b"true"
