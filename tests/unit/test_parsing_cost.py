"""What a large JSON body costs: it is parsed without the collector of cycles, and nothing of it is kept."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from api import params
from api.routes.batch import _events
from shared.errors import BadRequest
from shared.settings import load

MANY = 300_000
LISTS = b"[" + b"[]," * MANY + b"[]]"


@contextmanager
def collections() -> Iterator[list[int]]:
    """The generations that Python's collector went through meanwhile."""
    seen: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            seen.append(info["generation"])

    gc.callbacks.append(note)
    try:
        yield seen
    finally:
        gc.callbacks.remove(note)


def test_a_large_text_is_parsed_without_collections() -> None:
    with collections() as seen:
        value = params.parse_json(b'{"body":' + LISTS + b"}", max_depth=64)
    assert len(value["body"]) == MANY + 1
    assert len(seen) <= 1  # where the parsing is over
    assert gc.isenabled()


def test_the_collector_is_on_again_after_a_text_that_is_no_json() -> None:
    with pytest.raises(BadRequest):
        params.parse_json(LISTS[:-1], max_depth=64)
    assert gc.isenabled()


@pytest.mark.parametrize("item", [b'{"body":%b}', b'{"query":7,"body":%b}'], ids=["accepted", "refused"])
async def test_nothing_of_a_parsed_batch_is_kept(item: bytes) -> None:
    data = b'{"items":[' + item % LISTS + b"]}"
    settings = load({})
    await _events(b'{"items":[{}]}', settings)
    before = len(gc.get_objects())
    events = await _events(data, settings)
    assert len(events) == 1
    assert len(gc.get_objects()) - before < MANY // 100
