"""What counts as JSON is the same for small results, checked at once, and for large ones, which a child checks."""

from __future__ import annotations

import pytest

from worker.sandbox.result_check import ON_LOOP_BYTES, Checked, check

_LARGE = b" " * ON_LOOP_BYTES
_HEAD = b'{"status":200,"headers":'


@pytest.mark.parametrize("padding", [b"", _LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b'{"a":[1,-0.5e3,true,null,"\xc3\xbc\\ud83d\\ude00"]}', Checked.JSON),
        (b"123456789012345678901234567890", Checked.JSON),
        (b"", Checked.NO_JSON),
        (b"NaN", Checked.NO_JSON),
        (b"-Infinity", Checked.NO_JSON),
        (b"[1,]", Checked.NO_JSON),
        (b"1 2", Checked.NO_JSON),
        (b'"\xff"', Checked.NO_JSON),
        (b'"\xed\xa0\x80"', Checked.NO_JSON),
        (b'{"\xff":1}', Checked.NO_JSON),
        (b'"\x01"', Checked.NO_JSON),
        (b"[" * 100_000, Checked.NO_JSON),
        (_HEAD + b'{},"body":[1]}', Checked.ANSWER),
        (_HEAD + b'[["a","b"],["a","c"]],"body_base64":"AA=="}', Checked.ANSWER),
        (_HEAD + b'{"a":1},"body":1}', Checked.JSON),
        (_HEAD + b'[["a"]],"body":1}', Checked.JSON),
        (_HEAD + b"{}}", Checked.JSON),
        (_HEAD + b'{},"body":1,"body_base64":""}', Checked.JSON),
        (_HEAD + b'{},"body":1,"more":1}', Checked.JSON),
        (b'{"status":true,"headers":{},"body":1}', Checked.JSON),
        (b'{"status":600,"headers":{},"body":1}', Checked.JSON),
        (b'{"status":200.0,"headers":{},"body":1}', Checked.JSON),
    ],
)
async def test_a_result_is_judged_alike_whatever_its_size(text: bytes, found: Checked, padding: bytes) -> None:
    assert await check(text + padding, shaped=True) is found
    plain = Checked.JSON if found is Checked.ANSWER else found
    assert await check(text + padding, shaped=False) is plain
