"""JSON and parameters at the boundary, without a server."""

from __future__ import annotations

import base64
import random
import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from api import params
from api.models import InvokeBody, LoginBody, RegisterBody
from shared.errors import BadRequest, Invalid
from shared.event import describe
from shared.ids import new_id

DEPTH = 64


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    with suppress(BadRequest):
        params.parse_json(data, max_depth=DEPTH)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4).filter(str.isprintable), inner),
    max_leaves=20,
)


@given(JSON)
def test_what_is_json_comes_through_unchanged(value: Any) -> None:
    assert params.parse_json(orjson.dumps(value), max_depth=DEPTH) == value


@pytest.mark.parametrize("open_close", [("[", "]"), ('{"a":', "}")])
def test_h3_depth_is_counted_exactly(open_close: tuple[str, str]) -> None:
    start, end = open_close

    def nested(levels: int) -> bytes:
        return (start * levels + "1" + end * levels).encode()

    params.parse_json(nested(DEPTH), max_depth=DEPTH)
    for levels in (DEPTH + 1, 200, 1000, 100_000):
        with pytest.raises(BadRequest):
            params.parse_json(nested(levels), max_depth=DEPTH)


def test_h3_brackets_in_strings_and_wide_documents_are_not_deep() -> None:
    params.parse_json(orjson.dumps("[{" * 10_000), max_depth=DEPTH)
    params.parse_json(orjson.dumps([[]] * 10_000), max_depth=DEPTH)


@pytest.mark.parametrize(
    ("model", "value", "field"),
    [
        (InvokeBody, {"extra": 1}, "extra"),
        (InvokeBody, {"query": 1}, "query"),
        (LoginBody, {"email": "a"}, "password"),
        (LoginBody, {"email": "a\x00", "password": "p"}, "email"),
        (RegisterBody, {"email": "a@b.example", "username": "ab", "password": "12345678", "role": "admin"}, "role"),
    ],
)
def test_first_member_at_fault_is_named_and_its_value_is_not(model: Any, value: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as raised:
        params.validate(model, value)
    assert raised.value.field == field
    assert "admin" not in raised.value.message


@pytest.mark.parametrize("value", [None, 1, "x", [], True])
def test_body_must_be_an_object(value: Any) -> None:
    with pytest.raises(Invalid, match="JSON object"):
        params.validate(InvokeBody, value)


def test_cursor_round_trips() -> None:
    for position in ("name", 7, [datetime.now(UTC).isoformat(), str(new_id()), 2**61], ["ä\x00"]):
        text = params.encode_cursor(position)
        assert params.decode_cursor(text) == position
        assert text.isascii()
        assert not set(text) & set("+/=&?#")
    assert params.decode_cursor(None) is None


def test_any_text_as_cursor_is_decoded_or_refused() -> None:
    generator = random.Random(7)
    for _ in range(2000):
        data = generator.randbytes(generator.randrange(40))
        for text in (data.decode("latin-1"), base64.urlsafe_b64encode(data).decode()):
            with suppress(BadRequest):
                params.decode_cursor(text)


def request(path: str = "/", **headers: str) -> Any:
    return make_mocked_request("GET", path, headers=headers)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("respond-async", (True, None)),
        ("RESPOND-ASYNC", (True, None)),
        ("wait=5", (False, 5.0)),
        ("wait=0.25", (False, 0.25)),
        ('wait="5"', (False, 5.0)),
        ("respond-async, wait=5", (True, 5.0)),
        ("respond-async; wait=5", (True, 5.0)),
        ("wait=5, wait=9", (False, 5.0)),
        ("wait=99999", (False, 300.0)),
        ("return=minimal", (False, None)),
        ("return=minimal, respond-async", (True, None)),
        ("", (False, None)),
    ],
)
def test_prefer_is_read_as_rfc_7240_says(header: str, expected: tuple[bool, float | None]) -> None:
    assert params.preferences(request(Prefer=header), max_wait=300) == expected


@pytest.mark.parametrize("text", ["x", "-1", "nan", "inf", "1e999", "", " "])
def test_seconds_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        params.number_parameter(request(f"/?wait={text}"), "wait", most=300)


def test_seconds_above_the_most_are_cut() -> None:
    assert params.number_parameter(request("/?wait=1e9"), "wait", most=300) == 300
    assert params.number_parameter(request("/"), "wait", most=300) is None


def test_description_of_an_event_has_no_body_no_credential_and_no_nul() -> None:
    secrets = ("Authorization", "COOKIE", "x-api-key", "Proxy-Authorization", "Set-Cookie", "X-Auth-Token")
    event = {
        "body": "hidden",
        "headers": {
            **dict.fromkeys(secrets, "hidden"),
            "Content-Type": "text/x",
            "X-\x00": "\x00",
            "L" * 9999: "v" * 9999,
        },
        "query": {f"q\x00{number}": [1, {"a": "\x00"}] for number in range(500)},
        "method": "P" * 9999,
        "path": "/\x00",
    }
    described = orjson.dumps(describe(event)).decode()
    assert "hidden" not in described
    assert not re.search(r"(?<!\\)(\\\\)*\\u0000", described), "jsonb has no such character"
    assert len(described) < 20_000
    assert describe(event)["content_type"] == "text/x"
    assert describe({}) == {}
