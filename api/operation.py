"""The declaration of an endpoint: its route and its models, which validate it and make its OpenAPI description."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field

from aiohttp import web
from pydantic import BaseModel

from api import models, params
from api.call import SMALL, BodyLimit, Call, read_body
from api.keys import SETTINGS
from api.rates import within_address_rate
from api.session import allowed
from shared.errors import BadRequest
from shared.jobview import PRIORITIES
from shared.scopes import Scope

Handler = Callable[[web.Request, Call], Awaitable[web.StreamResponse]]


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
    :param scope: the scope that the caller's credential needs; None: the operation is public.
    :param limit: the largest body.
    :param body: the model of the body, which the handler gets parsed, unless it ``parses`` the bytes itself.
    :param form: multipart fields, name to description, for uploads; the handler reads the request itself.
    :param rated: whether calls count against the operator's rate of public calls from one address.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    responses: Mapping[int, type[BaseModel] | str | None]
    scope: Scope | None
    body: type[BaseModel] | None = None
    parameters: tuple[Parameter, ...] = ()
    form: Mapping[str, str] | None = None
    headers: Mapping[int | str, tuple[str, ...]] = field(default_factory=dict)
    limit: BodyLimit = SMALL
    parses: bool = False
    rated: bool = False

    @property
    def public(self) -> bool:
        return self.scope is None

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answer a request. It reads the body only after the caller is authenticated and allowed, and parses it only
        after its size is within the limit.

        :raises TooMany: for too many public calls from one address. :raises Unauthenticated: without a credential.
        :raises Forbidden: with one of other scopes. :raises TooLarge: for a body beyond the limit.
        :raises BadRequest: for a query parameter that is not declared here, which would be ignored, or one that is
            given twice. :raises Invalid: for a body that is not as declared.
        """
        if self.rated:
            await within_address_rate(request)
        caller = None if self.scope is None else await allowed(request, self.scope)
        most = self.limit.most(request.app[SETTINGS])
        self.limit.check(request.content_length, most)
        if request.query_string:
            self._only_declared(request)
        if not self._reads:
            return await self.handler(request, Call(known=caller))
        data = await read_body(request, self.limit, most)
        body = None if self.parses else self._parsed(request, data)
        return await self.handler(request, Call(known=caller, data=data, body=body))

    @property
    def _reads(self) -> bool:
        """Whether to read the body here: also for an operation without one, to refuse what a client sends."""
        if self.body is not None:
            return True
        return self.method == "POST" and any(one.where == "query" for one in self.parameters)

    def _parsed(self, request: web.Request, data: bytes) -> BaseModel:
        value = params.parse_json(data, max_depth=request.app[SETTINGS].max_json_depth) if data else {}
        return params.validate(self.body or models.NoBody, value)

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
