"""Captured output: whose it is, how much is kept, and that characters survive being cut."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from worker.sandbox.log import LogEntry, LogStream
from worker.sandbox.output import Output


@pytest.fixture
def pairs() -> Iterator[tuple[socket.socket, socket.socket, socket.socket, socket.socket]]:
    ours_out, theirs_out = socket.socketpair()
    ours_err, theirs_err = socket.socketpair()
    for one in (ours_out, ours_err):
        one.setblocking(False)
    yield ours_out, theirs_out, ours_err, theirs_err
    for one in (ours_out, theirs_out, ours_err, theirs_err):
        one.close()


Pairs = tuple[socket.socket, socket.socket, socket.socket, socket.socket]


def entry(stream: LogStream, level: str, message: str) -> LogEntry:
    return LogEntry(stream=stream, level=level, message=message)


async def test_output_before_the_first_call_is_the_first_calls(pairs: Pairs) -> None:
    ours_out, out, ours_err, _ = pairs
    output = Output(ours_out, ours_err, 100)
    out.sendall(b"starting\n")
    await asyncio.sleep(0)
    output.begin(100)
    out.sendall(b"running\n")
    assert output.finish() == ((entry(LogStream.STDOUT, "info", "starting\nrunning\n"),), False)
    output.close()


async def test_output_between_calls_is_dropped(pairs: Pairs) -> None:
    ours_out, out, ours_err, err = pairs
    output = Output(ours_out, ours_err, 100)
    output.begin(100)
    output.finish()
    out.sendall(b"late")
    err.sendall(b"later")
    output.begin(100)
    err.sendall(b"now")
    assert output.finish() == ((entry(LogStream.STDERR, "error", "now"),), False)
    output.close()


async def test_streams_and_entries_keep_their_order(pairs: Pairs) -> None:
    ours_out, out, ours_err, err = pairs
    output = Output(ours_out, ours_err, 100)
    output.begin(100)
    out.sendall(b"a")
    output.add("warning", "b")
    out.sendall(b"c")
    output.add("no such level", "")
    err.sendall(b"d")
    logs, truncated = output.finish()
    assert logs == (
        entry(LogStream.STDOUT, "info", "a"),
        entry(LogStream.LOGGER, "warning", "b"),
        entry(LogStream.STDOUT, "info", "c"),
        entry(LogStream.LOGGER, "info", ""),
        entry(LogStream.STDERR, "error", "d"),
    )
    assert not truncated
    output.close()


async def test_a_character_that_was_cut_by_another_stream_is_whole(pairs: Pairs) -> None:
    ours_out, out, ours_err, _ = pairs
    output = Output(ours_out, ours_err, 100)
    output.begin(100)
    out.sendall("ü".encode()[:1])
    output.add("info", "between")
    out.sendall("ü".encode()[1:])
    logs, _ = output.finish()
    assert logs == (entry(LogStream.LOGGER, "info", "between"), entry(LogStream.STDOUT, "info", "ü"))
    output.close()


@pytest.mark.parametrize(("sent", "kept"), [(9, False), (10, False), (11, True)])
async def test_the_limit_is_exact(pairs: Pairs, sent: int, kept: bool) -> None:
    ours_out, out, ours_err, _ = pairs
    output = Output(ours_out, ours_err, 100)
    output.begin(10)
    out.sendall(b"x" * sent)
    logs, truncated = output.finish()
    assert truncated is kept
    assert logs[0].message == "x" * min(sent, 10)
    output.close()


async def test_truncation_is_this_calls_alone(pairs: Pairs) -> None:
    ours_out, out, ours_err, _ = pairs
    output = Output(ours_out, ours_err, 100)
    output.begin(1)
    out.sendall(b"xx")
    assert output.finish()[1]
    output.begin(1)
    out.sendall(b"x")
    assert not output.finish()[1]
    output.close()


async def test_empty_entries_are_not_free(pairs: Pairs) -> None:
    ours_out, _, ours_err, _ = pairs
    output = Output(ours_out, ours_err, 100)
    output.begin(10)
    for _ in range(1000):
        output.add("info", "")
    logs, truncated = output.finish()
    assert len(logs) == 10
    assert truncated
    output.close()


async def test_a_stream_that_ends_is_no_failure(pairs: Pairs) -> None:
    ours_out, out, ours_err, err = pairs
    output = Output(ours_out, ours_err, 100)
    output.begin(100)
    out.sendall(b"last")
    out.close()
    err.close()
    for _ in range(5):
        await asyncio.sleep(0)
    assert output.finish() == ((entry(LogStream.STDOUT, "info", "last"),), False)
    output.close()
    output.close()
