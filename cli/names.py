"""Names of functions."""

from __future__ import annotations

import re
import unicodedata

from cli.errors import UsageError

NAME = re.compile(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?")
LONGEST = 63


def legal(text: str) -> str:
    """A function's name that is as much like ``text`` as it may be."""
    plain = unicodedata.normalize("NFKD", text.replace("ß", "ss")).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9_]+", "-", plain)[:LONGEST].strip("-_") or "my-function"


def checked(name: str, *, whose: str) -> str:
    """``name`` if a function may have it; :class:`UsageError` proposes one otherwise.

    :param whose: where the name comes from.
    """
    if NAME.fullmatch(name):
        return name
    raise UsageError(
        f"{whose} is no name for a function: {name!r}. It may have 1 to {LONGEST} of a-z, 0-9, - and _, beginning and "
        "ending with a letter or digit.",
        hint=f"Give another one: --name {legal(name)}",
    )
