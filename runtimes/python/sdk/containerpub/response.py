"""An HTTP answer shaped by the function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Response:
    """Returned by a handler, shapes the answer of the HTTP gateway; elsewhere it is an object of these three members.

    :param status: HTTP status, 200 to 599.
    :param headers: names to values.
    :param body: text, or anything that JSON can say.
    """

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int = 200, headers: Mapping[str, str] | None = None, body: Any = None) -> None:
        if not isinstance(status, int) or isinstance(status, bool) or not 200 <= status <= 599:
            raise ValueError(f"status is a number from 200 to 599, not {status!r}")
        self.status = status
        self.headers = {str(name): str(value) for name, value in (headers or {}).items()}
        self.body = body

    def __repr__(self) -> str:
        return f"Response({self.status!r}, {self.headers!r}, {self.body!r})"
