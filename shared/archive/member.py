"""One entry of an upload, as both readers hand it on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A regular file or a folder; anything else was refused before one of these was made.

    :param name: decoded but not vetted; a folder's without its trailing slash.
    :param size: of the content in bytes, as declared; the reader guarantees that exactly as much comes out.
    :param content: to be consumed before the next entry is asked for, or left alone.
    """

    name: str
    is_folder: bool
    executable: bool
    size: int
    content: Iterable[bytes]
