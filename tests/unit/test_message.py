"""Messages: what goes in comes out, to the byte; what is not a message is refused by one error."""

from __future__ import annotations

import string
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.ids import new_id, short
from shared.jobs import JobKind
from shared.queue.message import NO_VERSION, JobMessage, UnreadableMessage, queue_of
from tests.seeds import message

MESSAGES = st.builds(
    JobMessage,
    id=st.uuids(),
    kind=st.sampled_from(JobKind),
    user_id=st.uuids(),
    function_id=st.uuids(),
    version_id=st.uuids() | st.just(NO_VERSION),
    concurrency=st.integers(0, 10_000),
    attempt=st.integers(1, 100),
    lost=st.integers(0, 100),
    deadline_ms=st.integers(0, 2**45),
    priority=st.integers(-1, 1),
    reply=st.just("-") | st.text(string.hexdigits, min_size=32, max_size=32),
    enqueued_ms=st.integers(0, 2**45),
    payload=st.binary(max_size=200),
)


@given(MESSAGES)
def test_message_comes_back_as_it_was(job: JobMessage) -> None:
    assert JobMessage.decode(str(job.id), job.encode()) == job


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        b'{"body":123456789012345678901234567890}',
        b'{"body":1.50, "x":1e2}',
        '{"body":"ä 𝄞 \\u0000 \\ud800"}'.encode(),
        b'{"body":"line\\nline"}\n\n{"second":"line"}',
        bytes(range(256)),
    ],
)
def test_payload_travels_verbatim(payload: bytes) -> None:
    job = message(payload=payload)
    assert JobMessage.decode(str(job.id), job.encode()).payload == payload


def test_fields_come_first_in_a_line_with_those_of_the_scripts_in_front() -> None:
    job = message(concurrency=3, attempt=2, lost=1, deadline_ms=9, priority=-1, reply="api")
    line = job.encode().split(b"\n", 1)[0].decode()
    names = " ".join(short(one) for one in (job.user_id, job.function_id, job.version_id))
    assert line == f"{names} 3 2 1 9 api -1 invoke {job.enqueued_ms}"


def test_field_that_a_later_release_added_makes_a_message_unreadable() -> None:
    job = message()
    line, payload = job.encode().split(b"\n", 1)
    with pytest.raises(UnreadableMessage):
        JobMessage.decode(str(job.id), line + b" more\n" + payload)


@given(st.binary(max_size=300))
def test_garbage_is_unreadable(garbage: bytes) -> None:
    with pytest.raises(UnreadableMessage):
        JobMessage.decode(str(new_id()), garbage)


@given(MESSAGES, st.data())
def test_broken_message_is_unreadable_or_another_message(job: JobMessage, data: st.DataObject) -> None:
    raw = job.encode()
    cut = data.draw(st.integers(0, len(raw)))
    broken = raw[:cut] + data.draw(st.binary(max_size=4)) + raw[cut + 1 :]
    try:
        JobMessage.decode(str(job.id), broken)
    except UnreadableMessage:
        pass


def test_job_of_an_unknown_kind_is_unreadable() -> None:
    raw = message().encode().replace(b" invoke ", b" juggle ")
    with pytest.raises(UnreadableMessage):
        JobMessage.decode(str(new_id()), raw)


def test_q1_pickle_is_unreadable_and_ends_nothing() -> None:
    # What arq's default serializer would have written, with a call in it.
    pickled = b"cbuiltins\nexec\n(Vraise SystemExit\ntR."
    with pytest.raises(UnreadableMessage):
        JobMessage.decode(str(uuid4()), pickled + b"\n")


@pytest.mark.parametrize(
    ("kind", "queue"), [(JobKind.INVOKE, "invoke"), (JobKind.DEPLOY, "build"), (JobKind.DELETE, "build")]
)
def test_builds_travel_apart_from_invokes(kind: JobKind, queue: str) -> None:
    assert queue_of(kind) == queue
    assert message(kind=kind).queue == queue


def test_no_version_is_the_nil_uuid() -> None:
    assert UUID(int=0) == NO_VERSION
