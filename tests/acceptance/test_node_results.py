"""Node functions that were written for elsewhere: how their handlers are found and called, and what they return."""

from __future__ import annotations

from dataclasses import replace

import pytest
from engines import call, engine_config, short_dir
from nodes import FUNCTIONS, Node, archive, node_engine, plan_of, result

from worker.config import EngineConfig
from worker.engine.docker import DockerEngine
from worker.engine.process import ProcessEngine
from worker.sandbox.contract import CallOutcome

__all__ = ["engine_config", "node_engine", "short_dir"]


@pytest.fixture
async def node(node_engine: DockerEngine | ProcessEngine, engine_config: EngineConfig) -> Node:
    files = {str(path.relative_to(FUNCTIONS)): path.read_bytes() for path in FUNCTIONS.rglob("*") if path.is_file()}
    built = await node_engine.build(plan_of(archive(engine_config.data_dir, files), "results"), print)
    return Node(engine=node_engine, config=engine_config, layers=built.layers)


async def test_a_handler_that_declares_a_callback_answers_by_it(node: Node) -> None:
    expected = {
        "callbacks": {"ok": True},
        "callbacks:timer": "body",
        "callbacks:atOnce": "at once",
        "callbacks:withDefault": "default",
        "callbacks:withDefaults": "defaults",
        "callbacks:nothing": None,
        "callbacks:twice": "first",
        "callbacks:unused": {"returned": True},
        "callbacks:promised": "promised",
        "methods:called": "helped",
    }
    assert {name: result(await run(node, name, "body")) for name in expected} == expected


@pytest.mark.parametrize(
    ("handler", "kind", "message"),
    [("fails", "TypeError", "told"), ("failsByText", "string", "only text"), ("throws", "RangeError", "thrown")],
)
async def test_a_handler_fails_by_its_callback(node: Node, handler: str, kind: str, message: str) -> None:
    outcome = await run(node, f"callbacks:{handler}")
    assert outcome.reason == "handler_error"
    assert outcome.error is not None
    assert (outcome.error["type"], outcome.error["message"]) == (kind, f"Function execution failed: {message}")


async def test_default_exports_are_found_in_what_compilers_and_bundlers_make(node: Node) -> None:
    expected = {
        "compiled": "compiled",
        "compiled:handler": "compiled",
        "compiled:default": "compiled",
        "compiled:named": "named",
        "plainDefault": "plain",
        "bundled": "bundled",
        "bundled:handler": "bundled",
    }
    assert {name: result(await run(node, name)) for name in expected} == expected


async def test_a_method_keeps_its_object(node: Node) -> None:
    expected = {"methods": "helped", "object": "helped", "object:handler": "helped", "service": "of an instance"}
    assert {name: result(await run(node, name)) for name in expected} == expected


COOKIES = [["Set-Cookie", "a=1"], ["Set-Cookie", "b=2"]]
TEXT = {"content-type": "text/plain;charset=UTF-8"}


async def test_values_with_an_obvious_json_are_said_so(node: Node) -> None:
    expected = {
        "map": {"1": {"deep": {"x": [1]}}},
        "typedArrays": [[1, 2.5], [1, 2], [7]],
        "boxes": [1, "text", False],
        "query": {"a": ["1", "2"], "b": "3"},
        "headers": {"a": "1"},
        "address": "http://example.org/",
        "ownClass": {"x": 1},
        "escaped": "C:\\udata",
    }
    sandbox = await node.start("results:handler")
    assert {name: result(await sandbox.call(call(name))) for name in expected} == expected


async def test_http_answers_are_said_whoever_made_them(node: Node) -> None:
    cookies = [[name.lower(), value] for name, value in COOKIES]
    dated = [["set-cookie", "a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT; Path=/"], ["set-cookie", "b=2"]]
    expected = {
        "fetched": {"status": 201, "headers": {**TEXT, "x-a": "1"}, "body": "hello"},
        "fetchedJson": {"status": 200, "headers": {"content-type": "application/json"}, "body": '{"a":1}'},
        "fetchedBytes": {"status": 200, "headers": {}, "body_base64": "/wA="},
        "fetchedNothing": {"status": 204, "headers": {}, "body": ""},
        "fetchedCookies": {"status": 200, "headers": [*map(list, TEXT.items()), *cookies], "body": "x"},
        "fetchedDates": {"status": 200, "headers": [*map(list, TEXT.items()), *dated], "body": "x"},
        "fetchedStream": {"status": 200, "headers": {}, "body": "ab"},
        "shapedPairs": {"status": 200, "headers": COOKIES, "body": "x"},
        "shapedLists": {"status": 200, "headers": COOKIES, "body": "x"},
        "shapedMap": {"status": 200, "headers": {"A": "1"}, "body": "x"},
        "shapedHeaders": {"status": 200, "headers": {"a": "1"}, "body": "x"},
        "shapedBytes": {"status": 200, "headers": {}, "body_base64": "/wA="},
        "shapedText": {"status": 200, "headers": {}, "body": "ü"},
        "shapedStream": {"status": 200, "headers": {}, "body": "ab"},
    }
    sandbox = await node.start("results:handler")
    outcomes = {name: await sandbox.call(call(name)) for name in expected}
    assert {name: result(outcome) for name, outcome in outcomes.items()} == expected
    assert all(outcome.is_response for outcome in outcomes.values())
    large = await sandbox.call(call("fetchedLarge", max_result_bytes=1000))
    assert large.reason == "result_too_large"


async def test_what_json_cannot_say_is_refused_with_its_place(node: Node) -> None:
    expected = {
        "error": "result is an Error (went wrong): throw it",
        "errorInside": "result.items[1] is an Error (no): throw it",
        "pattern": "result.a is a RegExp",
        "stream": "result.a is a stream: read it",
        "webStream": "result is a stream: read it",
        "boxedNaN": "result[0] is NaN",
        "arrayNaN": 'result["a b"][1] is NaN',
        "date": "result.at[0] is an invalid Date",
        "twice": "result is a Map with two keys that read '1'",
        "objectKey": "result is a Map with a key that is an object",
        "circle": "result.a[0] refers back",
        "half": "result.a[0] has half a character",
        "promise": "result[0] is a promise: await it",
        "generator": "result is a Generator",
        "weak": "result.a is a WeakMap",
        "responseInside": "result.a is a Response: await its text()",
        "readBefore": "result is a Response whose body was read before",
    }
    sandbox = await node.start("results:handler")
    outcomes = {name: await sandbox.call(call(name)) for name in expected}
    for name, says in expected.items():
        outcome = outcomes[name]
        assert (outcome.reason, outcome.result) == ("invalid_result", None), name
        assert outcome.error is not None
        assert f"the result is not JSON: {says}" in outcome.error["message"], name
    assert sandbox.reusable


async def run(node: Node, handler: str, body: object = None) -> CallOutcome:
    """One call in a sandbox of its own, which is gone afterwards."""
    sandbox = await node.engine.start(
        replace(node.spec("", cpus=1.0), handler=handler if ":" in handler else f"{handler}:")
    )
    try:
        return await sandbox.call(call(body))
    finally:
        await sandbox.destroy()
