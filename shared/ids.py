"""UUIDv7 identifiers (RFC 9562), sortable by the millisecond in which they were made, and a short way to write them."""

from __future__ import annotations

import os
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime
from uuid import UUID


def new_id() -> UUID:
    """A fresh UUIDv7 from the wall clock and 74 random bits."""
    return _uuid7(time.time_ns() // 1_000_000)


def _uuid7(unix_ms: int) -> UUID:
    random = int.from_bytes(os.urandom(10), "big")
    value = (unix_ms & 0xFFFF_FFFF_FFFF) << 80
    value |= 0x7 << 76
    value |= (random >> 68 & 0xFFF) << 64
    value |= 0b10 << 62
    value |= random & 0x3FFF_FFFF_FFFF_FFFF
    return UUID(int=value)


def lowest_id(at: datetime) -> UUID:
    """Not above any UUIDv7 that was made at ``at`` or later."""
    return UUID(int=(round(at.timestamp() * 1000) & 0xFFFF_FFFF_FFFF) << 80)


def time_of(identifier: UUID) -> datetime:
    """The millisecond in which a UUIDv7 was made, aware UTC; ``ValueError`` for other UUIDs."""
    if identifier.version != 7:
        raise ValueError("not a UUIDv7")
    return datetime.fromtimestamp((identifier.int >> 80) / 1000, UTC)


def short(identifier: UUID) -> str:
    """``identifier`` in 22 characters, for places where many of them take up room: base64url without padding."""
    return urlsafe_b64encode(identifier.bytes)[:22].decode("ascii")


def from_short(text: str) -> UUID:
    """What :func:`short` wrote; :class:`ValueError` for what it did not write."""
    identifier = UUID(bytes=urlsafe_b64decode(text + "=="))
    if short(identifier) != text:
        raise ValueError(f"not a short identifier: {text!r}")
    return identifier
