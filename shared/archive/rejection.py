"""Errors of refused uploads: their codes, their sentences, and the safe display of hostile names."""

from __future__ import annotations

from shared.errors import ArchiveRejected, TooLarge

MAX_SHOWN_CHARS = 80


def shown(name: str | bytes) -> str:
    """``name`` fit for a terminal, a log line and a JSON document: escaped where not printable, and shortened."""
    if isinstance(name, bytes):
        name = name[: 4 * MAX_SHOWN_CHARS].decode("utf-8", "surrogateescape")
    # Cut before escaping, so that a name of 16 MB costs nothing; cut after it, because an escape is up to ten long.
    head = name[:MAX_SHOWN_CHARS]
    text = "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in head)
    if len(text) > MAX_SHOWN_CHARS or len(name) > MAX_SHOWN_CHARS:
        text = text[: MAX_SHOWN_CHARS - 1] + "…"
    return text


def rejected(code: str, sentence: str, name: str | bytes | None = None) -> ArchiveRejected:
    """A rule was broken; ``{name}`` in ``sentence`` stands for the entry's name as :func:`shown`."""
    if name is None:
        return ArchiveRejected(sentence, code=code, field="archive")
    safe = shown(name)
    return ArchiveRejected(sentence.replace("{name}", f"'{safe}'"), code=code, field="archive", extra={"entry": safe})


def broken(why: str) -> ArchiveRejected:
    """The bytes do not follow the format they claim to have."""
    return rejected("archive_broken", f"The archive is damaged or malformed: {why}. Pack it again and retry.")


def too_large(what: str, max_bytes: int) -> TooLarge:
    return TooLarge(
        f"{what} more than {max_bytes} bytes.",
        code="archive_too_large",
        field="archive",
        extra={"max_bytes": max_bytes},
    )
