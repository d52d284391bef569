"""The call that a handler gets: the caller and the body; and how a body is read within its operation's limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from api.accounts import Caller
from shared.errors import BadRequest, TooLarge
from shared.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimit:
    """The largest body of an operation, in bytes once it is unpacked.

    :param code: the error's code for a larger body. :param field: the error's ``field``. :param instead: what a caller
        who has more can do.
    """

    most: Callable[[Settings], int]
    code: str = "too_large"
    field: str | None = None
    instead: str = ""

    def check(self, size: int | None, most: int) -> None:
        """:raises TooLarge: if ``size``, where it is known, is more than ``most``."""
        if size is not None and size > most:
            raise TooLarge(
                f"The body of this call may have at most {most} bytes.{self.instead}",
                code=self.code,
                field=self.field,
                extra={"max_bytes": most},
            )


SMALL_BYTES = 4096
UPLOAD_FIELDS_BYTES = 128 * 1024
SMALL = BodyLimit(most=lambda settings: SMALL_BYTES)
EVENT = BodyLimit(
    most=lambda settings: settings.max_body_bytes,
    instead=" Larger input goes into a store that the function can read: put its URL into the event, and give the "
    'function network = "egress"; or deploy it with the function. An operator raises the limit with MAX_BODY_BYTES.',
)
UPLOAD = BodyLimit(
    most=lambda settings: settings.max_upload_bytes + UPLOAD_FIELDS_BYTES,
    code="upload_too_large",
    field="archive",
    instead=" Leave out what the function does not need; an operator raises the limit with MAX_UPLOAD_BYTES.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of an operation, authenticated and within its limits.

    :ivar data: the body as it was sent, unpacked; empty if the operation has none or reads it itself.
    :ivar body: the body as the operation's model; None if the operation parses it itself.
    """

    known: Caller | None
    data: bytes = b""
    body: Any = None

    @property
    def caller(self) -> Caller:
        """Who calls an operation that is not public."""
        if self.known is None:
            raise LookupError("a public operation has no caller")
        return self.known


async def read_body(request: web.Request, limit: BodyLimit, most: int) -> bytes:
    """The request's body, unpacked.

    :raises TooLarge: as soon as there is more than ``most``.
    :raises BadRequest: for a body that is not empty and unpacks to nothing.
    """
    first = await request.content.readany()
    limit.check(len(first), most)
    data = bytearray()
    while first and (chunk := await request.content.readany()):
        data += chunk
        limit.check(len(first) + len(data), most)
    if not first and "Content-Encoding" in request.headers:
        raise BadRequest("The body of the request is broken: it unpacks to nothing.", code="broken_body")
    return first + data if data else first
