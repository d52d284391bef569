"""The text of files that editors of other systems have written."""

from __future__ import annotations

import codecs

_MARKS = (  # the longer ones first: that of UTF-16 begins that of UTF-32
    (codecs.BOM_UTF8, "UTF-8"),
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def encoding_of(content: bytes) -> str | None:
    """The encoding that ``content`` says it has, or that its zeros give away; ``None`` where nothing tells of it."""
    for mark, name in _MARKS:
        if content.startswith(mark):
            return name
    if b"\0" not in content[:4]:
        return None
    return "UTF-16LE" if content[1:2] == b"\0" else "UTF-16BE"


def read_text(content: bytes, *, comment: str | None = None) -> str:
    """The text, without the mark at its beginning.

    :param comment: what begins a comment, which may have any bytes: in one of Latin-1 nothing else is read.
    :raises UnicodeDecodeError: it is neither UTF-8 nor what it says it is.
    """
    name = encoding_of(content)
    if name is not None and name != "UTF-8":
        return content.decode(name)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
        lines = text.split("\n")
        if comment is None or not all(line.partition(comment)[0].isascii() for line in lines):
            raise
        return text
