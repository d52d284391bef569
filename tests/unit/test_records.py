"""Records: what goes in comes out, to the byte, also what the scripts write; garbage is refused by one error."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.jobs import JobStatus
from shared.queue.records import EPOCH_COUNTER_BITS, Record, epoch_number, epoch_text
from tests.seeds import message, record

PART = st.none() | st.binary(max_size=100)
NUMBER = st.none() | st.floats(0, 1e9, allow_nan=False)

RECORDS = st.builds(
    Record,
    id=st.uuids(),
    user_id=st.uuids(),
    function_id=st.uuids(),
    version_id=st.uuids(),
    queue=st.sampled_from(["invoke", "build"]),
    status=st.sampled_from([status.value for status in JobStatus]),
    at_ms=st.floats(0, 2e12),
    reason=st.none() | st.just("timeout"),
    outcome=st.none() | st.just("failed"),
    attempt=st.integers(0, 10),
    lost=st.integers(0, 10),
    epoch=st.none() | st.just("3-14"),
    worker=st.text("abc-1", max_size=20),
    started_ms=NUMBER,
    start_kind=st.none() | st.just("warm"),
    exit_code=st.none() | st.integers(-1, 255),
    queue_ms=NUMBER,
    run_ms=NUMBER,
    peak_memory_bytes=st.none() | st.integers(0, 2**40),
    logs_truncated=st.booleans(),
    request=st.none() | st.just({"path": "/ü\n", "query": {"id": '"id":"x'}}) | st.just("AQNrZXk="),
    kind=st.sampled_from(["invoke", "deploy", "delete"]),
    result=PART,
    error=PART,
    payload=PART,
    logs=PART,
)


@given(RECORDS)
def test_record_comes_back_as_it_was(one: Record) -> None:
    assert Record.decode(one.encode()) == one


@pytest.mark.parametrize(
    "result",
    [
        b"",
        b"null",
        b"123456789012345678901234567890",
        b"1.50",
        '"ä 𝄞 \\u0000 \\ud800"'.encode(),
        b'"a\\n"\n\n',
        b"\x00\xff",
    ],
)
def test_result_travels_verbatim(result: bytes) -> None:
    assert Record.decode(record(message(), result=result).encode()).result == result


def test_empty_part_is_not_a_missing_one() -> None:
    for parts in itertools.product((None, b"", b"x"), repeat=4):
        result, error, payload, logs = parts
        one = record(message(), result=result, error=error, payload=payload, logs=logs)
        back = Record.decode(one.encode())
        assert (back.result, back.error, back.payload, back.logs) == parts


def test_id_stands_first_for_those_who_read_nothing_else() -> None:
    one = record(message(), request={"query": {"id": "another"}})
    assert one.encode().startswith(b'{"id":"%b"' % str(one.id).encode())


def test_what_a_script_writes_is_a_record() -> None:
    job = message()
    line = {
        "id": str(job.id),
        "user": str(job.user_id),
        "function": str(job.function_id),
        "version": str(job.version_id),
        "queue": "invoke",
        "status": "failed",
        "reason": "queue_timeout",
        "kind": "invoke",
        "attempt": 0,
        "lost": 0,
        "at_ms": 1.7e12,
    }
    back = Record.decode(json.dumps(line).encode() + b"\n")
    assert (back.id, back.reason, back.outcome, back.result) == (job.id, "queue_timeout", None, None)


@given(st.binary(max_size=200))
def test_garbage_is_no_record(garbage: bytes) -> None:
    with pytest.raises(ValueError):
        Record.decode(garbage)


@pytest.mark.parametrize(
    "line", [b"[]", b"1", b"null", b'"x"', b"{}", b'{"sizes":5}', b'{"sizes":["a"]}', b'{"sizes":[1]}']
)
def test_json_that_is_no_record_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError):
        Record.decode(line + b"\n")


@given(RECORDS, st.data())
def test_broken_record_is_refused_or_another_record(one: Record, data: st.DataObject) -> None:
    raw = one.encode()
    cut = data.draw(st.integers(0, len(raw)))
    broken = raw[:cut] + data.draw(st.binary(max_size=4)) + raw[cut + 1 :]
    try:
        Record.decode(broken)
    except ValueError:
        pass


@pytest.mark.parametrize("cut", [1, 5])
def test_truncated_record_is_refused(cut: int) -> None:
    raw = record(message(), result=b"0123456789").encode()
    with pytest.raises(ValueError):
        Record.decode(raw[:-cut])
    with pytest.raises(ValueError):
        Record.decode(raw + b"x")


@given(
    st.tuples(st.integers(1, 2**22), st.integers(1, 2**40 - 1)),
    st.tuples(st.integers(1, 2**22), st.integers(1, 2**40 - 1)),
)
def test_epochs_compare_like_their_pairs(one: tuple[int, int], other: tuple[int, int]) -> None:
    numbers = [epoch_number(f"{generation}-{counter}") for generation, counter in (one, other)]
    assert (numbers[0] < numbers[1]) == (one < other)
    assert max(numbers) < 2**63, "it must fit Postgres's bigint"


def test_epoch_counter_has_forty_bits() -> None:
    assert EPOCH_COUNTER_BITS == 40


@given(st.integers(1, 2**20), st.integers(0, 2**EPOCH_COUNTER_BITS - 1))
def test_epoch_is_told_as_it_was(generation: int, counter: int) -> None:
    assert epoch_text(epoch_number(f"{generation}-{counter}")) == f"{generation}-{counter}"
