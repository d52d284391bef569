"""Slices of JSON texts, against a parser."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.jsontext import elements, member

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
LAYOUTS = st.sampled_from(
    [{"separators": (",", ":")}, {"indent": 2}, {"separators": (" ,\n", "\t: ")}, {"ensure_ascii": False}]
)


@given(st.lists(VALUES, max_size=6), LAYOUTS)
def test_elements_are_those_of_a_parser(array: list[object], layout: dict[str, object]) -> None:
    text = json.dumps(array, **layout).encode()  # type: ignore[arg-type]
    assert [json.loads(part) for part in elements(text)] == array


@given(st.dictionaries(st.text(), VALUES, max_size=4), VALUES, LAYOUTS)
def test_a_member_is_that_of_a_parser(document: dict[str, object], value: object, layout: dict[str, object]) -> None:
    text = json.dumps(document | {"items": value}, **layout).encode()  # type: ignore[arg-type]
    found = member(text, b"items")
    assert found is not None
    assert json.loads(found) == value
    document.pop("items", None)
    assert member(json.dumps(document).encode(), b"items") is None


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (b"[]", []),
        (b" [ ] ", []),
        (b"[12345678901234567890123, 1.0, 1e2]", [b"12345678901234567890123", b"1.0", b"1e2"]),
        (rb'["a\"],[", {"b,": "]"}]', [rb'"a\"],["', b'{"b,": "]"}']),
        (b'["\\\\", 1]', [b'"\\\\"', b"1"]),
    ],
)
def test_what_stands_there_is_kept(text: bytes, parts: list[bytes]) -> None:
    assert elements(text) == parts


def test_the_last_of_a_name_counts_and_inner_ones_do_not() -> None:
    assert member(b'{"items": 1, "x": {"items": 2}, "items" : [3] }', b"items") == b"[3]"
