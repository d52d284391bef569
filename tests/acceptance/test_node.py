"""The node runtime keeps what the contract promises, in real containers."""

from __future__ import annotations

import asyncio
import time
import uuid
from pathlib import Path

import orjson
import pytest
from engines import Subscriber, call, engine_config, short_dir, text
from nodes import MEBIBYTE, Builder, Node, builder, node, node_layers, result

from worker.build.plan import BuildRejected
from worker.sandbox.log import LogEntry, LogStream
from worker.sandbox.tail import Progress

__all__ = ["builder", "engine_config", "node", "node_layers", "short_dir"]

pytestmark = pytest.mark.docker


async def test_results_arrive_as_they_were_returned(node: Node) -> None:
    sandbox = await node.start("echo")
    for value in (None, True, 1.5, "", "text", [1, [2, {}]], {"a": {"b": None}}, "\0 \x1b[31m ü 😀  \n"):
        outcome = await sandbox.call(call(value))
        assert (outcome.reason, outcome.exit_code) == (None, 0), outcome
        assert result(outcome) == value
    value = "ü" * (2 * MEBIBYTE)
    assert result(await sandbox.call(call(value))) == value
    assert (await sandbox.call(call([1, 2]))).result == b"[1,2]"


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        ("asyncEcho", 5),
        ("thenable", 5),
        ("nothing", None),
        ("dates", {"at": "1970-01-01T00:00:00.000Z", "bytes": [None]}),
        ("main.mjs:echo", 5),
        ("plain:handler", ["plain", 5, "tested"]),
        ("plain", ["plain", 5, "tested"]),
        ("plain.js:handler", ["plain", 5, "tested"]),
        ("plain:nested.deep.run", [True, 5]),
        ("whole:handler", ["whole", 5]),
        ("default:handler", ["default", 5]),
        ("default", ["default", 5]),
        ("src:handler", ["in a folder", 5]),
        ("waiting:handler", "beside the code"),
        ("readOwnData", "beside the code"),
    ],
)
async def test_handlers_of_every_kind_are_found_and_awaited(node: Node, handler: str, expected: object) -> None:
    named = handler if ":" in handler or handler in ("plain", "default") else f"main:{handler}"
    outcome = await node.run(named if ":" in named else f"{named}:", 5)
    assert result(outcome) == expected


async def test_a_response_is_told_from_an_object_that_looks_like_one(node: Node) -> None:
    shaped = await node.run("response")
    assert result(shaped) == {"status": 201, "headers": {"X-Answer": "42"}, "body": {"made": True}}
    assert shaped.is_response
    assert (await node.run("plain:shaped")).is_response
    assert not (await node.run("likeAResponse")).is_response


async def test_event_and_context_tell_what_they_should(node: Node) -> None:
    event = {"body": "b", "query": {"q": "1"}, "headers": {}, "method": "POST", "path": "/"}
    assert result(await node.run("wholeEvent", "b", query={"q": "1"})) == event
    sandbox = await node.start("describeContext")
    asked = call(timeout_ms=4000, attempt=2)
    told = result(await sandbox.call(asked))
    assert isinstance(told, dict)
    assert 2 < told.pop("remaining_s") <= 4.001
    assert abs(told.pop("deadline") - time.time() - 4) < 3
    assert told == {
        "job_id": str(asked.job_id),
        "attempt": 2,
        "function": "tested",
        "version": 3,
        "logger": ["debug", "info", "warn", "error"],
    }


async def test_a_call_is_followed_while_it_runs(node: Node) -> None:
    sandbox = await node.start("follow")
    looking = Subscriber()
    running = asyncio.create_task(sandbox.call(call(1, tail=looking.tail)))
    async with asyncio.timeout(4):
        await looking.heard.wait()
    assert not running.done()
    assert (await running).reason is None
    assert "".join(entry.message for entry in looking.entries) == "imported\nbegan\nended\n"
    assert looking.progress[0] == Progress(fraction=0.5, message="half\\ud800")
    assert looking.progress[-1] == Progress(fraction=1, message="")
    assert len(looking.progress) < 10
    wrong = await node.run("progressWrongly")
    assert result(wrong) == ["RangeError"] * 5


async def test_state_survives_in_the_same_sandbox_and_cost_is_reported(node: Node) -> None:
    sandbox = await node.start("count")
    outcomes = [await sandbox.call(call()) for _ in range(3)]
    assert [outcome.result for outcome in outcomes] == [b"1", b"2", b"3"]
    last = outcomes[-1]
    assert last.cpu_ms is not None
    assert 0 <= last.cpu_ms < 1000
    assert last.peak_memory_bytes is not None
    assert 16 * MEBIBYTE < last.peak_memory_bytes < 128 * MEBIBYTE


