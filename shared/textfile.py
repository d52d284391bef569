"""The text of files that people write, whatever their editor puts before it."""

from __future__ import annotations

import codecs

_MARKS = (
    # UTF-32's little-endian mark begins with that of UTF-16.
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class NotText(ValueError):
    """A file is in no encoding that can be told for certain; says what to do."""


def text_of(content: bytes) -> str:
    """The text of a file that is in UTF-8, or in another encoding of Unicode that its byte order mark names; without
    that mark.

    :raises NotText: for any other file.
    """
    mark, encoding = next(((mark, encoding) for mark, encoding in _MARKS if content.startswith(mark)), (b"", "utf-8"))
    body = content[len(mark) :]
    if not mark and b"\0" in body[:4]:
        raise NotText("it looks like UTF-16 without a byte order mark; save it as UTF-8.")
    try:
        return body.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise NotText(f"it begins as {encoding.upper()} and does not go on as such; save it as UTF-8.") from None
        line = body.count(b"\n", 0, error.start) + 1
        raise NotText(
            f"it is not UTF-8, which byte 0x{body[error.start]:02X} in line {line} shows: it may be Latin-1 or "
            "Windows-1252. Save it as UTF-8."
        ) from None
