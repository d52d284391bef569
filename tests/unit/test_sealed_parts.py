"""What a worker seals of an attempt, and how it is read again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import orjson
import pytest

from shared import sealing
from shared.artifacts import LocalStore
from shared.ids import new_id
from shared.payload_store import PayloadStore
from shared.sealing import Keyring, Part, from_column, new_key
from worker.consume.sealed import sealed_parts
from worker.sandbox.contract import CallOutcome
from worker.sandbox.log import LogEntry, LogStream

EVENT = b'{"body":{"a":1},"headers":{"X-Name":"n","Cookie":"c"},"path":"/p"}'


def payload_store(keys: str) -> PayloadStore:
    return PayloadStore(Keyring.parse(keys), LocalStore(Path("never-touched")), inline_bytes=1000)


def outcome(count: int) -> CallOutcome:
    entries = tuple(LogEntry(stream=LogStream.LOGGER, level="info", message=f"line {n}\x00") for n in range(count))
    return CallOutcome(reason="handler_error", result=b'"r"', error={"type": "E", "message": "m"}, logs=entries)


@pytest.mark.parametrize("count", [0, 3, 1500])
async def test_parts_are_sealed_each_for_its_place(count: int) -> None:
    keeper, job = payload_store(new_key()), new_id()
    keyring = keeper.keyring
    parts = await sealed_parts(job, EVENT, outcome(count), keeper)
    assert parts.result is not None
    assert parts.error is not None
    assert isinstance(parts.request, str)
    assert keyring.open(parts.result, job, Part.RESULT) == b'"r"'
    assert orjson.loads(keyring.open(parts.error, job, Part.ERROR)) == {"type": "E", "message": "m"}
    request = orjson.loads(keyring.open(from_column(parts.request), job, Part.REQUEST))
    assert request == {"headers": {"x-name": "n"}, "path": "/p"}
    lines = orjson.loads(parts.logs or b"[]")
    assert len(lines) == count
    for number, (stream, level, message, is_sealed) in enumerate(lines):
        assert (stream, level, is_sealed) == ("logger", "info", True)
        assert keyring.open_column(message, job, Part.LOG) == f"line {number}\\x00"


async def test_without_keys_they_are_as_the_function_gave_them() -> None:
    parts = await sealed_parts(new_id(), EVENT, outcome(1), payload_store(""))
    assert (parts.result, parts.request) == (b'"r"', {"headers": {"x-name": "n"}, "path": "/p"})
    assert orjson.loads(parts.logs or b"") == [["logger", "info", "line 0\x00"]]


async def test_nothing_is_said_of_a_call_that_the_function_never_got() -> None:
    parts = await sealed_parts(new_id(), b"", CallOutcome(reason="sandbox_start_failed"), payload_store(new_key()))
    assert (parts.request, parts.result, parts.error, parts.logs) == (None, None, None, None)


async def test_threads_that_seal_at_a_time_do_not_mix_their_salts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "_SEALS_A_SALT", 3)
    keyring, job = Keyring.parse(new_key()), new_id()

    def many() -> list[bytes]:
        return [keyring.seal(b"1", job, Part.LOG) for _ in range(2000)]

    for sealed in await asyncio.gather(*(asyncio.to_thread(many) for _ in range(4))):
        assert {keyring.open(text, job, Part.LOG) for text in sealed} == {b"1"}
