"""Functions and versions as the platform knows them, and the settings that a project file may hold."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.callbacks.url import checked_url
from shared.errors import Invalid
from shared.layers import VersionLayers
from shared.settings import Settings
from shared.textfile import NotText, text_of

Network = Literal["none", "egress"]
NAME_PATTERN = r"^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$"
PROJECT_FILES = ("containerpub.toml", "function.json")


_LEAST_TMP_MB = 16
_TMP_PART = 4

RetryReason = Literal["handler_error", "timeout", "out_of_memory", "crashed", "invalid_result", "result_too_large"]


class FunctionSettings(BaseModel):
    """The settings of a version, as flat keys of ``containerpub.toml``. They never change."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runtime: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,30}$", description="Folder name under runtimes/.")]
    handler: Annotated[
        str,
        Field(
            max_length=200,
            pattern=r"^[^\x00-\x1f\x7f]*$",
            description="module:attribute; empty for the runtime's own default, such as what is marked @function.",
        ),
    ] = ""
    timeout_s: Annotated[float, Field(gt=0, description="Run time of an invocation in seconds.")]
    memory_mb: Annotated[int, Field(ge=16, description="Memory of a sandbox in 2^20 bytes.")]
    tmp_mb: Annotated[
        int | None,
        Field(ge=1, description="What fits into /tmp, in 2^20 bytes of the memory; unless set, a quarter of it."),
    ] = None
    cpus: Annotated[float, Field(gt=0, le=64, description="CPUs of a sandbox.")]
    concurrency: Annotated[
        int, Field(ge=0, le=100_000, description="Attempts at a time over all workers; 0: as many as slots.")
    ] = 0
    rate_per_s: Annotated[
        float, Field(ge=0, le=1_000_000, description="Invokes a second that are let through; 0: no limit.")
    ] = 0
    rate_burst: Annotated[
        int, Field(ge=0, le=1_000_000, description="Invokes that may come at once; 0: those of a second.")
    ] = 0
    isolation: Annotated[
        Literal["warm", "fresh"], Field(description="`fresh`: a new sandbox for every call, started ahead.")
    ] = "warm"
    min_warm: Annotated[int, Field(ge=0, le=20, description="Sandboxes that every worker keeps ready.")] = 0

    network: Annotated[
        Network, Field(description="`egress`: public addresses can be reached, none of the platform's own.")
    ] = "none"

    max_attempts: Annotated[
        int, Field(ge=1, le=20, description="Attempts of an accepted job, the first included; lost ones do not count.")
    ] = 1
    retry_on: Annotated[
        tuple[RetryReason, ...], Field(max_length=8, description="Reasons of a failure after which it is tried again.")
    ] = ("handler_error", "timeout", "out_of_memory", "crashed")
    retry_backoff: Annotated[
        Literal["exponential", "fixed"], Field(description="Whether each wait is twice as long as the one before.")
    ] = "exponential"
    retry_delay_s: Annotated[float, Field(ge=0, le=86_400, description="Seconds before the second attempt.")] = 1
    retry_max_delay_s: Annotated[float, Field(ge=0, le=86_400, description="Longest wait between two attempts.")] = 300
    retry_within_s: Annotated[
        float,
        Field(gt=0, le=30 * 86_400, description="Seconds after the first attempt began within which others begin."),
    ] = 86_400

    callback_url: Annotated[
        str | None, Field(description="Where the end of every job is told, unless the job itself has another.")
    ] = None
    on_success: Annotated[
        str | None, Field(pattern=NAME_PATTERN, description="Function that is invoked with what a job answered.")
    ] = None
    on_failure: Annotated[
        str | None, Field(pattern=NAME_PATTERN, description="Function that is invoked with why a job failed.")
    ] = None

    @property
    def timeout_ms(self) -> int:
        return round(self.timeout_s * 1000)

    @property
    def tmp_size_mb(self) -> int:
        """What fits into ``/tmp`` of a sandbox, in 2^20 bytes."""
        return self.tmp_mb if self.tmp_mb is not None else max(_LEAST_TMP_MB, self.memory_mb // _TMP_PART)


def project_settings(
    settings: Settings, *, file_name: str | None, file: bytes | None, overrides: bytes | None
) -> tuple[FunctionSettings, str | None]:
    """The settings of a deploy: defaults, then the project file, then what the request says.

    :returns: the settings, and the name that the project file gives the function, if any.
    :raises Invalid: naming the key at fault.
    """
    merged: dict[str, object] = {
        "runtime": "python",
        "timeout_s": settings.function_timeout_seconds,
        "memory_mb": settings.function_max_memory_mb,
        "cpus": settings.function_cpus,
    }
    name: str | None = None
    if file is not None and file_name is not None:
        values = _read_project_file(file_name, file)
        found = values.pop("name", None)
        if found is not None and not isinstance(found, str):
            raise Invalid(f"{file_name}: name must be a string.", code="invalid_settings", field="name")
        name = found
        merged.update(values)
    if overrides is not None:
        merged.update(_json_object(overrides))
    try:
        result = FunctionSettings.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(FunctionSettings.model_fields)
            raise Invalid(
                f"{field} is not a setting; there are: name, {known}.", code="invalid_settings", field=field
            ) from error
        raise Invalid(f"{field}: {first['msg']}", code="invalid_settings", field=field) from error
    if result.timeout_s > settings.function_max_timeout_seconds:
        most = settings.function_max_timeout_seconds
        raise Invalid(f"timeout_s may be at most {most:g} here.", code="invalid_settings", field="timeout_s")
    if result.memory_mb > settings.function_memory_limit_mb:
        most = settings.function_memory_limit_mb
        raise Invalid(f"memory_mb may be at most {most:g} here.", code="invalid_settings", field="memory_mb")
    if result.tmp_size_mb > result.memory_mb:
        raise Invalid(
            f"tmp_mb may be at most memory_mb, which is {result.memory_mb}: what is in /tmp is in memory.",
            code="invalid_settings",
            field="tmp_mb",
        )
    if result.callback_url is not None:
        checked_url(result.callback_url, settings.callback_networks)
    if result.network == "egress":
        _check_egress(settings)
    return result, name


def handler_folder(overrides: bytes | None) -> str | None:
    """The folder of the handler's module, where the request of a deploy names a handler."""
    values = _json_object(overrides) if overrides is not None else {}
    folder, slash, _ = str(values.get("handler", "")).partition(":")[0].replace(".", "/").partition("/")
    return folder if slash else None


def _json_object(text: bytes) -> dict[str, object]:
    try:
        values = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Invalid(f"settings is not JSON: {error}", code="invalid_settings", field="settings") from error
    if not isinstance(values, dict):
        raise Invalid("settings must be a JSON object.", code="invalid_settings", field="settings")
    return values


def _check_egress(settings: Settings) -> None:
    if settings.engine == "process":
        raise Invalid(
            "network: the engine process, which is for development only, cannot keep a function with a network away "
            'from this machine; deploy it where functions run in containers, or with network = "none".',
            code="invalid_settings",
            field="network",
        )
    if not settings.function_egress:
        raise Invalid(
            'network: the operator lets no function have a network here; deploy it with network = "none".',
            code="invalid_settings",
            field="network",
        )


def _read_project_file(name: str, content: bytes) -> dict[str, object]:
    try:
        text = text_of(content)
        values = tomllib.loads(text) if name.endswith(".toml") else orjson.loads(text)
    except (tomllib.TOMLDecodeError, orjson.JSONDecodeError, NotText, RecursionError) as error:
        raise Invalid(f"{name} cannot be read: {error}", code="invalid_settings", field=name) from error
    if not isinstance(values, dict):
        raise Invalid(f"{name} must hold an object.", code="invalid_settings", field=name)
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A function as its owner sees it. ``settings`` are those of the live version, else of the newest."""

    id: UUID
    name: str
    status: str
    live_version: int | None
    settings: FunctionSettings | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    id: UUID
    number: int
    status: str  # building; active or failed for good
    artifact_sha256: str
    artifact_bytes: int
    settings: FunctionSettings
    layers: VersionLayers | None  # None before it is built, and if an older release built it
    reason: str | None
    error: str | None
    build_log: str
    created_at: datetime
    activated_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The function and version that an invoke runs, fixed when the API resolves it. ``version_id`` is None before the
    first version is active."""

    function_id: UUID
    name: str
    status: str
    version_id: UUID | None
    version: int | None
    settings: FunctionSettings | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnableVersion:
    """All that a worker needs to build or start a version. Only its status, ``built`` and its layers ever change."""

    id: UUID
    function_id: UUID
    user_id: UUID
    function_name: str
    number: int
    status: str
    artifact_sha256: str
    settings: FunctionSettings
    built: bool  # False before its first build, and after its function was deleted
    layers: VersionLayers | None  # None too if an older release built it
