"""What values a field of a model may have, in words."""

from __future__ import annotations

from pydantic.fields import FieldInfo

_WORDS = {"gt": "above", "ge": "from", "lt": "below", "le": "to"}


def bounds(field: FieldInfo) -> list[str]:
    """As ``["from 1", "to 20"]``; empty without any."""
    return [
        f"{word} {plain(getattr(item, name))}"
        for item in field.metadata
        for name, word in _WORDS.items()
        if hasattr(item, name)
    ]


def plain(number: float) -> str:
    """Without an exponent, as people write it into a file: 2592000, 0.5."""
    return str(int(number)) if number == int(number) else str(number)
