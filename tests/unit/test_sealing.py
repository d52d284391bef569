"""Sealed texts: what goes in comes out, for the same job and place and with the same key, and for nothing else."""

from __future__ import annotations

import re
from base64 import b64encode
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import sealing
from shared.errors import Unreadable
from shared.sealing import Keyring, Part, from_column, is_sealed, to_column

JOB = UUID("01939393-0000-7000-8000-000000000001")
OTHER = UUID("01939393-0000-7000-8000-000000000002")


def key(name: str, byte: int = 7) -> str:
    return f"{name}:{b64encode(bytes([byte]) * 32).decode()}"


OLD, NEW = key("old", 1), key("2026-11.new_1", 2)
BOTH = Keyring.parse(f"{NEW}, {OLD}")


@given(st.binary(min_size=1, max_size=300), st.sampled_from(Part))
def test_what_is_sealed_comes_back_to_the_byte(text: bytes, part: Part) -> None:
    sealed = BOTH.seal(text, JOB, part)
    assert is_sealed(sealed)
    assert sealed.startswith(BOTH.first_head)
    assert BOTH.open(sealed, JOB, part) == text
    assert from_column(to_column(sealed)) == sealed


@given(st.text(max_size=100))
def test_a_column_of_text_comes_back(text: str) -> None:
    for keyring in (BOTH, Keyring.parse(key("a-name-of-thirty-two-characters_", 3))):
        sealed = keyring.seal_column(text, JOB, Part.LOG)
        assert sealed.isascii()
        assert keyring.open_column(sealed, JOB, Part.LOG) == text.encode("utf-8", "backslashreplace").decode()


def test_the_same_text_is_never_the_same_twice() -> None:
    assert len({BOTH.seal(b'{"body":1}', JOB, Part.PAYLOAD) for _ in range(100)}) == 100


def test_old_keys_open_and_the_first_one_seals() -> None:
    before = Keyring.parse(OLD).seal(b"1", JOB, Part.RESULT)
    assert BOTH.open(before, JOB, Part.RESULT) == b"1"
    after = BOTH.reseal(before, JOB, Part.RESULT)
    assert after.startswith(Keyring.parse(NEW).first_head)
    assert Keyring.parse(NEW).open(after, JOB, Part.RESULT) == b"1"


@pytest.mark.parametrize("text", [b"", b"null", b'{"a":1}', b' [1,"\\u0001"]', b'"\x7f"', b"-1"])
def test_what_was_never_sealed_is_read_as_it_is(text: bytes) -> None:
    for keyring in (BOTH, Keyring()):
        assert keyring.open(text, JOB, Part.RESULT) == text


def test_without_keys_nothing_is_sealed_and_nothing_sealed_is_read() -> None:
    keyring = Keyring()
    assert not keyring.seals
    assert keyring.seal(b"1", JOB, Part.RESULT) == b"1"
    with pytest.raises(Unreadable, match='"old", which is not among ENCRYPTION_KEYS'):
        keyring.open(Keyring.parse(OLD).seal(b"1", JOB, Part.RESULT), JOB, Part.RESULT)


def test_a_sealed_text_belongs_to_its_job_and_its_place() -> None:
    sealed = BOTH.seal(b'{"role":"admin"}', JOB, Part.PAYLOAD)
    for job, part in ((OTHER, Part.PAYLOAD), *((JOB, part) for part in Part if part is not Part.PAYLOAD)):
        with pytest.raises(Unreadable, match="not what was sealed"):
            BOTH.open(sealed, job, part)


def test_another_key_of_the_same_name_is_the_wrong_one() -> None:
    with pytest.raises(Unreadable):
        Keyring.parse(key("old", 9)).open(Keyring.parse(OLD).seal(b"1", JOB, Part.RESULT), JOB, Part.RESULT)


@given(st.data())
def test_whatever_is_changed_is_unreadable_or_not_sealed_at_all(data: st.DataObject) -> None:
    sealed = BOTH.seal(b'{"body":"x"}', JOB, Part.PAYLOAD)
    at = data.draw(st.integers(1, len(sealed) - 1))
    changed = sealed[:at] + bytes([sealed[at] ^ data.draw(st.integers(1, 255))]) + sealed[at + 1 :]
    for broken in (changed, sealed[:at], sealed + b"\x00"):
        with pytest.raises(Unreadable):
            BOTH.open(broken, JOB, Part.PAYLOAD)


def test_a_salt_seals_a_bounded_number_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "_SEALS_A_SALT", 3)
    monkeypatch.setattr(sealing, "_CIPHERS_KEPT", 2)
    keyring, head = Keyring.parse(OLD), len(Keyring.parse(OLD).first_head)
    sealed = [keyring.seal(b"1", JOB, Part.LOG) for _ in range(10)]
    salts = [text[head : head + 16] for text in sealed]
    assert len(set(salts)) == 4
    assert salts[0] == salts[1] == salts[2] != salts[3]
    assert [keyring.open(text, JOB, Part.LOG) for text in sealed] == [b"1"] * 10


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("just-a-word", "key 1 must be written as id:base64"),
        (f"{OLD},:{'A' * 44}", "key 2 must be written as id:base64"),
        (f"{'x' * 33}:{'A' * 44}", "key 1 must be written as id:base64"),
        ("a b:" + "A" * 44, "key 1 must be written as id:base64"),
        ("k:%%%", 'key 1 ("k") is not base64'),
        ("k:" + b64encode(b"short").decode(), 'key 1 ("k") has 5 bytes and must have 32'),
        (f"{OLD},{key('old', 3)}", 'two keys are named "old"'),
    ],
)
def test_malformed_keys_are_refused_by_what_is_wrong_without_showing_them(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        Keyring.parse(text)
    assert "AAAA" not in str(caught.value)


def test_keys_are_not_shown() -> None:
    assert b64encode(bytes([1]) * 32).decode() not in repr(vars(BOTH))
    assert repr(bytes([1]) * 32) not in repr(vars(BOTH))


def test_an_id_of_asyncpg_s_kind_is_the_same_job() -> None:
    class Subclass(UUID):
        pass

    job = uuid4()
    sealed = BOTH.seal(b"1", Subclass(str(job)), Part.RESULT)
    assert BOTH.open(sealed, job, Part.RESULT) == b"1"
