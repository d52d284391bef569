"""Identifiers: UUIDv7, sortable, unguessable."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from shared.ids import _uuid7, new_id, time_of


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
