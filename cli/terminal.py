"""Text from functions and servers, made harmless before a person sees it.

A terminal obeys control characters: it can be made to hide lines, rewrite earlier ones, change its title or answer
as if the user had typed. Bidirectional overrides reorder what is read. Both become visible escapes.
"""

from __future__ import annotations

import re

_CONTROLS = r"\x00-\x08\x0b-\x1f\x7f-\x9f"
_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_LINE_BREAKS = "\u2028\u2029"
_INVISIBLE = "\u200b\u2060-\u2064\ufeff\U000e0000-\U000e007f"
_UNENCODABLE = "\ud800-\udfff"
_DANGEROUS = re.compile(f"[{_CONTROLS}{_BIDI}{_LINE_BREAKS}{_INVISIBLE}{_UNENCODABLE}]")
_DANGEROUS_OR_BREAK = re.compile(f"[\\n\\t{_CONTROLS}{_BIDI}{_LINE_BREAKS}{_INVISIBLE}{_UNENCODABLE}]")

_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def escape(text: str) -> str:
    """``text`` with everything a terminal would obey written as an escape; line feeds and tabs stay."""
    return _DANGEROUS.sub(_visible, text)


def escape_line(text: str) -> str:
    """Like :func:`escape`, and on one line: line feeds and tabs become escapes too."""
    return _DANGEROUS_OR_BREAK.sub(_visible, text)


def escape_json(text: str) -> str:
    """Like :func:`escape` for JSON text; the escapes are JSON's own, so that the value stays the same."""
    return _DANGEROUS.sub(_json_escape, text)


def _visible(match: re.Match[str]) -> str:
    char = match.group()
    if char in _SHORT:
        return _SHORT[char]
    code = ord(char)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _json_escape(match: re.Match[str]) -> str:
    units = match.group().encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
