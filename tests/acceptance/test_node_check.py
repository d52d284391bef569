"""What of a Node project is checked before it becomes a version, and what only gives a warning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from engines import call, engine_config, short_dir
from nodes import Node, archive, node_engine, plan_of, result

from worker.build.plan import BuildRejected
from worker.config import EngineConfig
from worker.engine.docker import DockerEngine
from worker.engine.process import ProcessEngine

__all__ = ["engine_config", "node_engine", "short_dir"]
Engine = DockerEngine | ProcessEngine
HANDLER = b"exports.handler = (event) => event.body;\n"
MODULE = b"export const handler = (event) => event.body;\n"
BROKEN = b"const a = <div>{{ name }}</div>;\n"


async def build(
    engine: Engine, config: EngineConfig, files: Mapping[str, bytes], handler: str = ""
) -> tuple[object, list[str]]:
    """The analysis's warnings, and the build's log."""
    log: list[str] = []
    built = await engine.build(plan_of(archive(config.data_dir, dict(files)), handler), log.append)
    return built.analysis.get("warnings"), log


async def test_files_that_the_handler_does_not_need_give_warnings(
    node_engine: Engine, engine_config: EngineConfig
) -> None:
    files = {
        "main.js": b"const used = require('./lib/used');\nfunction later() {\n  return require('./lib/later');\n}\n"
        + HANDLER,
        "lib/used.js": b"exports.a = 1;\n",
        "lib/later.js": BROKEN,
        "public/app.js": BROKEN,
        "tests/old.mjs": b"import x from\n",
        "templates/{{ name }}/package.json": b'{"name": {{ name }}}',
    }
    warnings, log = await build(node_engine, engine_config, files)
    assert isinstance(warnings, list)
    assert sorted(one.split(":")[0] for one in warnings) == [
        "lib/later.js",
        "public/app.js",
        "templates/{{ name }}/package.json",
        "tests/old.mjs",
    ]
    assert [line for line in log if line.startswith("warning: ")] == [f"warning: {one}" for one in warnings]


@pytest.mark.parametrize(
    ("files", "handler", "broken"),
    [
        ({"main.js": BROKEN}, "", "main.js"),
        ({"main.js": b"const {\n  a,\n} = require('./lib');\n" + HANDLER, "lib/index.js": BROKEN}, "", "lib/index.js"),
        ({"main.js": b"require('./constructor');\n" + HANDLER, "constructor.js": BROKEN}, "", "constructor.js"),
        ({"main.js": b"require('./a');\n" + HANDLER, "a.js": b"require('./b.js');\n", "b.js": BROKEN}, "", "b.js"),
        ({"main.mjs": b"import './a.mjs';\n", "a.mjs": b"export * from './b.mjs';\n", "b.mjs": BROKEN}, "", "b.mjs"),
        ({"src/index.mjs": b"import x from '../lib/x.cjs';\n", "lib/x.cjs": BROKEN}, "src/index:handler", "lib/x.cjs"),
        ({"src/main.js": HANDLER, "src/package.json": b"{"}, "src/main:handler", "src/package.json"),
    ],
)  # fmt: skip
async def test_what_the_handler_imports_must_parse(
    node_engine: Engine, engine_config: EngineConfig, files: dict[str, bytes], handler: str, broken: str
) -> None:
    with pytest.raises(BuildRejected) as caught:
        await build(node_engine, engine_config, files | {"other.js": BROKEN}, handler)
    assert caught.value.reason == "analysis_rejected"
    assert caught.value.message.startswith(f"{broken}:")
    assert "more)" not in caught.value.message


@pytest.mark.parametrize("name", ["index.mjs", "main.mjs", "index.cjs", "main/index.mjs"])
async def test_without_a_handler_the_default_module_answers(
    node_engine: Engine, engine_config: EngineConfig, name: str
) -> None:
    text = HANDLER if name.endswith(".cjs") else MODULE
    built = await node_engine.build(plan_of(archive(engine_config.data_dir, {name: text}), ""), print)
    node = Node(engine=node_engine, config=engine_config, layers=built.layers)
    sandbox = await node.engine.start(replace(node.spec("x"), handler=""))
    assert result(await sandbox.call(call("body"))) == "body"
    await sandbox.destroy()


REJECTED_SOURCES = [
    ({"main.mjs": b"export const a = 1;\n\nx = = 1;\n"}, "main:a", "main.mjs:3: SyntaxError"),
    ({"main.cjs": b"let a = 1;\nlet a = 2;\n"}, "main:a", "main.cjs:2: SyntaxError"),
    ({"main.mjs": b"import './lib/a.js';", "lib/a.js": b"a(", "lib/package.json": b'{"type":"module"}'}, "main:a",
     "lib/a.js:1: "),
    ({"main.mjs": b"import './lib/a.js';", "lib/a.js": b"", "lib/package.json": b"{"}, "main:a",
     "lib/package.json:1: it is not JSON"),
    ({"main.mjs": b"x = " + b"(" * 100_000}, "main:a", "main.mjs:1: nested too deeply"),
    ({"other.mjs": b""}, "main:handler", "main.mjs:1: there is no such file, but the handler is 'main:handler'"),
    ({"other.mjs": b""}, "", "main.mjs:1: there is no such file"),
    ({"main.py": b""}, "src/app.mjs:handler", "src/app.mjs:1: there is no such file"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "handler", "message"), REJECTED_SOURCES)
async def test_source_that_cannot_run_is_rejected_with_its_place(
    node_engine: Engine, engine_config: EngineConfig, files: dict[str, bytes], handler: str, message: str
) -> None:
    with pytest.raises(BuildRejected) as caught:
        await build(node_engine, engine_config, files, handler)
    assert caught.value.reason == "analysis_rejected"
    assert caught.value.message.startswith(message), caught.value.message


async def test_source_is_judged_as_node_runs_it(node_engine: Engine, engine_config: EngineConfig) -> None:
    files = {
        "main.js": b"#!/usr/bin/env node\nif (typeof require !== 'function') return;\nexports.echo = () => 1;\n",
        "lib/module.mjs": b"export const a = await 1;\nconst b = import.meta.url;\n",
        "node_modules/vendored/broken.js": b"not ( javascript",
        "package.json": b"\xef\xbb\xbf{}",
        "yarn.lock": b"",
    }
    built = await node_engine.build(plan_of(archive(engine_config.data_dir, files), "main"), print)
    assert built.analysis["handler"] == "main:handler"
    assert built.analysis["files"] == 2
    assert built.analysis["warnings"] == []


async def test_a_package_of_hundreds_of_modules_is_imported(node_engine: Engine, engine_config: EngineConfig) -> None:
    """Node.js opens all files that a module imports at once."""
    files = {f"lib/m{number}.mjs": f"export const m{number} = {number};\n".encode() for number in range(500)}
    files["lib/index.mjs"] = "".join(f"export * from './m{number}.mjs';\n" for number in range(500)).encode()
    files["main.mjs"] = b"import { m499 } from './lib/index.mjs';\nexport const handler = () => m499;\n"
    built = await node_engine.build(plan_of(archive(engine_config.data_dir, files), ""), print)
    node = Node(engine=node_engine, config=engine_config, layers=built.layers)
    sandbox = await node.engine.start(replace(node.spec("x"), handler=""))
    assert result(await sandbox.call(call())) == 499
    await sandbox.destroy()
