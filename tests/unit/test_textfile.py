"""Files that people write are read whatever their editor puts before them, or the error names the encoding."""

from __future__ import annotations

import codecs

import pytest

from shared.textfile import NotText, text_of

TEXT = 'name = "grüße"\r\n'


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"),
        codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be"),
    ],
)
def test_the_mark_names_the_encoding_and_is_no_text(content: bytes) -> None:
    assert text_of(content) == TEXT


def test_an_empty_file_and_a_mark_alone_are_empty() -> None:
    assert [text_of(content) for content in (b"", codecs.BOM_UTF8, codecs.BOM_UTF16_LE)] == ["", "", ""]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("a\nb = 'é'".encode("latin-1"), ["0xE9", "line 2", "Latin-1", "Windows-1252", "Save it as UTF-8"]),
        ("“x”".encode("cp1252"), ["0x93", "line 1", "UTF-8"]),
        ("abc".encode("utf-16-le"), ["UTF-16 without a byte order mark", "save it as UTF-8"]),
        ("abc".encode("utf-16-be"), ["UTF-16 without a byte order mark", "save it as UTF-8"]),
        (codecs.BOM_UTF16_LE + b"a", ["UTF-16-LE", "save it as UTF-8"]),
    ],
)
def test_another_encoding_is_named_with_what_to_do(content: bytes, names: list[str]) -> None:
    with pytest.raises(NotText) as refused:
        text_of(content)
    assert [name for name in names if name not in str(refused.value)] == []