async def test_output_is_captured_apart_by_call_and_from_every_way_of_writing(node: Node) -> None:
    sandbox = await node.start("say")
    first, second = await sandbox.call(call(1)), await sandbox.call(call(2))
    assert (text(first, "stdout"), text(first, "stderr")) == ("imported\nout 1\n", "err 1\n")
    assert (text(second, "stdout"), text(second, "stderr")) == ("out 2\n", "err 2\n")
    ways = await node.run("printByAll")
    assert text(ways, "stdout") == "imported\nstream\ndescriptor\nchild\nconsole\n"
    assert text(ways, "stderr") == "child error\n"
    assert text(await node.run("writeBytes", "00c3bcff1b5b3331"), "stdout") == "imported\n\0ü\\xff\x1b[31"


async def test_the_logger_keeps_levels_and_its_limit(node: Node) -> None:
    outcome = await node.run("log")
    assert [entry for entry in outcome.logs if entry.stream == "logger"] == [
        LogEntry(stream=LogStream.LOGGER, level="debug", message="first"),
        LogEntry(stream=LogStream.LOGGER, level="info", message="value is 7 { a: 1 }"),
        LogEntry(stream=LogStream.LOGGER, level="warning", message="careful"),
        LogEntry(stream=LogStream.LOGGER, level="error", message="broken \\ud800 text"),
    ]
    capped = await node.run("logMany", 1000, max_log_bytes=2000)
    assert (capped.reason, capped.logs_truncated) == (None, True)
    assert sum(len(entry.message) for entry in capped.logs) <= 2000


async def test_a_flood_of_output_is_cut_and_the_call_succeeds(node: Node) -> None:
    sandbox = await node.start("flood", cpus=1.0)
    outcome = await sandbox.call(call(10, max_log_bytes=10_000))
    assert (outcome.reason, outcome.result, outcome.logs_truncated) == (None, b'"done"', True)
    assert sum(len(entry.message) for entry in outcome.logs) == 10_000
    assert sandbox.reusable


@pytest.mark.parametrize("handler", ["sleep", "forever", "ignoreSignals"])
async def test_a_call_ends_at_its_timeout(node: Node, handler: str) -> None:
    sandbox = await node.start(handler)
    started = time.monotonic()
    outcome = await sandbox.call(call(60, timeout_ms=1000))
    assert time.monotonic() - started < 6
    assert (outcome.reason, outcome.exit_code) == ("timeout", -1)
    assert outcome.error is not None
    assert outcome.error["message"] == "Function execution timed out (1000ms)"
    assert not sandbox.reusable
    if handler == "ignoreSignals":
        assert text(outcome, "stdout") == "imported\nstill here\n"
    await sandbox.destroy()


@pytest.mark.parametrize("code", [0, 3])
async def test_what_was_printed_before_an_exit_is_kept(node: Node, code: int) -> None:
    sandbox = await node.start("lastWords")
    outcome = await sandbox.call(call(code, max_log_bytes=2_000_000))
    assert (outcome.reason, outcome.exit_code) == ("crashed", code)
    assert text(outcome, "stdout") == "imported\n" + "y" * 1_000_000 + "last words\n"
    assert not sandbox.reusable


@pytest.mark.parametrize(("handler", "code"), [("abort", 134), ("killItself", 137), ("failUnhandled", 1)])
async def test_a_process_that_dies_has_crashed_with_its_code(node: Node, handler: str, code: int) -> None:
    outcome = await node.run(handler)
    assert (outcome.reason, outcome.exit_code) == ("crashed", code)
    if handler == "failUnhandled":
        assert "Error: nobody waits for this" in text(outcome, "stderr")
        assert "/function/main.mjs" in text(outcome, "stderr")


@pytest.mark.parametrize(("handler", "code"), [("failAfterwards", 1), ("exitAfterwards", 9)])
async def test_a_sandbox_that_dies_after_its_answer_is_not_reusable(node: Node, handler: str, code: int) -> None:
    sandbox = await node.start(handler)
    assert (await sandbox.call(call())).result == b'"for now"'
    async with asyncio.timeout(5):
        while sandbox.reusable:
            await asyncio.sleep(0.01)
    outcome = await sandbox.call(call())
    assert (outcome.reason, outcome.exit_code) == ("crashed", code)


