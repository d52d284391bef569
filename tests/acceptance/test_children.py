"""Programs that a Python function starts find its packages as the function itself does."""

from __future__ import annotations

import io

import orjson
import pytest
from engines import Bench, bench, call, docker_bench, engine_config, on_foundation, short_dir

from shared.layers import LayerKind, VersionLayers
from worker.build.layer import LayerWriter
from worker.build.recipe import load_recipe

__all__ = ["bench", "docker_bench", "engine_config", "short_dir"]

_MAIN = """
import multiprocessing, os, subprocess, sys
import package

def run(*command, **more):
    return subprocess.run(command, check=True, capture_output=True, text=True, **more).stdout.strip()

def handler(event, context):
    what = event["body"]
    if what == "-c":
        return run(sys.executable, "-c", "import package; print(package.said)")
    if what == "-m":
        return run(sys.executable, "-m", "package")
    if what == "helper":
        return run(sys.executable, "helper.py")
    if what == "elsewhere":
        return run(sys.executable, "-c", "import package; print(package.said)", cwd="/")
    if what == "shell":
        return run("said", shell=True)
    if what == "script":
        return run("said")
    if what == "by a path file":
        return run(sys.executable, "-c", "import found_by_path_file as f; print(f.said)")
    if what == "platform":
        return run(sys.executable, "-c", "import containerpub; print(containerpub.Response.__name__)")
    if what == "library first":
        return run(sys.executable, "-c", "import json; print(json.loads('1'))")
    if what == "own path":
        return run(sys.executable, "-c", "import other, package; print(other.said, package.said)")
    if what == "environment":
        return {name: os.environ.get(name) for name in ("PATH", "PYTHONPATH")}

def double(number):
    return [package.said, number * 2]

def process(event, context):
    with multiprocessing.get_context(event["body"]).Pool(1) as pool:
        return pool.map(double, [1])
"""
_PACKAGES = {
    "package/__init__.py": "said = 'from a package'\n",
    "package/__main__.py": "import package\nprint(package.said)\n",
    "more.pth": "elsewhere\n",
    "elsewhere/found_by_path_file.py": "said = 'from a package'\n",
    "json/__init__.py": "raise ImportError('not the library')\n",
}
_CODE = {
    "main.py": _MAIN,
    "helper.py": "import package\nprint(package.said)\n",
    "more/other.py": "said = 'other'\n",
}
_SAID = "from a package"


async def _version(bench: Bench) -> VersionLayers:
    packages, code = LayerWriter(), LayerWriter()
    for name, text in _PACKAGES.items():
        packages.add(f"dependencies/{name}", io.BytesIO(text.encode()), len(text))
    script = b"#!/bin/sh\necho from a package\n"
    packages.add("dependencies/bin/said", io.BytesIO(script), len(script), executable=True)
    for name, text in _CODE.items():
        code.add(f"function/{name}", io.BytesIO(text.encode()), len(text))
    own = []
    for kind, layer in ((LayerKind.DEPENDENCIES, packages.finish()), (LayerKind.CODE, code.finish())):
        with layer.file:
            own.append(await bench.engine._code._layers.keep(kind, layer))
    return await on_foundation(bench.engine, bench.engine._code._layers, load_recipe("python"), *own)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("-c", _SAID),
        ("-m", _SAID),
        ("helper", _SAID),
        ("elsewhere", _SAID),
        ("shell", _SAID),
        ("script", _SAID),
        ("by a path file", _SAID),
        ("platform", "Response"),
        ("library first", "1"),
    ],
)
async def test_children_find_packages_and_scripts(bench: Bench, what: str, said: str) -> None:
    layers = await _version(bench)
    for bench.generic in (False, True):
        outcome = await (await bench.start("main:handler", layers=layers)).call(call(what))
        assert outcome.reason is None, outcome
        assert orjson.loads(outcome.result or b"") == said


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
async def test_processes_are_started_by_every_method(bench: Bench, method: str) -> None:
    layers = await _version(bench)
    for bench.generic in (False, True):
        outcome = await (await bench.start("main:process", layers=layers)).call(call(method))
        assert outcome.reason is None, outcome
        assert orjson.loads(outcome.result or b"") == [[_SAID, 2]]


async def test_what_the_function_sets_itself_goes_first(bench: Bench) -> None:
    layers = await _version(bench)
    env = (("PYTHONPATH", "more"), ("PATH", "/function/tools:/usr/local/bin:/usr/bin:/bin"))
    for bench.generic in (False, True):
        sandbox = await bench.start("main:handler", layers=layers, env=env)
        outcome = await sandbox.call(call("own path"))
        assert outcome.reason is None, outcome
        assert orjson.loads(outcome.result or b"") == "other from a package"
        found = orjson.loads((await sandbox.call(call("environment"))).result or b"")
        assert found["PYTHONPATH"].startswith("more:")
        assert found["PATH"].partition(":")[2] == env[1][1]
