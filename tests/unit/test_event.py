"""Events: what a caller leaves out is filled in, what it sends stays as it is, and descriptions hold no secret."""

from __future__ import annotations

import json

import pytest

from shared.event import FIELDS, complete, describe

FULL = {"body": None, "query": {}, "headers": {}, "method": "POST", "path": "/"}


@pytest.mark.parametrize(
    "sent",
    [
        "{}",
        " {\n} ",
        '{"body": 1}',
        ' {"body":{"a":[1,2]},"path":"/x"}',
        '{"query":{"a":"b"},"headers":{},"method":"PUT","path":"/","body":100000000000000000000000000001}',
    ],
)
def test_what_is_left_out_is_filled_in_and_the_rest_is_verbatim(sent: str) -> None:
    event = json.loads(sent)
    completed = complete(sent.encode(), event)
    assert json.loads(completed) == {**FULL, **event}
    assert set(json.loads(completed)) == set(FIELDS)
    if event:
        assert sent.strip()[1:].encode() in completed


def test_credentials_and_bodies_are_not_described() -> None:
    event = {"body": "secret", "headers": {"Authorization": "Bearer x", "Cookie": "y", "Content-Type": "text/plain"}}
    assert describe(event) == {"headers": {"content-type": "text/plain"}, "content_type": "text/plain"}


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"query": "a=1&a=2"}, {"query": "a=1&a=2"}),
        ({"query": ""}, {}),
        ({"query": {"a": ["1", "2"]}}, {"query": {"a": '["1","2"]'}}),
        ({"query": [["a", "1"], ["b", "2"], ["a", "3"]]}, {"query": {"a": '["1","3"]', "b": "2"}}),
        ({"headers": [["X-A", "1"], ["Cookie", "y"], ["AUTHORIZATION", "z"]]}, {"headers": {"x-a": "1"}}),
        ({"headers": [["Accept", "a"], ["Accept", "b"]]}, {"headers": {"accept": '["a","b"]'}}),
        ({"query": "x" * 5000}, {"query": "x" * 1024 + "…"}),
        ({"body_base64": "c2VjcmV0", "path": "/up"}, {"path": "/up"}),
    ],
)
def test_every_form_of_an_event_is_described(event: dict[str, object], expected: dict[str, object]) -> None:
    assert describe(event) == expected


def test_a_long_list_of_pairs_is_cut() -> None:
    assert len(describe({"query": [[f"n{n}", "x"] for n in range(5000)]})["query"]) == 64