@pytest.mark.parametrize("memory_mb", [64, 128, 256])
@pytest.mark.parametrize("handler", ["main:hogHeap", "main:hogBuffers", "hungry:handler"])
async def test_memory_runs_out(node: Node, handler: str, memory_mb: int) -> None:
    sandbox = await node.start(handler, memory_mb=memory_mb, cpus=1.0, timeout_ms=20_000)
    outcome = await sandbox.call(call(timeout_ms=20_000))
    assert outcome.reason == "out_of_memory", outcome
    assert outcome.error is not None
    assert outcome.error["message"] == f"Function execution failed: it used more than its {memory_mb} MB of memory"
    assert not sandbox.reusable


async def test_garbage_is_collected_before_memory_runs_out(node: Node) -> None:
    outcome = await node.run("churn", 20_000, memory_mb=64, cpus=1.0, timeout_ms=20_000)
    assert outcome.result == b"200000000", outcome


@pytest.mark.parametrize(
    "name",
    ["nan", "infinity", "nanInside", "bigint", "function", "symbol", "promise", "surrogate", "circle",
     "deep", "throwing"],
)  # fmt: skip
async def test_what_json_cannot_say_is_an_invalid_result(node: Node, name: str) -> None:
    sandbox = await node.start("give")
    for _ in range(2):
        outcome = await sandbox.call(call(name))
        assert outcome.reason == "invalid_result"
        assert outcome.error is not None
        assert outcome.error["message"].startswith("Function execution failed: the result is not JSON")
        assert sandbox.reusable


async def test_a_result_over_the_limit_is_refused_and_one_at_it_is_not(node: Node) -> None:
    sandbox = await node.start("large")
    outcome = await sandbox.call(call(1000, max_result_bytes=1001))
    assert (outcome.reason, outcome.result) == ("result_too_large", None)
    assert outcome.error is not None
    assert "1002 bytes" in outcome.error["message"]
    assert sandbox.reusable
    assert (await sandbox.call(call(999, max_result_bytes=1001))).reason is None


async def test_an_error_has_type_message_and_a_stack_of_the_function_alone(node: Node) -> None:
    sandbox = await node.start("fail")
    outcome = await sandbox.call(call())
    assert (outcome.reason, outcome.exit_code) == ("handler_error", 1)
    error = outcome.error
    assert error is not None
    assert (error["type"], error["message"]) == ("TypeError", "Function execution failed: outer")
    first, *frames = error["traceback"].splitlines()
    assert first == "TypeError: outer"
    assert frames[0].startswith("    at fail (/function/main.mjs:")
    assert any(line.startswith("caused by: SyntaxError: ") for line in frames)
    assert "containerpub" not in error["traceback"]
    assert "node:" not in error["traceback"]
    assert sandbox.reusable
    later = await node.run("failLater")
    assert later.error is not None
    assert (later.reason, later.error["type"]) == ("handler_error", "RangeError")
    assert "/function/main.mjs:" in later.error["traceback"]


async def test_an_expected_failure_has_no_stack(node: Node) -> None:
    outcome = await node.run("failOnPurpose")
    assert outcome.reason == "handler_error"
    assert outcome.error == {"type": "FunctionError", "message": "Function execution failed: no such customer"}


@pytest.mark.parametrize(
    ("options", "wish"),
    [
        ({"retryAfterS": 30}, 30),
        ({"retry": False}, False),
        ({}, None),
        ({"retryAfterS": 1e12}, 86_400),
        ({"retryAfterS": -1}, None),
        ({"retryAfterS": "soon"}, None),
    ],
)
async def test_an_expected_failure_says_what_it_wants_of_another_attempt(
    node: Node, options: dict[str, object], wish: object
) -> None:
    outcome = await node.run("failAndWish", options)
    assert (outcome.reason, outcome.retry) == ("handler_error", wish)
    refused = bool(options) and wish is None
    assert ("retryAfterS must be a number of seconds" in text(outcome, LogStream.STDERR)) == refused


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("text", "string", "a string"),
        ("nothing", "undefined", "undefined"),
        ("null", "object", "null"),
        ("number", "number", "7"),
        ("surrogate", "Error", "lone \\ud800"),
        ("unreadable", "Error", "(the error has no readable message)"),
    ],
)
async def test_anything_may_be_thrown(node: Node, what: str, kind: str, message: str) -> None:
    outcome = await node.run("throwAnything", what)
    assert outcome.reason == "handler_error"
    assert outcome.error is not None
    assert (outcome.error["type"], outcome.error["message"]) == (kind, f"Function execution failed: {message}")


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        ("main:absent", "the module 'main' exports no function 'absent'"),
        ("plain:absent", "the module 'plain' exports no function 'absent'"),
        ("nowhere:handler", "there is no module 'nowhere' for the handler 'nowhere:handler'"),
        ("../containerpub/serve:handler", "there is no module '../containerpub/serve'"),
        ("main:", "the module 'main' exports no function that is called 'handler' or the default"),
    ],
)
async def test_a_missing_handler_is_named_by_each_call(node: Node, handler: str, says: str) -> None:
    sandbox = await node.start(handler)
    for _ in range(2):
        outcome = await sandbox.call(call())
        assert outcome.reason == "handler_error"
        assert outcome.error is not None
        assert says in outcome.error["message"]
        assert "traceback" not in outcome.error


