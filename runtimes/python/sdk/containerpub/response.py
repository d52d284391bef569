"""An HTTP answer shaped by the function."""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Mapping, Sequence
from typing import Any


class Response:
    """Returned by a handler, shapes the answer of the HTTP gateway; elsewhere it is an object of these three members.

    :param status: HTTP status, 200 to 599.
    :param headers: names to values, or pairs of both where a name is repeated.
    :param body: text, bytes, or anything that JSON can say.
    """

    __slots__ = ("body", "headers", "status")

    def __init__(
        self,
        status: int = 200,
        headers: Mapping[str, str] | Sequence[tuple[str, str]] | None = None,
        body: Any = None,
    ) -> None:
        if not isinstance(status, int) or isinstance(status, bool) or not 200 <= status <= 599:
            raise ValueError(f"status is a number from 200 to 599, not {status!r}")
        self.status = status
        self.headers: Any
        if isinstance(headers, Mapping) or not headers:
            self.headers = {str(name): str(value) for name, value in dict(headers or {}).items()}
        else:
            self.headers = [(str(name), str(value)) for name, value in headers]
        self.body = body

    def document(self) -> dict[str, Any]:
        """The answer as JSON can say it: bytes that are not UTF-8 go as ``body_base64`` instead of ``body``."""
        answer = {"status": self.status, "headers": self.headers, "body": self.body}
        if isinstance(self.body, (bytes, bytearray, memoryview)):
            try:
                answer["body"] = bytes(self.body).decode("utf-8")
            except UnicodeDecodeError:
                del answer["body"]
                answer["body_base64"] = b2a_base64(self.body, newline=False).decode("ascii")
        return answer

    def __repr__(self) -> str:
        return f"Response({self.status!r}, {self.headers!r}, {self.body!r})"
