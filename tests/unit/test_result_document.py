"""The document of a command function is read alike whether it is small or large, and no large one holds up the loop."""

from __future__ import annotations

import asyncio
import json
import time
import uuid

import pytest

from worker.sandbox.attached import ExitStatus
from worker.sandbox.command_result import judge
from worker.sandbox.contract import Call, CallOutcome
from worker.sandbox.result_document import Unreadable, body_of, error_of

MEGABYTES = 6 * 1024**2
FILLING = "x" * 40_000


def judged(document: bytes, code: int = 0) -> CallOutcome:
    call = Call(job_id=uuid.uuid4(), attempt=1, event=b"{}", timeout_ms=1, max_result_bytes=MEGABYTES, max_log_bytes=1)
    return judge(call, 128, ExitStatus(code=code, out_of_memory=False), document)


@pytest.mark.parametrize("filling", ["", FILLING])
@pytest.mark.parametrize("value", [None, 1.0, 12345678901234567890123, "ü\0", [1, {"a": []}], {"error": "no"}])
def test_a_body_is_the_result_whether_small_or_large(value: object, filling: str) -> None:
    document = json.dumps({"more": filling, "body": value}).encode()
    assert body_of(document) == json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


@pytest.mark.parametrize("filling", ["", FILLING])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "an object with a body"),
        ('{"result": 1}', "an object with a body"),
        ('{"body": NaN}', "does not hold JSON"),
        ('{"body": 1e999}', "does not hold JSON"),
        ('{"body": "\\ud800"}', "does not hold JSON"),
        ('{"body": 1', "does not hold JSON"),
        ('{"body": ' + "[" * 20_000, "does not hold JSON"),
    ],
)
def test_what_holds_no_body_is_told_whether_small_or_large(text: str, says: str, filling: str) -> None:
    with pytest.raises(Unreadable, match=says):
        body_of((" " * len(filling) + text).encode())


@pytest.mark.parametrize("filling", ["", FILLING])
def test_an_error_is_read_whether_small_or_large(filling: str) -> None:
    error = {"type": "Odd", "message": "no\ud800", "traceback": 7, "more": filling}
    document = json.dumps({"body": {"error": error}}).encode()
    assert error_of(document) == {"type": "Odd", "message": "no\\ud800"}
    assert error_of(json.dumps({"body": {"error": "no"}, "more": filling}).encode()) == {
        "type": "Error",
        "message": "no",
    }
    for body in ({}, {"error": {}}, {"error": []}, [], None):
        assert error_of(json.dumps({"body": body, "more": filling}).encode()) == {}


@pytest.mark.parametrize("code", [0, 1])
async def test_a_document_of_nothing_but_brackets_holds_nobody_up(code: int) -> None:
    document = b'{"body":[' + b"[]," * 1_900_000 + b"1]}"
    started = time.thread_time()
    json.loads(document)
    parsed = time.thread_time() - started
    held_up, seen = 0.0, time.perf_counter()

    def look() -> None:
        nonlocal held_up, seen, timer
        now = time.perf_counter()
        held_up, seen = max(held_up, now - seen), now
        timer = loop.call_soon(look)

    loop = asyncio.get_running_loop()
    timer = loop.call_soon(look)
    outcome = await asyncio.to_thread(judged, document, code)
    timer.cancel()
    assert outcome.reason == ("crashed" if code else None)
    assert held_up < parsed / 3