@pytest.mark.parametrize(
    ("module", "kind", "line"),
    [("raising", "ReferenceError", "at prepare (/function/raising.mjs:"), ("missing", "Error", "no-such-package")],
)
async def test_an_import_that_fails_is_reported_by_each_call(node: Node, module: str, kind: str, line: str) -> None:
    sandbox = await node.start(f"{module}:handler")
    first, second = await sandbox.call(call()), await sandbox.call(call())
    assert first.reason == "handler_error"
    assert first.error is not None
    assert first.error["type"] == kind
    assert line in first.error["traceback"]
    assert "serve.cjs" not in first.error["traceback"]
    assert second.error == first.error


async def test_an_import_that_exits_or_never_ends_is_the_first_calls(node: Node) -> None:
    exiting = await node.run("exiting:handler")
    assert (exiting.reason, exiting.exit_code) == ("crashed", 4)
    assert text(exiting, "stdout") == "dying early\n"
    started = time.monotonic()
    assert (await node.run("endless:handler", timeout_ms=1000)).reason == "timeout"
    assert time.monotonic() - started < 15


async def test_r11_a_frame_forged_on_stdout_is_output(node: Node) -> None:
    outcome = await node.run("forgeOnStdout")
    assert outcome.result == b'"real"'
    assert "forged" in text(outcome, "stdout")


@pytest.mark.parametrize("stray", ["00", "ffffffff", "68656c6c6f2c20776f726c6421", "00" * 64])
async def test_stray_bytes_on_the_control_connection_are_a_crash(node: Node, stray: str) -> None:
    sandbox = await node.start("writeToControl")
    assert (await sandbox.call(call(stray))).reason == "crashed"
    assert not sandbox.reusable


async def test_r22_closing_its_output_does_not_fail_a_call(node: Node) -> None:
    assert (await node.run("closeOutput")).result == b'"quiet"'


async def test_r21_the_environment_is_the_functions_own(node: Node) -> None:
    env = result(await node.run("environment", env=(("GREETING", "hello"), ("FUNCTION_TIMEOUT_MS", "1"))))
    assert isinstance(env, dict)
    assert (env["GREETING"], env["FUNCTION_TIMEOUT_MS"], env["FUNCTION_MAX_MEMORY_MB"]) == ("hello", "5000", "128")
    assert env["CONTAINERPUB_RESTRICTED"] == env["DART_CLOUD_RESTRICTED"] == "true"
    assert not [name for name in env if name.startswith("CONTAINERPUB_ATTACH")]


async def test_descriptors_1_and_2_are_the_output_and_one_more_is_the_control_connection(node: Node) -> None:
    held = result(await node.run("descriptors"))
    assert isinstance(held, dict)
    sockets = [number for number, target in held.items() if target.startswith("socket:")]
    assert len(sockets) == 3
    assert {"1", "2"} < set(sockets)
    assert held["0"] == "/dev/null"


async def test_r2_a_fork_bomb_meets_the_limit_on_processes(node: Node) -> None:
    outcome = await node.run("forkBomb", timeout_ms=20_000)
    made = result(outcome)
    assert isinstance(made, list)
    assert 0 < made[0] < 64
    assert made[1] == "EAGAIN"


async def test_a_process_left_behind_ends_the_reuse(node: Node) -> None:
    sandbox = await node.start("leaveChildBehind")
    assert (await sandbox.call(call())).result == b'"gone"'
    assert not sandbox.reusable


@pytest.mark.parametrize("target", [["1.1.1.1", 80], ["172.17.0.1", 22], ["example.com", 443]])
async def test_r12_there_is_no_network(node: Node, target: list[object]) -> None:
    assert result(await node.run("connect", target)) in ("ENETUNREACH", "EAI_AGAIN", "ECONNREFUSED", "EHOSTUNREACH")


async def test_r13_nothing_but_tmp_can_be_written(node: Node) -> None:
    sandbox = await node.start("writeFile")
    for path in ("/function/x", "/node_modules/x", "/containerpub/x", "/run/containerpub/x", "/usr/x"):
        assert result(await sandbox.call(call(path))) in ("EROFS", "EACCES"), path
    assert result(await sandbox.call(call("/tmp/x"))) is None


