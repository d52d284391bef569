"""An application's answer while it comes."""

from __future__ import annotations

from collections.abc import Iterable


class Answer:
    """Status, headers as pairs, and the body's chunks.

    Past ``room`` bytes nothing more is kept: the result is too large then, however much would have followed.
    """

    def __init__(self, room: int) -> None:
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self._chunks: list[bytes] = []
        self._room = room

    def start(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        self.status = status
        self.headers = [(str(name), str(value)) for name, value in headers]

    def add(self, chunk: bytes) -> None:
        if not self.started:
            raise RuntimeError("the application sent a body before a status")
        if not self.is_full and chunk:
            self._chunks.append(bytes(chunk))
            self._room -= len(chunk)

    @property
    def started(self) -> bool:
        return self.status != 0

    @property
    def has_body(self) -> bool:
        return bool(self._chunks)

    @property
    def is_full(self) -> bool:
        return self._room < 0

    @property
    def body(self) -> bytes:
        return b"".join(self._chunks)
