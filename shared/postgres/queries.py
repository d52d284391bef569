"""The named queries of ``sql/queries/*.sql``.

A query starts with ``-- name: some_name``; the comment after it says in one sentence what it is for.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

_NAME = re.compile(r"^-- name: ([a-z_]+)$", re.MULTILINE)


@cache
def queries(noun: str) -> dict[str, str]:
    """All queries of ``sql/queries/<noun>.sql`` by name."""
    text = (resources.files("sql") / "queries" / f"{noun}.sql").read_text("utf-8")
    parts = _NAME.split(text)
    found: dict[str, str] = {}
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        if name in found:
            raise ValueError(f"sql/queries/{noun}.sql names {name} twice")
        found[name] = body.strip()
    return found


def nouns() -> list[str]:
    """The nouns that have a file of queries."""
    folder = resources.files("sql") / "queries"
    return sorted(entry.name.removesuffix(".sql") for entry in folder.iterdir() if entry.name.endswith(".sql"))
