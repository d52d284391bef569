"""What an endpoint declares: its route, the models that validate it and, from the same, its OpenAPI description."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field

from aiohttp import web
from pydantic import BaseModel

from api import models, params
from api.session import body_of
from shared.errors import BadRequest
from shared.jobview import PRIORITIES

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A query parameter or header."""

    name: str
    description: str
    where: str = "query"
    schema: Mapping[str, object] = field(default_factory=lambda: {"type": "string"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One endpoint.

    :param responses: status to model; the content type where the body is none of ours, ``None`` without a body.
    :param headers: status, or ``default`` for problems, to the names of headers that such an answer may have beside
        those that any may.
    :param public: whether it may be called without credentials.
    :param form: multipart fields, name to description, for uploads.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    responses: Mapping[int, type[BaseModel] | str | None]
    body: type[BaseModel] | None = None
    parameters: tuple[Parameter, ...] = ()
    form: Mapping[str, str] | None = None
    headers: Mapping[int | str, tuple[str, ...]] = field(default_factory=dict)
    public: bool = False

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answer a request that has no query parameters but those declared here, each once.

        :raises BadRequest: for another one, which would be ignored. :raises Invalid: where the body says what belongs
            into the query.
        """
        if request.query_string:
            self._only_declared(request)
        if self.body is None and self.method == "POST" and any(one.where == "query" for one in self.parameters):
            params.validate(models.NoBody, await body_of(request))
        return await self.handler(request)

    def _only_declared(self, request: web.Request) -> None:
        known = {parameter.name for parameter in self.parameters if parameter.where == "query"}
        for name in request.query:
            if name not in known:
                raise BadRequest(f"{name} is not a parameter of this call.", code="unknown_parameter", field=name)
            if len(request.query.getall(name)) > 1:
                raise BadRequest(f"{name} is given twice.", code="invalid_parameter", field=name)

    @property
    def tag(self) -> str:
        parts = self.path.split("/")
        return parts[2] if len(parts) > 2 else "operations"


def one_of(known: Iterable[str]) -> dict[str, object]:
    """The schema of a parameter that has one of these values."""
    return {"type": "string", "enum": [str(each) for each in known]}


RATES = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")
LIMIT = Parameter(name="limit", description="Most items of the page.", schema={"type": "integer", "minimum": 1})
CURSOR = Parameter(name="cursor", description="`next` of the page before.")
PREFER = Parameter(
    name="Prefer",
    where="header",
    description="`respond-async`: answer 202 at once. `wait=N`: wait up to N seconds.",
)
IDEMPOTENCY_KEY = Parameter(
    name="Idempotency-Key",
    where="header",
    description="1 to 255 printable ASCII characters. A call that repeats one with the same key gets the same job.",
    schema={"type": "string", "minLength": 1, "maxLength": 255},
)
DELAY = Parameter(
    name="delay",
    description="Seconds from now until the job is due.",
    schema={"type": "number", "minimum": 0},
)
RUN_AT = Parameter(
    name="run_at",
    description="When the job is due (RFC 3339, with an offset).",
    schema={"type": "string", "format": "date-time"},
)
EXPIRES_AT = Parameter(
    name="expires_at",
    description="By when the job must have started (RFC 3339, with an offset).",
    schema={"type": "string", "format": "date-time"},
)
PRIORITY = Parameter(
    name="priority",
    description="Before or after others of yours.",
    schema=one_of(PRIORITIES),
)
CALLBACK_URL = Parameter(
    name="callback_url",
    description="Where the job's end is told: a POST, signed with your webhook secret.",
    schema={"type": "string", "format": "uri", "maxLength": 2048},
)
WAIT = Parameter(
    name="wait",
    description="Seconds to wait for the job's end.",
    schema={"type": "number", "minimum": 0},
)