PACKAGE = b'{"type": "module", "dependencies": {"semver": "7.5.4"}}'
USES_PACKAGE = b"""
import semver from 'semver';
import { createRequire } from 'node:module';
import { FunctionError } from 'containerpub';
export const echo = (event) => [semver.valid(event.body), createRequire(import.meta.url)('semver').major(event.body),
  typeof FunctionError];
"""
EXAMPLES = Path(__file__).parents[2] / "examples"


async def test_packages_are_found_by_both_module_systems_and_installed_once(builder: Builder) -> None:
    # no other run has asked for exactly this
    unique = orjson.dumps(
        {"type": "module", "dependencies": {"semver": "7.5.4"}, "overrides": {f"x{uuid.uuid4().hex}": "1.0.0"}}
    )
    first = await builder.build({"main.js": USES_PACKAGE, "package.json": unique})
    assert builder.log.count("installing dependencies") == 1
    builder.bench.layers = first.layers
    for builder.bench.generic in (False, True):
        outcome = await builder.bench.run("main:echo", "v1.2.3")
        assert result(outcome) == ["1.2.3", 1, "function"]
    builder.log.clear()
    await builder.build({"main.js": USES_PACKAGE + b"// changed\n", "package.json": unique})
    (line,) = builder.log
    assert line.startswith("dependencies are unchanged: layer ")


async def test_an_example_with_a_lock_is_installed_as_it_says(builder: Builder) -> None:
    files = {path.name: path.read_bytes() for path in (EXAMPLES / "node-deps").iterdir()}
    assert b"resolved" not in files["package-lock.json"]
    builder.bench.layers = (await builder.build(files, handler="main:handler")).layers
    body = {"versions": ["1.2.0", "1.10.0", "2.0.0"], "range": "^1.0.0"}
    outcome = await builder.bench.run("main:handler", body)
    assert result(outcome) == {"newest": "1.10.0", "sorted": ["1.2.0", "1.10.0", "2.0.0"]}
    assert (await builder.bench.run("main:handler", {})).is_response


async def test_a_package_that_does_not_match_its_lock_is_build_failed(builder: Builder) -> None:
    files = {path.name: path.read_bytes() for path in (EXAMPLES / "node-deps").iterdir()}
    lock = orjson.loads(files["package-lock.json"])
    lock["packages"]["node_modules/semver"]["integrity"] = "sha512-" + "A" * 86 + "=="
    with pytest.raises(BuildRejected) as caught:
        await builder.build(files | {"package-lock.json": orjson.dumps(lock)}, handler="main:handler")
    assert caught.value.reason == "build_failed"
    assert any("EINTEGRITY" in line for line in builder.log)


@pytest.mark.parametrize("spec", ["git+https://example.org/a.git", "file:../a", "https://example.org/a.tgz", "link:a"])
async def test_b11_a_package_from_elsewhere_is_build_failed(builder: Builder, spec: str) -> None:
    files = {"main.js": b"", "package.json": orjson.dumps({"dependencies": {"a": spec}})}
    with pytest.raises(BuildRejected, match=r"package\.json: dependencies: 'a'") as caught:
        await builder.build(files)
    assert caught.value.reason == "build_failed"


async def test_a_package_that_does_not_exist_is_build_failed_with_the_reason(builder: Builder) -> None:
    wanted = orjson.dumps({"dependencies": {"containerpub-no-such-package-9f3a": "99.99.99"}})
    with pytest.raises(BuildRejected, match="Installing the dependencies failed with exit code 1"):
        await builder.build({"main.js": b"", "package.json": wanted})
    assert any("containerpub-no-such-package-9f3a" in line for line in builder.log)


async def test_no_script_of_the_project_or_its_npm_settings_are_used(builder: Builder) -> None:
    files = {
        "main.js": USES_PACKAGE,
        ".npmrc": b"registry=http://127.0.0.1:1/\nignore-scripts=false\n",
        "package.json": PACKAGE[:-1] + b', "scripts": {"preinstall": "echo HIT; exit 7", "install": "exit 7"}}',
    }
    await builder.build(files)
    assert "HIT" not in "\n".join(builder.log)


async def test_a_module_that_is_called_a_script_is_rejected_with_what_to_do(builder: Builder) -> None:
    """By a Node.js that does not find out by itself."""
    with pytest.raises(BuildRejected, match=r"main\.js:1: it is a module by its content: call it \.mjs") as caught:
        await builder.build({"main.js": b"import a from 'a';\n"})
    assert caught.value.reason == "analysis_rejected"
