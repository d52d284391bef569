"""An application's answer while it comes."""

from __future__ import annotations

from collections.abc import Iterable

_NO_CONTENT = 204
_WITHOUT_BODY = (_NO_CONTENT, 304)


class Answer:
    """Status, headers as pairs, and the body's chunks.

    Past ``room`` bytes nothing more is kept: the result is too large then, however much would have followed. Where HTTP
    has no body (an answer to HEAD, the statuses 204 and 304) none is kept, as a server sends none.
    """

    def __init__(self, room: int, method: str) -> None:
        self._has_none = method == "HEAD"
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self._chunks: list[bytes] = []
        self._room = room

    def start(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        self.status = status
        self.headers = [(str(name), str(value)) for name, value in headers]
        if status in _WITHOUT_BODY:
            self._has_none = True
        if status == _NO_CONTENT:
            self.headers = [pair for pair in self.headers if pair[0].lower() != "content-length"]

    def add(self, chunk: bytes) -> None:
        if not self.started:
            raise RuntimeError("the application sent a body before a status")
        if not self.is_full and chunk and not self._has_none:
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
