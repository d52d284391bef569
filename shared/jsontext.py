"""Parts of a JSON text, verbatim: parsed and written again, large numbers would not be what they were."""

from __future__ import annotations

import re
from collections.abc import Iterator

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[][{},:]')
_OPENING, _CLOSING, _COMMA, _COLON = b"[{", b"]}", ord(","), ord(":")


def elements(array: bytes) -> list[bytes]:
    """The texts of the elements of ``array``, which is known to be well-formed."""
    return [array[start:end].strip() for start, _, end in _parts(array)]


def member(text: bytes, name: bytes) -> bytes | None:
    """The text of a member of the object ``text``, which is known to be well-formed; the last one of that name.

    :param name: as it stands between the quotes; one that is written with escapes is not found.
    """
    found = None
    for start, colon, end in _parts(text):
        if text[start:colon].strip() == b'"%b"' % name:
            found = text[colon + 1 : end].strip()
    return found


def _parts(text: bytes) -> Iterator[tuple[int, int, int]]:
    """Start, first colon and end of what stands between the commas of the outermost bracket."""
    depth = start = colon = 0
    for token in _TOKEN.finditer(text):
        at, kind = token.start(), text[token.start()]
        if kind in _OPENING:
            depth += 1
            if depth == 1:
                start = colon = token.end()
        elif kind in _CLOSING:
            depth -= 1
            if depth == 0 and text[start:at].strip():
                yield start, colon, at
        elif depth == 1 and kind == _COMMA:
            yield start, colon, at
            start = colon = token.end()
        elif depth == 1 and kind == _COLON:
            colon = at
