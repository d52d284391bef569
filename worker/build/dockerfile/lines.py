"""The instructions of a Dockerfile, each on one line. Refuses lines that builders of different ages read
differently."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from worker.build.dockerfile.instructions import rejected

MAX_BYTES = 60_000  # the engine's builder takes no longer line
_DIRECTIVE = re.compile(r"#\s*(syntax|escape|check)\s*=", re.IGNORECASE)
_KEYWORD = re.compile(r"[A-Za-z]+")
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One instruction. ``rest`` is what follows the keyword, without white space around it."""

    number: int  # of its first line in the file, from 1
    keyword: str  # in upper case
    rest: str


def read_lines(raw: bytes) -> Iterator[Line]:
    """:raises BuildRejected: something in the file is ambiguous, with its line."""
    if len(raw) > MAX_BYTES:
        raise rejected(1, f"the file has more than {MAX_BYTES} bytes")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise rejected(raw[: error.start].count(b"\n") + 1, "the file is not UTF-8") from None
    held: list[str] = []
    begun = 0
    physical = text.replace("\r\n", "\n").split("\n")
    for number, line in enumerate(physical, 1):
        _visible(number, line)
        bare = line.strip(" \t")
        if held and not bare:
            raise rejected(number, "an empty line follows a line that ends with a backslash")
        if bare.startswith("#"):
            if held:
                raise rejected(number, "a comment inside an instruction; put it above the instruction")
            if _DIRECTIVE.match(bare):
                raise rejected(number, f"the directive {bare[:40]!r} is not allowed: no other syntax can be chosen")
            continue
        if not held:
            begun = number
        continued = line.endswith("\\")
        if not continued and bare.endswith("\\"):
            raise rejected(number, "white space follows the backslash at the end of the line")
        if continued and line.endswith("\\\\"):
            raise rejected(number, "the line ends with two backslashes")
        held.append(line[:-1] if continued else line)
        if not continued:
            whole = "".join(held).strip(" \t")
            held = []
            if whole:
                yield _instruction(begun, whole)
    if held:
        raise rejected(len(physical), "the file ends after a backslash")


def _instruction(number: int, whole: str) -> Line:
    keyword = _KEYWORD.match(whole)
    rest = whole[keyword.end() :] if keyword else whole
    if keyword is None or (rest and rest[0] not in " \t"):
        raise rejected(number, f"{whole[:40]!r} does not begin with an instruction")
    return Line(number=number, keyword=keyword[0].upper(), rest=rest.strip(" \t"))


def _visible(number: int, line: str) -> None:
    """Refuse characters that an editor does not show: the line could mean something else than a reader sees."""
    for character in line:
        if character != "\t" and not character.isascii() and unicodedata.category(character) in _UNSEEN:
            raise rejected(number, f"the invisible character U+{ord(character):04X}")
        if character.isascii() and character != "\t" and not character.isprintable():
            raise rejected(number, f"the control character U+{ord(character):04X}")
