"""The tail of a call: a subscriber gets all of it, from the beginning, whatever the pieces are."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.sandbox.log import LogStream
from worker.sandbox.output import entries
from worker.sandbox.tail import Progress, Tail

Kept = list[tuple[LogStream, str, bytes]]


def told(tail: Tail) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in tail.news():
        found[entry.stream] = found.get(entry.stream, "") + entry.message
    return found


def test_nothing_is_told_until_somebody_looks_on() -> None:
    calls: list[Tail] = []
    tail = Tail(calls.append)
    kept: Kept = []
    tail.follow(kept)
    kept.append((LogStream.STDOUT, "info", b"one"))
    tail.grew()
    assert calls == []
    tail.subscribe()
    assert calls == [tail]
    assert told(tail) == {"stdout": "one"}
    kept.append((LogStream.STDOUT, "info", b"two"))
    tail.grew()
    assert calls == [tail, tail]
    assert told(tail) == {"stdout": "two"}
    assert told(tail) == {}
    tail.subscribe()
    assert told(tail) == {"stdout": "onetwo"}


@given(st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(min_size=1, max_size=6)), max_size=30))
def test_it_tells_what_is_stored_in_the_end_however_it_is_cut(chunks: list[tuple[str, bytes]]) -> None:
    kept: Kept = []
    tail = Tail(lambda _: None)
    tail.follow(kept)
    heard: dict[str, str] = {"stdout": "", "stderr": ""}
    for name, chunk in chunks:
        kept.append((LogStream(name), "info", chunk))
        for stream, text in told(tail).items():
            heard[stream] += text
    for stream, text in heard.items():
        stored = "".join(entry.message for entry in entries(kept) if entry.stream == stream)
        assert stored.startswith(text)
        assert len(stored) - len(text) <= 4 * 3  # a character that never came to its end, escaped


@pytest.mark.parametrize(
    ("fraction", "message"), [(True, ""), ("0.5", ""), (None, ""), (-0.1, ""), (1.1, ""), (math.nan, ""), (0.5, None)]
)
def test_progress_that_makes_no_sense_is_ignored(fraction: object, message: object) -> None:
    calls: list[Tail] = []
    tail = Tail(calls.append)
    tail.report(fraction, message)
    assert (tail.progress, calls) == (None, [])
    tail.report(1, "x" * 5000)
    assert tail.progress == Progress(fraction=1.0, message="x" * 1024)
