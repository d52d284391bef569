"""Frames: whatever a sandbox sends becomes a frame, a refusal, or a wait for more; never a surprise."""

from __future__ import annotations

import uuid

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.sandbox.contract import Call
from worker.sandbox.wire import Frame, FrameReader, GarbledFrame, OversizeFrame, encode_call

NONCE = b"0123456789abcdef"


def frame(rest: bytes = b',"kind":"result"}', result: bytes | None = b"1", nonce: bytes = NONCE) -> bytes:
    body = b'{"nonce":"' + nonce + b'"' + rest
    if result is not None:
        body += b"\n" + result
    return len(body).to_bytes(4, "big") + body


def read(data: bytes, limit: int = 1000) -> list[Frame]:
    reader = FrameReader(limit)
    reader.feed(data)
    frames = []
    while (one := reader.next()) is not None:
        frames.append(one)
    return frames


def test_a_call_is_one_frame_with_the_event_verbatim() -> None:
    call = Call(
        job_id=uuid.uuid4(),
        attempt=2,
        event=b'{"body": 1.50, "text": "\xc3\xbc"}',
        timeout_ms=1500,
        max_result_bytes=10,
        max_log_bytes=20,
    )
    data = encode_call(call, NONCE.decode())
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    assert data[4:].startswith(b'{"nonce":"' + NONCE + b'"')
    assert call.event in data
    told = orjson.loads(data[4:])
    assert told["event"] == {"body": 1.5, "text": "ü"}
    assert (told["job_id"], told["attempt"]) == (str(call.job_id), 2)
    assert (told["max_result_bytes"], told["max_log_bytes"]) == (10, 20)


def test_a_result_is_what_follows_the_first_newline() -> None:
    (one,) = read(frame(result=b'"a"\n'))
    assert one == Frame(nonce=NONCE, meta={"nonce": NONCE.decode(), "kind": "result"}, result=b'"a"\n')


def test_a_frame_without_a_newline_has_no_result() -> None:
    (one,) = read(frame(result=None))
    assert one.result is None


@given(st.lists(st.binary(max_size=60), max_size=5), st.integers(1, 50))
def test_frames_are_the_same_however_they_are_cut(results: list[bytes], size: int) -> None:
    data = b"".join(frame(result=result) for result in results)
    reader = FrameReader(1000)
    found = []
    for start in range(0, len(data), size):
        reader.feed(data[start : start + size])
        while (one := reader.next()) is not None:
            found.append(one.result)
    assert found == results


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_or_waited_for(data: bytes) -> None:
    try:
        frames = read(data)
    except (GarbledFrame, OversizeFrame):
        return
    for one in frames:
        assert one.meta["nonce"] == one.nonce.decode()


@given(st.binary(max_size=60), st.integers(0, 60))
def test_a_damaged_frame_never_passes_silently_as_another_nonce(noise: bytes, at: int) -> None:
    data = bytearray(frame())
    data[at : at + len(noise)] = noise
    try:
        frames = read(bytes(data))
    except (GarbledFrame, OversizeFrame):
        return
    for one in frames:
        assert isinstance(one.meta, dict)


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\0",
        b"\0\0\0\x05hello",
        b"\0\0\0\x20x",
        b"\0\0\0\x40" + frame(),
        b"\x7f\xff\xff\xffgarbage that goes on for a while",
        frame(rest=b" and then no JSON"),
        frame(rest=b""),
    ],
)
def test_bytes_that_can_be_no_frame_are_refused_at_once(data: bytes) -> None:
    with pytest.raises(GarbledFrame):
        read(data)


def test_a_frame_over_the_limit_is_refused_from_its_beginning() -> None:
    data = (2**31).to_bytes(4, "big") + b'{"nonce":"' + NONCE + b'"'
    with pytest.raises(OversizeFrame) as refused:
        read(data)
    assert refused.value.nonce == NONCE


def test_a_frame_at_the_limit_passes() -> None:
    data = frame(result=b"x" * 100)
    assert len(read(data, limit=len(data) - 4)) == 1
    with pytest.raises(OversizeFrame):
        read(data, limit=len(data) - 5)


def test_only_the_answer_to_the_running_call_may_be_large() -> None:
    reader = FrameReader(100)
    reader.nonce, reader.answer_bytes = NONCE, 1000
    reader.feed(frame(result=b"x" * 500))
    assert reader.next() is not None
    reader.feed(frame(result=b"x" * 500, nonce=b"f" * 16))
    with pytest.raises(OversizeFrame) as refused:
        reader.next()
    assert refused.value.nonce == b"f" * 16


def test_a_head_is_small_even_where_the_frame_may_be_large() -> None:
    reader = FrameReader(100)
    reader.nonce, reader.answer_bytes = NONCE, 1000
    reader.feed(frame(rest=b',"kind":"result","x":"' + b"x" * 200 + b'"}')[:180])
    with pytest.raises(GarbledFrame):
        reader.next()


def test_what_a_head_has_beside_what_is_known_is_left_out() -> None:
    (one,) = read(frame(rest=b',"kind":"log","level":"info","unknown":[[],{"a":[]}]}', result=None))
    assert one.meta == {"nonce": NONCE.decode(), "kind": "log", "level": "info"}


def test_a_member_of_the_wrong_kind_leaves_what_the_frame_calls_itself() -> None:
    (one,) = read(frame(rest=b',"kind":"error","reason":[[]]}', result=None))
    assert one.meta == {"nonce": NONCE.decode(), "kind": "error"}
    (other,) = read(frame(rest=b',"kind":["error"]}', result=None))
    assert "kind" not in other.meta
