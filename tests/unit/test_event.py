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
