"""Nothing that a terminal obeys survives."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.terminal import escape, escape_json, escape_line

OBEYED = [
    *(chr(code) for code in range(0x20) if chr(code) not in "\n\t"),
    *(chr(code) for code in range(0x7F, 0xA0)),
    *"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029\u200b\ufeff",
    "\U000e0041",
    "\ud800",
]


@pytest.mark.parametrize("char", OBEYED, ids=lambda char: f"U+{ord(char):04X}")
def test_h10_every_obeyed_character_becomes_a_visible_escape(char: str) -> None:
    for shown in (escape(f"a{char}b"), escape_line(f"a{char}b")):
        assert char not in shown
        assert shown.startswith("a\\")
        assert shown.endswith("b")


def test_h10_sequences_show_what_they_are() -> None:
    assert escape("\x1b[2J\x9b31m\u202e\r") == "\\x1b[2J\\x9b31m\\u202e\\r"


def test_line_feeds_and_tabs_stay_in_text_and_are_escaped_on_a_line() -> None:
    assert escape("a\n\tb") == "a\n\tb"
    assert escape_line("a\n\tb") == "a\\n\\tb"


@given(st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"])))
def test_ordinary_text_is_not_changed(text: str) -> None:
    assert escape(text) == text
    assert escape_line(text) == text


@given(
    st.recursive(
        st.text() | st.none() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_escaped_json_keeps_its_value_and_obeys_nothing(value: object) -> None:
    shown = escape_json(json.dumps(value, ensure_ascii=False, indent=2))
    assert json.loads(shown) == value
    assert escape(shown) == shown
