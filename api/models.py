"""The documents that cross the HTTP boundary."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, EmailStr, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from api.event_members import Base64, Headers, Query
from shared.jobs import JobKind, JobStatus, Missing, Reason
from shared.postgres.deliveries import DeliveryStatus


class Body(BaseModel):
    """A request body: unknown members are refused, so that a misspelt one is not ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    unknown_member: ClassVar[str] = ""
    """What to say to a caller who sent a member that there is not."""


class NoBody(Body):
    """Of a call that takes none."""


class RegisterBody(Body):
    """A member that a client adds to make itself more than a user is refused by its name."""

    email: Annotated[EmailStr, BeforeValidator(lambda value: value.strip() if isinstance(value, str) else value)]
    username: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{1,38}$")]
    password: Annotated[str, Field(min_length=8, max_length=72)]


class LoginBody(Body):
    email: Annotated[str, Field(max_length=254, pattern=r"^[^\x00]*$")]
    password: Annotated[str, Field(max_length=1024)]


class RefreshBody(Body):
    refresh_token: Annotated[str, Field(max_length=1024)]


class InvokeBody(Body):
    """The event. ``body`` is any JSON value; ``body_base64`` stands in its place for bytes."""

    unknown_member: ClassVar[str] = 'What a function is to be called with stands in body: {"body": …}.'

    body: Any = None
    body_base64: Base64 | None = None
    query: Query | None = None
    headers: Headers | None = None
    method: str | None = None
    path: str | None = None

    @field_validator("body_base64")
    @classmethod
    def one_body(cls, value: Any, others: ValidationInfo) -> Any:
        """Two bodies are refused: a runtime reads one of them."""
        if value is not None and others.data.get("body") is not None:
            raise PydanticCustomError("two_bodies", "stands in place of body; send one of the two")
        return value


class InvokeBatchBody(Body):
    """Each item is an event as :class:`InvokeBody` describes it; one that is not is refused alone."""

    items: list[Any]


class Problem(BaseModel):
    """``application/problem+json`` (RFC 9457)."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str
    field: str | None = None


class Tokens(BaseModel):
    access_token: str
    refresh_token: str
    token_type: str
    expires_in: int


class UserView(BaseModel):
    id: UUID
    email: str
    username: str
    created_at: datetime


class FunctionView(BaseModel):
    id: UUID
    name: str
    status: str
    runtime: str | None
    handler: str | None
    timeout_s: float | None
    memory_mb: int | None
    live_version: int | None
    created_at: datetime
    updated_at: datetime


class FunctionPage(BaseModel):
    items: list[FunctionView]
    next: str | None


class LayerView(BaseModel):
    kind: Literal["base", "runtime", "dependencies", "code", "image"]
    digest: str
    bytes: int


class VersionView(BaseModel):
    id: UUID
    number: int
    status: str
    reason: str | None
    error: str | None
    artifact_sha256: str
    artifact_bytes: int
    base: str | None
    layers: list[LayerView]
    settings: dict[str, Any]
    build_log: str
    created_at: datetime
    activated_at: datetime | None


class VersionPage(BaseModel):
    items: list[VersionView]
    next: str | None


class DeployView(BaseModel):
    job_id: UUID | None
    function_id: UUID
    version: int
    status: str


class Accepted(BaseModel):
    job_id: UUID


class BatchItem(BaseModel):
    """The id of the job, or what is wrong with the item."""

    job_id: UUID | None = None
    error: dict[str, Any] | None = None


class BatchAccepted(BaseModel):
    items: list[BatchItem]


class InvokeResult(BaseModel):
    success: bool
    result: Any = None
    error: dict[str, Any] | None = None
    reason: Reason | Literal["cancelled"] | None = None
    job_id: UUID


class Progress(BaseModel):
    attempt: int
    fraction: float
    message: str


class JobView(BaseModel):
    id: UUID
    kind: JobKind
    status: JobStatus
    reason: Reason | None
    function_id: UUID
    function: str | None
    version: int | None
    attempt: int
    progress: Progress | None
    result: Any
    error: dict[str, Any] | None
    created_at: datetime
    priority: Literal["low", "normal", "high"]
    run_at: datetime | None
    expires_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    redrive_of: UUID | None
    missing: Missing | None
    callback_url: str | None
    chained_from: UUID | None
    chain_refused: str | None
    timings: dict[str, float | None]


class Redriven(BaseModel):
    job_id: UUID
    redrive_of: UUID


class RedrivenPage(BaseModel):
    items: list[Redriven]
    more: bool


class CancelledPage(BaseModel):
    cancelled: int
    more: bool


class DeliveryView(BaseModel):
    id: UUID
    job_id: UUID
    url: str
    event: str
    status: DeliveryStatus
    attempts: int
    next_at: datetime | None
    last_status: int | None
    last_error: str | None
    created_at: datetime
    attempted_at: datetime | None
    delivered_at: datetime | None


class DeliveryPage(BaseModel):
    items: list[DeliveryView]
    next: str | None


class WebhookSecretView(BaseModel):
    secret: str
    created_at: datetime
    previous_until: datetime | None


class JobPage(BaseModel):
    items: list[JobView]
    next: str | None


class LogView(BaseModel):
    job_id: UUID
    attempt: int
    stream: str
    level: str
    message: str
    at: datetime
    cut: bool


class LogPage(BaseModel):
    items: list[LogView]
    next: str | None


class InvocationView(BaseModel):
    job_id: UUID
    attempt: int
    epoch: str
    version_id: UUID
    worker_id: str
    outcome: Literal["succeeded", "failed", "lost", "handed_back", "cancelled"]
    reason: Reason | None
    start_kind: Literal["cold", "paused", "warm"] | None
    exit_code: int | None
    timings: dict[str, float | None]
    peak_memory_bytes: int | None
    logs_truncated: bool
    request: dict[str, Any]
    logs: dict[str, Any]
    started_at: datetime | None
    finished_at: datetime | None


class InvocationPage(BaseModel):
    items: list[InvocationView]
    next: str | None


class Health(BaseModel):
    status: str
    version: str
    engine: str
    notice: str | None = None


class Readiness(BaseModel):
    status: str
    checks: dict[str, str]
