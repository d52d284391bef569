"""Frames that a hostile function sends over its control connection cost the worker's event loop next to nothing."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import pytest
from engines import Bench, bench, call, engine_config, short_dir

from worker.sandbox.result_check import ON_LOOP_BYTES

pytestmark = pytest.mark.alone
__all__ = ["bench", "engine_config", "short_dir"]

MOST_S = 0.010
"""Of processor time that one turn of the event loop may take: a neighbour's call waits for no more."""
_OWN = '{"nonce":"NONCE",'
_STRANGE = '{"nonce":"abcdefabcdefabcd",'
_FIGURES = '"cpu_ms":0,"peak_memory_bytes":0'
_MB = 1024 * 1024

Sent = list[tuple[int, str, str, int, str]]


class Turns:
    """The longest turn of the event loop, by processor time, so that a busy machine changes nothing."""

    longest_s = 0.0


@asynccontextmanager
async def watched() -> AsyncIterator[Turns]:
    turns, loop, over, last = Turns(), asyncio.get_running_loop(), False, 0.0

    def turn() -> None:
        nonlocal last
        now = time.thread_time()
        turns.longest_s = max(turns.longest_s, now - last)
        last = now
        if not over:
            loop.call_later(0.0005, turn)

    gc.collect()
    gc.freeze()  # what the tests hold is none of the worker's
    last = time.thread_time()
    turn()
    try:
        yield turns
    finally:
        over = True
        turn()  # the one in which the call ended
        gc.unfreeze()


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param([(4, _OWN + '"kind":"new","what":[', "[],", 1_300_000, "[]]}")], id="unknown kind"),
        pytest.param([(4, _STRANGE + '"kind":"log","level":[', "[],", 1_300_000, "[]]}")], id="unknown nonce"),
        pytest.param([(4, _OWN + '"kind":"error","error":[', "[],", 1_300_000, "[]]}")], id="error of arrays"),
        pytest.param([(4, _OWN + '"kind":"log","message":"', "x", 5 * _MB, '"}')], id="large entry"),
        pytest.param([(9, _OWN + '"kind":"log","x":[', "[],", 340_000, "[]]}")], id="heads of a megabyte"),
        pytest.param([(9, _OWN + '"kind":"log","x":{', '"a":{},', 140_000, '"b":1}}')], id="objects"),
        pytest.param([(400, _OWN + '"kind":"log","x":[', "[],", 6_000, "[]]}")], id="many middling ones"),
        pytest.param([(60_000, _OWN + '"kind":"x"}', "", 0, "")], id="many small ones"),
        pytest.param([(9, _STRANGE + '"kind":"result"}\n', "[],", 340_000, "")], id="results of another call"),
        pytest.param([(9, _OWN + '"kind":"seen","seen":{', '"a":"",', 140_000, '"b":""}}')], id="files seen"),
    ],
)
async def test_frames_that_are_no_answer_cost_by_their_size_and_end_the_sandbox(bench: Bench, sent: Sent) -> None:
    sandbox = await bench.start("send_frames")
    async with watched() as turns:
        outcome = await sandbox.call(call(sent))
    assert turns.longest_s < MOST_S
    assert outcome.reason == "crashed", outcome
    assert not sandbox.reusable


async def test_a_deeply_nested_head_is_refused(bench: Bench) -> None:
    sandbox = await bench.start("send_frames")
    async with watched() as turns:
        outcome = await sandbox.call(call([(1, _OWN + '"kind":"log","x":', "[", 500_000, "")]))
    assert turns.longest_s < MOST_S
    assert outcome.reason == "crashed"


@pytest.mark.parametrize(
    ("begin", "filling", "times", "end", "reason"),
    [
        ("[", "[],", 1_900_000, "[]]", None),
        ("[", '{"a":1},', 700_000, "1]", None),
        ("[", "[],", 1_900_000, "[]", "invalid_result"),
        ("", "[", 1_000_000, "", "invalid_result"),
        ('"', "\\ud83d\\ude00", 400_000, '"', None),
        ('{"status":200,"headers":{"a":"b"},"body":[', "[],", 1_900_000, "[]]}", None),
        ('{"status":200,"body":1,"headers":{', '"a":"b",', 100_000, '"c":"d"}}', None),
    ],
)
async def test_a_large_result_is_checked_and_costs_the_others_nothing(
    bench: Bench, begin: str, filling: str, times: int, end: str, reason: str | None
) -> None:
    """A quick answer of a hostile function: made of whatever takes a parser longest."""
    sandbox = await bench.start("send_frames")
    head = _OWN + '"kind":"result","response":true,' + _FIGURES + "}\n"
    async with watched() as turns:
        outcome = await sandbox.call(call([(1, head + begin, filling, times, end)]))
    assert turns.longest_s < MOST_S
    assert outcome.reason == reason
    if reason is None:
        assert outcome.result == (begin + filling * times + end).encode()
        assert outcome.is_response == begin.startswith('{"status":200,"headers"')


async def test_a_large_answer_of_an_honest_web_function_is_still_an_answer(bench: Bench) -> None:
    head = _OWN + '"kind":"result","response":true,' + _FIGURES + '}\n{"status":200,"headers":[["a","b"]],"body":"'
    for size in (10, ON_LOOP_BYTES + 1):
        sandbox = await bench.start("send_frames")
        outcome = await sandbox.call(call([(1, head, "x", size, '"}')]))
        assert outcome.reason is None, outcome
        assert outcome.is_response


async def test_an_honest_function_logs_and_reports_as_much_as_it_may(bench: Bench) -> None:
    outcome = await bench.run("log_many", 60_000, timeout_ms=20_000)
    assert outcome.reason is None, outcome
    assert outcome.logs_truncated
    outcome = await bench.run("log_long", 300_000)
    assert outcome.reason is None, outcome
    (entry,) = (entry for entry in outcome.logs if entry.stream == "logger")
    assert 250_000 < len(entry.message.encode()) <= 256 * 1024


async def test_entries_without_words_are_not_free(bench: Bench) -> None:
    sent = [(20_000, _OWN + '"kind":"log","level":"info","message":""}', "", 0, "")]
    async with watched() as turns:
        outcome = await bench.run("send_frames", sent)
    assert outcome.result == orjson.dumps("unharmed")
    assert outcome.logs_truncated
    assert len(outcome.logs) < 10_000
    assert turns.longest_s < 2 * MOST_S
