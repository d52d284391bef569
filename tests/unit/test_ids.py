"""Identifiers: UUIDv7, sortable, unguessable."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.ids import _uuid7, from_short, new_id, short, time_of


def test_id_is_a_uuid_of_version_7_and_the_standard_variant() -> None:
    made = new_id()
    assert made.version == 7
    assert made.variant == "specified in RFC 4122"


def test_time_is_that_of_its_making_to_the_millisecond() -> None:
    before = datetime.now(UTC)
    made = time_of(new_id())
    assert before - timedelta(milliseconds=1) <= made <= datetime.now(UTC)
    assert time_of(_uuid7(1_700_000_000_123)) == datetime(2023, 11, 14, 22, 13, 20, 123000, tzinfo=UTC)


def test_later_ids_sort_later_as_text_and_as_bytes() -> None:
    ids = [_uuid7(unix_ms) for unix_ms in (0, 1, 255, 256, 1_700_000_000_000, 2**48 - 1)]
    assert sorted(ids, key=str) == ids
    assert sorted(ids, key=lambda item: item.bytes) == ids


def test_ids_of_one_millisecond_differ_in_74_random_bits() -> None:
    ids = [_uuid7(1_700_000_000_000) for _ in range(10_000)]
    assert len(set(ids)) == len(ids)
    always = never = ids[0].int
    for item in ids:
        always &= item.int
        never |= item.int
    assert (always ^ never).bit_count() == 74


def test_other_uuids_have_no_time() -> None:
    for other in (uuid4(), UUID(int=0), UUID(int=2**128 - 1)):
        with pytest.raises(ValueError, match="UUIDv7"):
            time_of(other)


@given(st.uuids())
def test_short_form_has_22_characters_and_comes_back(identifier: UUID) -> None:
    text = short(identifier)
    assert len(text) == 22
    assert text.isascii()
    assert from_short(text) == identifier


@pytest.mark.parametrize(
    "text", ["", "-", "A" * 21, "A" * 23, "A" * 21 + "B", "ä" * 22, "A" * 20 + " =", str(UUID(int=7 << 76))]
)
def test_what_is_no_short_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        from_short(text)
