"""What every execution engine must do. Runs against each of them, with real containers and real processes."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
from engines import Bench, Subscriber, bench, call, docker_bench, engine_config, process_bench_of, short_dir, text

from shared.layers import LayerKind
from worker.config import EngineConfig
from worker.engine.docker import DockerEngine
from worker.engine.process.child import Child
from worker.errors import EngineUnavailable, LayerUnavailable, Unsuited
from worker.sandbox.attach import Rendezvous
from worker.sandbox.attached import AttachedSandbox
from worker.sandbox.log import LogEntry, LogStream
from worker.sandbox.tail import Progress

__all__ = ["bench", "docker_bench", "engine_config", "short_dir"]

PROMPT_S = 6.0
"""Of what takes a second at most when all is well, and ten, a minute or for ever when it is not."""


@pytest.mark.parametrize(
    "value",
    [None, True, 1.0, 12345678901234567890, "", "text", [1, [2, {}]], {"a": {"b": None}}, "\0 \x1b[31m ü 😀  \n"],
)
async def test_a_result_arrives_as_it_was_returned(bench: Bench, value: object) -> None:
    outcome = await bench.run("echo", value)
    assert outcome.reason is None
    assert outcome.exit_code == 0
    assert outcome.result is not None
    assert orjson.loads(outcome.result) == value


async def test_a_result_is_handed_on_verbatim(bench: Bench) -> None:
    outcome = await bench.run("echo", 1.0)
    assert outcome.result == b"1.0"


async def test_a_result_of_megabytes_and_an_event_of_megabytes_pass(bench: Bench) -> None:
    value = "ü" * (2 * 1024 * 1024)
    outcome = await bench.run("echo", value)
    assert outcome.result is not None
    assert orjson.loads(outcome.result) == value


async def test_an_async_handler_is_awaited(bench: Bench) -> None:
    sandbox = await bench.start("async_echo")
    for number in range(3):
        assert (await sandbox.call(call(number))).result == str(number).encode()


@pytest.mark.parametrize(
    ("handler", "result"),
    [
        ("one", ["one", 5]),
        ("two", ["two", 5, 1]),
        ("optional", ["optional", 5, 1]),
        ("keyword", ["keyword", 5]),
        ("any_number", ["any", 5, 2]),
        ("one_async", ["async", 5]),
        ("handlers.one", ["method", 5]),
        ("handlers.two", ["method of two", 5, 1]),
        ("handlers", ["object", 5]),
        ("Handlers.of_class", ["static", 5]),
        ("wrapped_one", ["wrapped", "one", 5]),
        ("wrapped_two", ["wrapped", "two", 5, 1]),
        ("partial", ["two", 5, 7]),
        ("anonymous", ["lambda", 5]),
    ],
)
async def test_a_handler_of_one_parameter_is_called_with_the_event(bench: Bench, handler: str, result: object) -> None:
    outcome = await bench.run(f"signatures:{handler}", 5)
    assert outcome.reason is None, outcome
    assert orjson.loads(outcome.result or b"") == result


async def test_a_handler_spelt_with_a_dot_is_told_how_it_is_spelt(bench: Bench) -> None:
    sandbox = await bench.engine.start(replace(bench.spec(""), handler="signatures.one"))
    outcome = await sandbox.call(call())
    assert outcome.reason == "handler_error"
    assert (outcome.error or {})["message"].endswith(
        'between module and function stands a colon, so write handler = "signatures:one"'
    )


async def test_a_marked_function_is_found_without_a_handler_name(bench: Bench) -> None:
    assert (await bench.run("marked:", 5)).result == b'["marked",5]'


async def test_a_call_is_followed_while_it_runs(bench: Bench) -> None:
    sandbox = await bench.start("follow")
    assert (await sandbox.call(call(0))).reason is None
    looking = Subscriber()
    running = asyncio.create_task(sandbox.call(call(1, tail=looking.tail)))
    async with asyncio.timeout(4):
        await looking.heard.wait()
    assert not running.done()
    outcome = await running
    assert "".join(entry.message for entry in looking.entries if entry.stream == "stdout") == "began\nended\n"
    assert LogEntry(stream=LogStream.LOGGER, level="info", message="logged") in looking.entries
    assert text(outcome, "stdout") == "began\nended\n"
    # Most of a thousand reports at once are left out.
    assert looking.progress[0] == Progress(fraction=0.5, message="half\\ud800")
    assert looking.progress[-1] == Progress(fraction=1, message="")
    assert len(looking.progress) < 10
    assert (await sandbox.call(call(0))).reason is None


async def test_progress_is_a_fraction(bench: Bench) -> None:
    outcome = await bench.run("progress_wrongly")
    assert outcome.result == b'["ValueError","ValueError","ValueError","TypeError","TypeError"]'


async def test_a_response_becomes_an_object(bench: Bench) -> None:
    outcome = await bench.run("response")
    assert outcome.is_response
    assert outcome.result is not None
    assert orjson.loads(outcome.result) == {"status": 201, "headers": {"X-Answer": "42"}, "body": {"made": True}}


@pytest.mark.parametrize(
    "body",
    [
        "5",
        '{"status":201,"headers":{}}',
        '{"status":true,"headers":{},"body":1}',
        '{"status":99,"headers":{},"body":1}',
        '{"status":200,"headers":[1],"body":1}',
        '{"status":200,"headers":{"A":1},"body":1}',
    ],
)
async def test_what_only_claims_to_be_a_response_is_a_plain_result(bench: Bench, body: str) -> None:
    head = '{"nonce":"NONCE","kind":"result","response":true,"cpu_ms":0,"peak_memory_bytes":0}\n'
    outcome = await bench.run("forge_answer", head + body)
    assert outcome.result == body.encode()
    assert not outcome.is_response


async def test_a_plain_object_is_no_response(bench: Bench) -> None:
    assert not (await bench.run("echo", {"status": 201, "headers": {}, "body": None})).is_response


@pytest.mark.podman
@pytest.mark.every_way
async def test_w3_a_paused_sandbox_uses_no_cpu_and_goes_on_afterwards(bench: Bench) -> None:
    sandbox = await bench.start("import_threads:burn")
    assert (await sandbox.call(call())).result == b'"for now"'
    await sandbox.pause()
    try:
        before = await _cpu_s(bench, sandbox.id)
        await asyncio.sleep(0.3)
        assert await _cpu_s(bench, sandbox.id) - before < 0.05
    finally:
        await sandbox.unpause()
    async with asyncio.timeout(5):
        while await _cpu_s(bench, sandbox.id) - before < 0.05:
            await asyncio.sleep(0.01)


@pytest.mark.podman
@pytest.mark.every_way
@pytest.mark.parametrize("handler", ["echo", "leave_child_behind"])
async def test_a_paused_sandbox_is_destroyed_promptly(bench: Bench, handler: str) -> None:
    sandbox = await bench.start(handler)
    await sandbox.call(call())
    await sandbox.pause()
    started = time.monotonic()
    await sandbox.destroy()
    assert time.monotonic() - started < PROMPT_S
    assert await _left(bench) == []


@pytest.mark.podman
@pytest.mark.every_way
async def test_a_sandbox_that_cannot_be_unpaused_is_not_reusable(bench: Bench) -> None:
    sandbox = await bench.start("echo")
    await sandbox.pause()
    await _end_from_outside(bench, sandbox.id)
    with pytest.raises(EngineUnavailable):
        await sandbox.unpause()
    assert not sandbox.reusable


@pytest.mark.podman
@pytest.mark.every_way
async def test_an_idle_sandbox_that_is_removed_from_outside_is_noticed(bench: Bench) -> None:
    sandbox = await bench.start("echo")
    assert (await sandbox.call(call(1))).result == b"1"
    await _end_from_outside(bench, sandbox.id)
    async with asyncio.timeout(5):
        while sandbox.reusable:
            await asyncio.sleep(0.01)
    await sandbox.destroy()
    assert await _left(bench) == []


async def test_the_event_has_its_five_members(bench: Bench) -> None:
    outcome = await bench.run("whole_event", "b", query={"q": "1"})
    assert outcome.result is not None
    event = {"body": "b", "query": {"q": "1"}, "headers": {}, "method": "POST", "path": "/"}
    assert orjson.loads(outcome.result) == event


@pytest.mark.every_way
async def test_the_context_tells_what_runs(bench: Bench) -> None:
    sandbox = await bench.start("describe_context")
    asked = call(timeout_ms=4000, attempt=2)
    outcome = await sandbox.call(asked)
    assert outcome.result is not None
    told = orjson.loads(outcome.result)
    assert 2 < told.pop("remaining_s") <= 4.001
    assert told == {"job_id": str(asked.job_id), "attempt": 2, "function": "tested", "version": 3}


async def test_a_function_reads_files_beside_its_code(bench: Bench) -> None:
    assert (await bench.run("read_own_data")).result == b'"beside the code"'


@pytest.mark.every_way
async def test_state_survives_in_the_same_sandbox(bench: Bench) -> None:
    sandbox = await bench.start("count")
    assert [(await sandbox.call(call())).result for _ in range(3)] == [b"1", b"2", b"3"]


@pytest.mark.podman
@pytest.mark.every_way
async def test_cost_is_reported(bench: Bench) -> None:
    outcome = await bench.run("echo", 1)
    assert outcome.cpu_ms is not None
    assert outcome.cpu_ms >= 0
    assert outcome.peak_memory_bytes is not None
    assert 4 * 1024**2 < outcome.peak_memory_bytes < 128 * 1024**2
    assert outcome.run_ms > 0


async def test_peak_memory_is_the_calls_own(bench: Bench) -> None:
    sandbox = await bench.start("allocate")
    peaks = []
    for megabytes in (1, 80, 1, 40, 1):
        outcome = await sandbox.call(call(megabytes))
        assert outcome.peak_memory_bytes is not None, outcome
        peaks.append(outcome.peak_memory_bytes / 1024**2)
    assert all(abs(peak - peaks[0]) < 10 for peak in (peaks[2], peaks[4])), peaks
    assert 75 < peaks[1] - peaks[0] < 90
    assert 35 < peaks[3] - peaks[0] < 50


async def test_peak_memory_of_a_child_is_its_calls(bench: Bench) -> None:
    sandbox = await bench.start("allocate_in_child")
    peaks = [(await sandbox.call(call(megabytes))).peak_memory_bytes or 0 for megabytes in (60, 1)]
    assert peaks[0] > 60 * 1024**2
    assert peaks[1] < 40 * 1024**2


async def test_peak_memory_is_never_above_the_cap(bench: Bench) -> None:
    figures = '{"nonce":"NONCE","kind":"result","response":false,"cpu_ms":0,"peak_memory_bytes":%d}\n1'
    outcome = await bench.run("forge_answer", figures % (200 * 1024**2))
    assert outcome.peak_memory_bytes == 128 * 1024**2


@pytest.mark.podman
async def test_stdout_and_stderr_are_captured_apart_and_by_call(bench: Bench) -> None:
    sandbox = await bench.start("say")
    first, second = await sandbox.call(call(1)), await sandbox.call(call(2))
    assert text(first, "stdout") == "imported\nout 1\n"
    assert text(first, "stderr") == "err 1\n"
    assert text(second, "stdout") == "out 2\n"
    assert text(second, "stderr") == "err 2\n"
    assert not second.logs_truncated


async def test_r9_bytes_that_are_no_text_are_kept_escaped(bench: Bench) -> None:
    outcome = await bench.run("write_bytes", "00c3bcff1b5b3331")
    assert text(outcome, "stdout") == "imported\n\0ü\\xff\x1b[31"


async def test_the_logger_keeps_levels(bench: Bench) -> None:
    outcome = await bench.run("log")
    logged = [entry for entry in outcome.logs if entry.stream == "logger"]
    assert logged == [
        LogEntry(stream=LogStream.LOGGER, level="info", message="value is 7"),
        LogEntry(stream=LogStream.LOGGER, level="error", message="broken \\ud800 text"),
    ]


async def test_logged_entries_are_capped(bench: Bench) -> None:
    outcome = await bench.run("log_many", 1000, max_log_bytes=2000)
    assert outcome.reason is None
    assert outcome.logs_truncated
    assert sum(len(entry.message) for entry in outcome.logs) <= 2000


@pytest.mark.parametrize(
    ("handler", "logged"),
    [
        ("root", [("info", "info 1"), ("warning", "warning")]),
        ("named", [("debug", "debug"), ("info", "info"), ("critical", "critical")]),
        ("own_level", [("info", "info")]),
        ("basic", [("info", "info"), ("error", "error")]),
        ("formatted", [("info", "mine: info")]),
        ("unset", [("warning", "warning")]),
        ("elsewhere", []),
        ("configured", []),
        ("in_child", []),
    ],
)
async def test_what_the_standard_library_logs_is_in_the_log_with_its_level(
    bench: Bench, handler: str, logged: list[tuple[str, str]]
) -> None:
    for bench.generic in (False, True):
        sandbox = await bench.start(f"standard_logging:{handler}")
        first = await sandbox.call(call())
        second = await sandbox.call(call())
        assert (first.reason, second.reason) == (None, None), first
        early = [("warning", "from the import")]
        for outcome, before in ((first, early), (second, [])):
            entries = [(entry.level, entry.message) for entry in outcome.logs if entry.stream == "logger"]
            assert entries == before + logged
            assert ("to stdout" in text(outcome, "stdout")) == (handler in ("elsewhere", "configured"))
            assert text(outcome, "stderr") == ("of a child\n" if handler == "in_child" else "")


async def test_an_exception_that_is_logged_is_there_with_its_traceback(bench: Bench) -> None:
    outcome = await bench.run("standard_logging:failing")
    (entry,) = (entry for entry in outcome.logs if entry.level == "error")
    assert entry.message.startswith("caught\nTraceback")
    assert entry.message.endswith("ValueError: invalid literal for int() with base 10: 'one'")


async def test_output_between_calls_belongs_to_none(bench: Bench) -> None:
    sandbox = await bench.start("import_threads:write_later")
    await sandbox.call(call())
    probe = replace(call(), event=orjson.dumps({"body": None}))
    async with asyncio.timeout(5):
        # The thread prints before it leaves its mark, and the mark is looked for through the sandbox's folder.
        while not await _late(bench, sandbox.id):
            await asyncio.sleep(0.01)
    outcome = await sandbox.call(probe)
    assert "late" not in text(outcome, "stdout")


async def _late(bench: Bench, sandbox_id: str) -> bool:
    if not isinstance(bench.engine, DockerEngine):
        return any(bench.config.socket_dir.glob(f"*/{sandbox_id}/tmp/late"))
    container = bench.engine._client().docker.containers.container(f"containerpub-{sandbox_id}")
    stream = (await container.exec(["ls", "/tmp"])).start()
    async with stream:
        listing = b""
        while (message := await stream.read_out()) is not None:
            listing += message.data
    return b"late" in listing


async def test_r8_a_flood_of_output_is_cut_and_the_call_stays_prompt(bench: Bench) -> None:
    sandbox = await bench.start("flood")
    started = time.monotonic()
    outcome = await sandbox.call(call(20, max_log_bytes=10_000))
    assert outcome.reason is None
    assert outcome.result == b'"done"'
    assert outcome.logs_truncated
    assert sum(len(entry.message) for entry in outcome.logs) == 10_000
    assert time.monotonic() - started < PROMPT_S
    assert sandbox.reusable


@pytest.mark.podman
@pytest.mark.every_way
async def test_r8_an_endless_flood_ends_at_the_timeout(bench: Bench) -> None:
    sandbox = await bench.start("flood_forever")
    before = psutil.Process().memory_info().rss
    started = time.monotonic()
    outcome = await sandbox.call(call(timeout_ms=1000))
    assert outcome.reason == "timeout"
    assert outcome.logs_truncated
    assert time.monotonic() - started < PROMPT_S
    await sandbox.destroy()
    assert psutil.Process().memory_info().rss - before < 16 * 1024**2


@pytest.mark.podman
@pytest.mark.every_way
@pytest.mark.parametrize("handler", ["ignore_signals", "stop_itself", "sleep"])
async def test_r1_r22_a_call_ends_at_its_timeout(bench: Bench, handler: str) -> None:
    sandbox = await bench.start(handler)
    started = time.monotonic()
    outcome = await sandbox.call(call(60, timeout_ms=1000))
    assert time.monotonic() - started < PROMPT_S
    assert outcome.reason == "timeout"
    assert outcome.exit_code == -1
    assert outcome.error is not None
    assert outcome.error["message"] == "Function execution timed out (1000ms)"
    assert not sandbox.reusable
    if handler == "ignore_signals":
        assert text(outcome, "stdout") == "imported\nstill here\n"
    await sandbox.destroy()
    assert time.monotonic() - started < PROMPT_S


@pytest.mark.podman
@pytest.mark.every_way
@pytest.mark.parametrize(
    ("handler", "code", "words"),
    [("exit_at_once", 3, "last words\n"), ("sys_exit", 3, "leaving\n"), ("sys_exit", 0, "leaving\n")],
)
async def test_r22_a_function_that_exits_has_crashed(bench: Bench, handler: str, code: int, words: str) -> None:
    sandbox = await bench.start(handler)
    outcome = await sandbox.call(call(code))
    assert outcome.reason == "crashed"
    assert outcome.exit_code == code
    assert outcome.error is not None
    assert outcome.error["message"].startswith(f"Function execution failed: the process ended with exit code {code}")
    assert text(outcome, "stdout") == f"imported\n{words}"
    assert not sandbox.reusable


@pytest.mark.podman
@pytest.mark.every_way
async def test_a_function_that_kills_itself_has_crashed(bench: Bench) -> None:
    outcome = await bench.run("kill_itself")
    assert (outcome.reason, outcome.exit_code) == ("crashed", 137)


@pytest.mark.parametrize(("number", "name"), [(11, "SIGSEGV"), (7, "SIGBUS"), (6, "SIGABRT")])
async def test_a_crash_by_a_signal_names_it(bench: Bench, number: int, name: str) -> None:
    outcome = await bench.run("signal_itself", number)
    assert (outcome.reason, outcome.exit_code) == ("crashed", 128 + number)
    assert f"({name}: " in (outcome.error or {})["message"]


@pytest.mark.docker
async def test_a_function_without_a_network_is_told_so(docker_bench: Bench) -> None:
    outcome = await docker_bench.run("look_up", "example.com")
    assert outcome.reason == "handler_error"
    assert 'network = "egress"' in (outcome.error or {})["hint"]


async def test_limits_that_a_call_met_are_hinted_at(bench: Bench) -> None:
    outcome = await bench.run("open_without_end")
    assert "open at once" in (outcome.error or {})["hint"]
    outcome = await bench.run("sleep", 60, timeout_ms=500)
    assert (outcome.error or {})["message"] == "Function execution timed out (500ms)"
    assert "timeout_s" in (outcome.error or {})["hint"]
    assert "hint" not in ((await bench.run("fail")).error or {})


@pytest.mark.every_way
async def test_a_sandbox_that_dies_between_calls_is_not_reusable(bench: Bench) -> None:
    sandbox = await bench.start("import_threads:exit_later")
    assert (await sandbox.call(call())).result == b'"for now"'
    async with asyncio.timeout(5):
        while sandbox.reusable:
            await asyncio.sleep(0.01)
    outcome = await sandbox.call(call())
    assert (outcome.reason, outcome.exit_code) == ("crashed", 9)


@pytest.mark.podman
@pytest.mark.every_way
@pytest.mark.parametrize("handler", ["hog_memory", "hungry_import:handler"])
async def test_r3_memory_runs_out(bench: Bench, handler: str) -> None:
    sandbox = await bench.start(handler, memory_mb=64)
    outcome = await sandbox.call(call())
    if bench.on_podman and outcome.reason == "crashed":
        # Some releases of its monitor note the kill where Podman does not look.
        assert outcome.exit_code == 137
    else:
        assert outcome.reason == "out_of_memory"
    assert outcome.error is not None
    assert outcome.error["message"].startswith("Function execution failed: ")
    assert not sandbox.reusable


@pytest.mark.podman
@pytest.mark.every_way
async def test_r4_a_child_that_runs_out_of_memory_does_not_fail_its_parent(bench: Bench) -> None:
    outcome = await bench.run("hog_memory_in_child", memory_mb=64)
    assert (outcome.reason, outcome.result) == (None, b"true")


@pytest.mark.every_way
async def test_a_memory_error_is_out_of_memory(bench: Bench) -> None:
    assert (await bench.run("raise_memory_error")).reason == "out_of_memory"


@pytest.mark.parametrize(
    "name",
    ["object", "nan", "infinity", "nan_inside", "bytes", "set", "surrogate", "circle", "deep", "huge_int"],
)
async def test_what_json_cannot_say_is_an_invalid_result(bench: Bench, name: str) -> None:
    sandbox = await bench.start("give")
    outcome = await sandbox.call(call(name))
    assert outcome.reason == "invalid_result"
    assert outcome.error is not None
    assert outcome.error["message"].startswith("Function execution failed: the result is not JSON")
    assert sandbox.reusable
    assert (await sandbox.call(call(name))).reason == "invalid_result"


async def test_r10_a_result_over_the_limit_is_refused_and_one_at_it_is_not(bench: Bench) -> None:
    sandbox = await bench.start("large")
    outcome = await sandbox.call(call(1000, max_result_bytes=1001))
    assert outcome.reason == "result_too_large"
    assert outcome.result is None
    assert outcome.error is not None
    assert "1002 bytes" in outcome.error["message"]
    assert sandbox.reusable
    assert (await sandbox.call(call(999, max_result_bytes=1001))).reason is None


async def test_an_error_has_type_message_and_a_traceback_of_the_function_alone(bench: Bench) -> None:
    sandbox = await bench.start("fail")
    outcome = await sandbox.call(call())
    assert (outcome.reason, outcome.exit_code) == ("handler_error", 1)
    error = outcome.error
    assert error is not None
    assert error["type"] == "KeyError"
    assert error["message"] == "Function execution failed: 'outer'"
    assert 'File "/function/main.py"' in error["traceback"]
    assert "ValueError: invalid literal" in error["traceback"]
    assert "direct cause" in error["traceback"]
    for platform in ("serve.py", "containerpub", str(bench.config.data_dir)):
        assert platform not in error["traceback"]
    assert sandbox.reusable


async def test_an_expected_failure_has_no_traceback(bench: Bench) -> None:
    outcome = await bench.run("fail_on_purpose")
    assert outcome.reason == "handler_error"
    assert outcome.error == {"type": "FunctionError", "message": "Function execution failed: no such customer"}


@pytest.mark.parametrize("handler", ["fail_unprintably", "fail_with_surrogate"])
async def test_an_error_that_cannot_be_written_is_still_one(bench: Bench, handler: str) -> None:
    assert (await bench.run(handler)).reason == "handler_error"


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        ("main:nothing", "the module 'main' has no function 'nothing'"),
        ("main:calls", "the module 'main' has no function 'calls'"),
        ("nowhere:handler", "there is no module 'nowhere' for the handler 'nowhere:handler'"),
        ("main:", "the module 'main' has no function that is marked @function or called 'handler'"),
    ],
)
async def test_a_missing_handler_is_named(bench: Bench, handler: str, says: str) -> None:
    sandbox = await bench.start(handler)
    for _ in range(2):
        outcome = await sandbox.call(call())
        assert outcome.reason == "handler_error"
        assert outcome.error is not None
        assert says in outcome.error["message"]
        assert "traceback" not in outcome.error


@pytest.mark.every_way
@pytest.mark.parametrize(
    ("module", "kind", "line"),
    [
        ("broken_import", "ModuleNotFoundError", "import no_such_library"),
        ("broken_syntax", "SyntaxError", "/function/broken_syntax.py"),
        ("raising_import", "ValueError", "in prepare"),
    ],
)
async def test_an_import_that_fails_is_reported_by_each_call(bench: Bench, module: str, kind: str, line: str) -> None:
    sandbox = await bench.start(f"{module}:handler")
    first, second = await sandbox.call(call()), await sandbox.call(call())
    assert first.reason == "handler_error"
    assert first.error is not None
    assert first.error["type"] == kind
    assert line in first.error["traceback"]
    for platform in ("serve.py", "containerpub_runtime"):
        assert platform not in first.error["traceback"]
    assert second.error == first.error


@pytest.mark.every_way
@pytest.mark.parametrize(("module", "code"), [("exiting_import", 4), ("sys_exiting_import", 6)])
async def test_an_import_that_exits_is_a_crash_of_the_first_call(bench: Bench, module: str, code: int) -> None:
    outcome = await bench.run(f"{module}:handler")
    assert (outcome.reason, outcome.exit_code) == ("crashed", code)
    if module == "exiting_import":
        assert text(outcome, "stdout") == "dying early\n"


@pytest.mark.every_way
async def test_an_endless_import_uses_up_the_first_calls_time(bench: Bench) -> None:
    started = time.monotonic()
    outcome = await bench.run("endless_import:handler", timeout_ms=1000)
    assert outcome.reason == "timeout"
    assert time.monotonic() - started < PROMPT_S


async def test_r11_a_frame_forged_on_stdout_is_output(bench: Bench) -> None:
    outcome = await bench.run("forge_on_stdout")
    assert outcome.result == b'"real"'
    assert "forged" in text(outcome, "stdout")


@pytest.mark.parametrize(
    "stray",
    ["00", "ffffffff", "00000005", "68656c6c6f2c20776f726c6421", "00100000", "0000000568656c6c6f", "00" * 64],
)
async def test_stray_bytes_on_the_control_connection_are_a_crash(bench: Bench, stray: str) -> None:
    sandbox = await bench.start("write_to_control")
    started = time.monotonic()
    outcome = await sandbox.call(call(stray))
    assert outcome.reason == "crashed"
    assert time.monotonic() - started < PROMPT_S
    assert not sandbox.reusable


async def test_a_forged_length_is_never_buffered(bench: Bench) -> None:
    body = '{"nonce":"NONCE","kind":"result"'
    sandbox = await bench.start("forge_answer")
    outcome = await sandbox.call(call(body, query={"length": str(2**31)}))
    assert outcome.reason == "result_too_large"
    assert not sandbox.reusable


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('{"nonce":"NONCE","kind":"result","cpu_ms":0,"peak_memory_bytes":0}\nnot json', "invalid_result"),
        ('{"nonce":"NONCE","kind":"result","cpu_ms":0,"peak_memory_bytes":0}\nNaN', "invalid_result"),
        ('{"nonce":"NONCE","kind":"result","cpu_ms":0,"peak_memory_bytes":0}', "crashed"),
        ('{"nonce":"NONCE","kind":"result","cpu_ms":"much","peak_memory_bytes":0}\n1', "crashed"),
        ('{"nonce":"NONCE","kind":"error","reason":"worker_lost","cpu_ms":0,"peak_memory_bytes":0}', "crashed"),
        ('{"nonce":"NONCE","kind":["error"]}', "timeout"),
        ('{"nonce":"NONCE","kind":"error","reason":{},"error":1,"cpu_ms":0,"peak_memory_bytes":0}', "crashed"),
    ],
)
async def test_a_forged_answer_cannot_pass_for_more_than_the_functions_own(
    bench: Bench, body: str, reason: str
) -> None:
    sandbox = await bench.start("forge_answer")
    assert (await sandbox.call(call(body, timeout_ms=1000))).reason == reason


async def test_w4_an_answer_for_an_earlier_call_is_nobodys(bench: Bench) -> None:
    sandbox = await bench.start("answer_for_an_earlier_call")
    assert (await sandbox.call(call("first"))).result == b'"first"'
    for body in ("second", "third"):
        outcome = await sandbox.call(call(body))
        assert outcome.result != b'"late"', outcome
        assert outcome.result == orjson.dumps(body), outcome


@pytest.mark.parametrize(
    ("what", "reusable"),
    [
        ("nothing", True),
        ("ended task", True),
        ("task about to end", True),
        ("cancelled task", True),
        ("cancelled timer", True),
        ("timer of a package", True),
        ("task", False),
        ("task that is held by none", False),
        ("endless task", False),
        ("task in another loop", False),
        ("gathered", False),
        ("timer", False),
        ("method by a timer", False),
    ],
)
async def test_what_a_call_leaves_in_an_event_loop_does_not_go_on_in_the_next(
    bench: Bench, what: str, reusable: bool
) -> None:
    sandbox = await bench.start("leave_in_loop")
    outcome = await sandbox.call(call(what))
    assert outcome.reason is None, outcome
    assert sandbox.reusable is reusable
    if reusable:
        again = await sandbox.call(call("nothing"))
        assert again.result == outcome.result
        assert text(again, "logger") == ""


async def test_tasks_of_the_import_may_stay(bench: Bench) -> None:
    sandbox = await bench.start("import_tasks:handler")
    for number in (1, 2):
        assert (await sandbox.call(call())).result == str(number).encode()
        assert sandbox.reusable


@pytest.mark.docker
async def test_w3_a_thread_that_burns_between_calls_stays_within_its_cpu_cap(docker_bench: Bench) -> None:
    sandbox = await docker_bench.start("import_threads:burn", cpus=0.25)
    assert (await sandbox.call(call())).result == b'"for now"'
    before, since = await _cpu_s(docker_bench, sandbox.id), time.monotonic()
    while time.monotonic() - since < 2:
        await asyncio.sleep(0.05)
    used = await _cpu_s(docker_bench, sandbox.id) - before
    assert 0.05 < used / (time.monotonic() - since) < 0.35


async def test_closing_the_control_connection_is_a_crash(bench: Bench) -> None:
    sandbox = await bench.start("close_control")
    started = time.monotonic()
    outcome = await sandbox.call(call())
    assert outcome.reason == "crashed"
    assert time.monotonic() - started < PROMPT_S


async def test_r22_closing_its_output_does_not_fail_a_call(bench: Bench) -> None:
    outcome = await bench.run("close_output")
    assert outcome.result == b'"quiet"'


@pytest.mark.every_way
async def test_a_cancelled_call_leaves_a_sandbox_that_can_only_be_destroyed(bench: Bench) -> None:
    sandbox = await bench.start("sleep")
    running = asyncio.ensure_future(sandbox.call(call(60)))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not sandbox.reusable
    await sandbox.destroy()
    assert await _left(bench) == []


async def test_what_a_killed_call_wrote_is_with_its_tail(bench: Bench) -> None:
    sandbox = await bench.start("follow")
    assert (await sandbox.call(call(0))).reason is None  # what its import writes is gone with this
    looking = Subscriber()
    running = asyncio.create_task(sandbox.call(call(60, max_log_bytes=9, tail=looking.tail, timeout_ms=60_000)))
    async with asyncio.timeout(10):
        while not looking.progress:  # it comes after what is logged
            await asyncio.sleep(0.02)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [(stream, text) for stream, _, text in looking.tail.kept] == [
        (LogStream.STDOUT, b"began\n"),
        (LogStream.LOGGER, b"log"),
    ]
    assert looking.tail.truncated


@pytest.mark.podman
@pytest.mark.every_way
async def test_r21_no_secret_of_the_platform_is_in_the_environment(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JWT_SECRET", "canary-of-the-worker")
    outcome = await bench.run("environment", env=(("GREETING", "hello"), ("FUNCTION_TIMEOUT_MS", "1")))
    assert outcome.result is not None
    env = orjson.loads(outcome.result)
    assert env["GREETING"] == "hello"
    assert env["FUNCTION_TIMEOUT_MS"] == "5000"
    assert env["FUNCTION_MAX_MEMORY_MB"] == "128"
    assert env["CONTAINERPUB_RESTRICTED"] == env["DART_CLOUD_RESTRICTED"] == "true"
    assert not [name for name in env if name.startswith("CONTAINERPUB_ATTACH")]
    assert "canary" not in str(env)


@pytest.mark.podman
@pytest.mark.every_way
async def test_a_function_holds_no_descriptor_but_its_own(bench: Bench) -> None:
    outcome = await bench.run("descriptors")
    assert outcome.result is not None
    held = orjson.loads(outcome.result)
    assert sorted(target.split(":")[0] for target in held.values()) == ["/dev/null", "socket", "socket", "socket"]


@pytest.mark.podman
@pytest.mark.every_way
@pytest.mark.parametrize("handler", ["echo", "leave_child_behind", "ignore_signals"])
async def test_a_destroyed_sandbox_leaves_nothing(bench: Bench, handler: str) -> None:
    sandbox = await bench.start(handler)
    await sandbox.call(call(timeout_ms=1000))
    assert await _left(bench) != []
    await asyncio.gather(sandbox.destroy(), sandbox.destroy())
    await sandbox.destroy()
    assert await _left(bench) == []


@pytest.mark.podman
@pytest.mark.every_way
async def test_closing_the_engine_destroys_its_sandboxes(bench: Bench) -> None:
    for _ in range(3):
        await bench.start("echo")
    await bench.engine.close()
    if bench.engine.name == "docker":
        await bench.engine.open()
    assert await _left(bench) == []


@pytest.mark.podman
@pytest.mark.every_way
async def test_a_start_that_is_cancelled_leaves_nothing(bench: Bench) -> None:
    await bench.engine.prepare(bench.spec("echo"))
    for delay_s in (0.0, 0.02, 0.08):
        starting = asyncio.ensure_future(bench.start("echo"))
        await asyncio.sleep(delay_s)
        starting.cancel()
        (started,) = await asyncio.gather(starting, return_exceptions=True)
        if isinstance(started, AttachedSandbox):
            await started.destroy()
        else:
            assert isinstance(started, asyncio.CancelledError)
    assert await bench.engine.sweep(frozenset()) <= 3
    assert await _left(bench) == []


async def test_a_process_that_comes_into_being_after_its_start_was_cancelled_is_ended(
    engine_config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn = Child._spawn
    spawned: list[int] = []

    def late(child: Child, *arguments: Any) -> None:
        time.sleep(0.3)  # as a fork of a large worker on a busy machine
        spawn(child, *arguments)
        assert child._process is not None
        spawned.append(child._process.pid)

    monkeypatch.setattr(Child, "_spawn", late)
    async for made in process_bench_of(engine_config):
        starting = asyncio.ensure_future(made.start("echo"))
        await asyncio.sleep(0.1)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert len(spawned) == 1
        assert not psutil.pid_exists(spawned[0])
        assert await _left(made) == []


@pytest.mark.every_way
async def test_folders_and_listeners_that_come_into_being_after_a_start_was_cancelled_are_gone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.engine.prepare(bench.spec("echo"))
    begun = threading.Event()
    made: list[Rendezvous] = []
    make = Rendezvous.__init__

    def late(rendezvous: Rendezvous, folder: Path) -> None:
        begun.set()
        time.sleep(0.3)  # as on a busy disk
        make(rendezvous, folder)
        made.append(rendezvous)

    monkeypatch.setattr(Rendezvous, "__init__", late)
    starting = asyncio.ensure_future(bench.start("echo"))
    assert await asyncio.to_thread(begun.wait, 30)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    (rendezvous,) = made
    assert rendezvous._listener.fileno() == -1
    assert not rendezvous.folder.exists()
    assert await _left(bench) == []


@pytest.mark.podman
async def test_a_layer_that_is_nowhere_is_the_platforms_fault_and_named(bench: Bench) -> None:
    code = bench.layers.of(LayerKind.CODE)
    assert code is not None
    absent = replace(code, digest="0" * 64)
    layers = replace(bench.layers, layers=(*bench.layers.foundation.layers, absent))
    with pytest.raises(LayerUnavailable, match="code layer 000000000000") as caught:
        await bench.start("echo", layers=layers)
    assert caught.value.reason == "artifact_missing"
    assert await _left(bench) == []


@pytest.mark.podman
async def test_a_version_of_another_kind_of_engine_is_told_apart(bench: Bench) -> None:
    assert await bench.engine.suits("python", bench.layers)
    foreign = replace(bench.layers, base="another")
    assert not await bench.engine.suits("python", foreign)
    with pytest.raises(Unsuited):
        await bench.start("echo", layers=foreign)
    assert await _left(bench) == []


@pytest.mark.podman
@pytest.mark.every_way
async def test_a_sweep_takes_only_what_dead_workers_left(bench: Bench) -> None:
    engine_type = type(bench.engine)
    live = replace(bench.config, worker_id=f"live-{uuid.uuid4()}")
    dead = replace(bench.config, worker_id=f"dead-{uuid.uuid4()}")
    foreign = replace(bench.config, installation="another", worker_id=dead.worker_id)
    others = [engine_type(config, bench.engine._code._layers) for config in (live, dead, foreign)]
    own = await bench.start("echo")
    try:
        started = []
        for engine in others:
            await engine.open()
            started.append(await engine.start(bench.spec("echo")))
        assert await bench.engine.sweep(frozenset((live.worker_id,))) >= 1
        assert await bench.engine.sweep(frozenset((live.worker_id,))) == 0
        for sandbox in (own, started[0], started[2]):
            assert (await sandbox.call(call(1))).result == b"1"
        async with asyncio.timeout(5):
            while started[1].reusable:
                await asyncio.sleep(0.01)
    finally:
        for engine in others:
            await engine.close()


@pytest.mark.every_way
@pytest.mark.parametrize(
    ("what", "reusable"),
    [
        ("nothing", True),
        ("ended thread", True),
        ("idle executor", True),
        ("ended child", True),
        ("client", True),
        ("thread", False),
        ("bare thread", False),
        ("busy executor", False),
        ("child", False),
        ("child not waited for", False),
        ("orphan", False),
        ("closed stdout", False),
        ("led stderr elsewhere", False),
        ("descriptors", False),
        ("alarm", False),
        ("ended alarm", True),
    ],
)
async def test_w2_what_a_call_leaves_behind_is_not_met_by_the_next(bench: Bench, what: str, reusable: bool) -> None:
    sandbox = await bench.start("leave")
    for _ in range(2 if reusable else 1):
        outcome = await sandbox.call(call(what))
        assert outcome.reason is None
        assert outcome.result is not None
    assert sandbox.reusable is reusable
    await sandbox.destroy()
    assert await _left(bench) == []


async def test_r7_a_function_that_opens_all_it_may_is_told_where_it_did(bench: Bench) -> None:
    outcome = await bench.run("open_without_end")
    assert (outcome.reason, (outcome.error or {})["type"]) == ("handler_error", "OSError")
    assert "in open_without_end" in (outcome.error or {})["traceback"]


async def test_a_function_may_have_as_many_files_open_as_the_operator_says(bench: Bench) -> None:
    opened = orjson.loads((await bench.run("open_many")).result or b"")
    assert 1024 - 64 < opened[0] < 1024
    assert opened[1] == errno.EMFILE


@pytest.mark.every_way
async def test_w8_a_leak_of_descriptors_ends_the_sandbox_before_it_hurts(bench: Bench) -> None:
    sandbox = await bench.start("leak_descriptor")
    calls = 0
    while sandbox.reusable:
        assert (await sandbox.call(call())).reason is None
        calls += 1
    assert calls == 33


@pytest.mark.docker
@pytest.mark.parametrize(("count", "size"), [(1, 5 * 1024**2), (1, 7 * 1024**2), (1, 300 * 1024), (150, 1)])
async def test_a_sandbox_whose_tmp_fills_up_is_replaced_before_a_call_finds_it_full(
    docker_bench: Bench, count: int, size: int
) -> None:
    sandbox = await docker_bench.start("leave_files")
    left = 0
    while sandbox.reusable:
        outcome = await sandbox.call(call([count, size]))
        assert outcome.result == b'"room was left"', outcome
        left += 1
    assert 1 <= left <= 60


@pytest.mark.docker
async def test_shared_memory_that_calls_leave_behind_ends_the_sandbox_before_it_is_full(docker_bench: Bench) -> None:
    sandbox = await docker_bench.start("leave_shared_memory")
    left = 0
    while sandbox.reusable:
        assert (await sandbox.call(call(128 * 1024))).reason is None
        left += 1
    assert 1 <= left <= 1024


async def test_threads_of_an_async_handlers_loop_are_kept(bench: Bench) -> None:
    sandbox = await bench.start("leave_loop_threads")
    for _ in range(3):
        assert (await sandbox.call(call())).reason is None
        assert sandbox.reusable


@pytest.mark.every_way
async def test_w1_files_survive_in_the_same_sandbox_alone(bench: Bench) -> None:
    sandbox = await bench.start("write_and_leave")
    assert (await sandbox.call(call("a"))).result == b'"a"'
    assert (await sandbox.call(call("b"))).result == b'"ab"'
    assert (await bench.run("write_and_leave", "c")).result == b'"c"'


@pytest.mark.podman
@pytest.mark.every_way
@pytest.mark.docker
@pytest.mark.parametrize("end", ["kill", "stop", "delete"])
async def test_f15_a_container_that_is_killed_from_outside_is_not_the_functions_fault(
    docker_bench: Bench, end: str
) -> None:
    assert isinstance(docker_bench.engine, DockerEngine)
    sandbox = await docker_bench.start("sleep")
    running = asyncio.ensure_future(sandbox.call(call(60, timeout_ms=30_000)))
    await asyncio.sleep(0)  # the call is on its way
    container = docker_bench.engine._client().docker.containers.container(f"containerpub-{sandbox.id}")
    await (container.delete(force=True) if end == "delete" else getattr(container, end)())
    outcome = await running
    # Podman does not tell who stopped a container, only who killed or removed it.
    told = end != "stop" or not docker_bench.on_podman
    assert outcome.reason == ("sandbox_start_failed" if told else "crashed"), outcome
    assert not sandbox.reusable


def _first_process(bench: Bench, sandbox_id: str) -> psutil.Process:
    (file,) = bench.config.socket_dir.glob(f"*/{sandbox_id}/pid")
    return psutil.Process(int(file.read_text().split()[0]))


async def _cpu_s(bench: Bench, sandbox_id: str) -> float:
    """CPU time that a sandbox has used so far."""
    if isinstance(bench.engine, DockerEngine):
        container = bench.engine._client().docker.containers.container(f"containerpub-{sandbox_id}")
        (state,) = await container.stats(stream=False)
        return float(state["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9)
    first = _first_process(bench, sandbox_id)
    times = [process.cpu_times() for process in (first, *first.children(recursive=True))]
    return sum(float(one.user + one.system) for one in times)


async def _end_from_outside(bench: Bench, sandbox_id: str) -> None:
    """As an operator would, or the kernel."""
    if isinstance(bench.engine, DockerEngine):
        await bench.engine._client().docker.containers.container(f"containerpub-{sandbox_id}").delete(force=True)
        return
    first = _first_process(bench, sandbox_id)
    for process in (*first.children(recursive=True), first):
        with suppress(psutil.NoSuchProcess):  # the first process of a namespace takes the others along
            process.kill()
    async with asyncio.timeout(5):
        while first.is_running() and first.status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.01)


async def _left(bench: Bench) -> list[str]:
    """Containers, processes and folders that are there because of ``bench``'s sandboxes."""
    left = [str(folder) for folder in bench.config.socket_dir.glob("*/*") if folder.is_dir()]
    if isinstance(bench.engine, DockerEngine):
        filters = orjson.dumps({"label": [f"containerpub.installation={bench.config.installation}"]}).decode()
        containers = await bench.engine._client().docker.containers.list(all=1, filters=filters)
        left += [container.id for container in containers]
    else:
        mark = str(bench.config.socket_dir)
        for process in psutil.process_iter():
            try:
                if mark in str(process.environ()):
                    left.append(f"process {process.pid} {process.status()} {process.cmdline()[-2:]}")
            except psutil.Error:
                continue
    return left
