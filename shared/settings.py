"""Every setting of every process, in one typed object, read once in ``main`` from an explicit mapping.

A value comes, first found wins, from the environment, from ``NAME_FILE`` (the path of a file that holds it, for
secrets) or from ``.env``. All mistakes are reported at once. ``docs/reference/settings.md`` is generated from the
descriptions here; a test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from shared.errors import Misconfigured
from shared.sealing import Keyring

MEGABYTE = 1_000_000
KILOBYTE = 1_000

_PLACEHOLDERS = ("secret", "change", "default", "example", "password", "your-", "jwt")

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
PositiveSeconds = Annotated[float, Field(gt=0)]
PositiveDays = Annotated[float, Field(gt=0, le=36_500)]


def _setting(default: object, description: str) -> Any:
    return Field(default=default, description=description)


class Settings(BaseModel):
    """One process's settings; immutable. Attribute names are the variables' names in lower case."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=str.upper, hide_input_in_errors=True)

    # Addresses and identity
    host: str = _setting("127.0.0.1", "Address the API listens on.")
    port: Annotated[int, Field(ge=0, le=65535)] = _setting(8080, "Port the API listens on.")
    public_url: str = _setting("", "URL under which callers reach the API, for links; empty: relative.")
    database_url: SecretStr = _setting(
        SecretStr("postgresql://localhost:5432/containerpub"),
        "Postgres; `sslmode=verify-full` for TLS.",
    )
    redis_url: SecretStr = _setting(
        SecretStr("redis://localhost:6379/0"), "Redis; `rediss://` for TLS, `unix://` for a socket."
    )
    jwt_secret: SecretStr = _setting(SecretStr(""), "Key that signs access tokens, 32 bytes at least. No default.")
    encryption_keys: SecretStr = _setting(
        SecretStr(""),
        "Keys that seal what functions are sent and answer, as `id:base64 of 32 bytes`, separated by commas: the first "
        "seals, all open; empty: nothing is sealed.",
    )
    installation_id: str = _setting(
        "containerpub", "Names this installation in container labels: one per set of workers."
    )
    data_dir: Path = _setting(
        Path("./data"),
        "Folder for what a process keeps on local disk. That of workers in containers: same path on host and worker.",
    )
    log_format: Literal["auto", "json", "text"] = _setting(
        "auto", "`json`, `text`, or `auto`: text on a terminal, JSON elsewhere."
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "Least level that is logged.")

    metrics_token: SecretStr = _setting(
        SecretStr(""), "Bearer token for `/metrics`; empty: only callers on the same machine may read it."
    )

    # Accounts
    access_token_seconds: Positive = _setting(3600, "Life of an access token.")
    refresh_token_seconds: Positive = _setting(2_592_000, "Life of a refresh token.")
    max_users: Annotated[int, Field(ge=0)] = _setting(0, "How many accounts may register; 0: no limit.")
    login_attempts_per_minute: Positive = _setting(10, "Log-ins a minute for one account and address.")
    bcrypt_cost: Annotated[int, Field(ge=4, le=16)] = _setting(12, "Work factor of password hashes.")
    trusted_proxies: tuple[str, ...] = _setting(
        (),
        "Networks of the proxies before the API, separated by commas: limits of an address count by what these write "
        "into `X-Forwarded-For`; empty: by the address of the connection.",
    )
    cors_origins: tuple[str, ...] = _setting(
        (), "Origins that browsers may call from, separated by commas; empty: none."
    )

    # Functions: defaults and the most that one may ask for
    function_timeout_seconds: PositiveSeconds = _setting(
        5, "Run time of an invocation, unless the function says otherwise."
    )
    function_max_timeout_seconds: PositiveSeconds = _setting(900, "Longest `timeout_s` a function may ask for.")
    function_max_memory_mb: Positive = _setting(
        128, "Memory of a sandbox, unless the function says otherwise (1 MB = 2^20 bytes)."
    )
    function_memory_limit_mb: Positive = _setting(2048, "Largest `memory_mb` a function may ask for.")
    function_cpus: PositiveSeconds = _setting(0.5, "CPUs of a sandbox.")
    function_open_files: Annotated[int, Field(ge=64, le=100_000)] = _setting(
        1024, "Open files of each process of a function, sockets included."
    )
    function_max_concurrent: Positive = _setting(10, "Slots: attempts that one worker process runs at a time.")
    worker_queues: tuple[str, ...] = _setting(
        ("invoke", "build"),
        "Queues that a worker process serves, separated by commas: `invoke` runs functions, `build` makes versions "
        "and clears up behind deleted ones.",
    )
    reserved_slots: NotNegative = _setting(
        1,
        "Slots of each worker's queues that only users with nothing running may take, so that no user waits behind "
        "another one's flood; none where there are not more slots than that.",
    )
    functions_dir: Path = _setting(Path("./data/artifacts"), "Folder of the local artifact store.")

    function_egress: bool = _setting(True, 'Whether a function may have a network, by `network = "egress"`.')
    function_egress_allow: tuple[str, ...] = _setting(
        (), "Networks that functions with a network reach although they are not public, separated by commas."
    )
    function_egress_deny: tuple[str, ...] = _setting(
        (), "Networks that functions with a network do not reach although they are public or allowed."
    )
    function_egress_new_per_second: Annotated[int, Field(ge=1, le=100_000)] = _setting(
        50, "Connections that a sandbox with a network may begin a second."
    )

    # Artifact store
    s3_endpoint: str = _setting("", "S3 API to use; empty: the provider's own.")
    s3_bucket_name: str = _setting("", "Bucket for artifacts; empty: the local folder.")
    s3_access_key_id: str = _setting("", "S3 access key id.")
    s3_secret_access_key: SecretStr = _setting(SecretStr(""), "S3 secret access key.")
    s3_region: str = _setting("us-east-1", "S3 region.")
    s3_session_token: SecretStr = _setting(SecretStr(""), "S3 session token.")
    s3_account_id: str = _setting("", "Account that owns the bucket.")
    artifact_timeout_seconds: PositiveSeconds = _setting(60, "Bound on one call to the artifact store.")

    # Engine and builds
    engine: Literal["docker", "process"] = _setting(
        "docker", "Where functions run: `docker`, or `process` (development only)."
    )
    docker_host: str = _setting("", "Docker Engine API; empty: the usual local sockets.")
    engine_timeout_seconds: PositiveSeconds = _setting(
        60, "Bound on one call to the container engine, other than transfers of images."
    )
    engine_max_changes: Annotated[int, Field(ge=0)] = _setting(
        0,
        "Containers of functions that a worker makes, starts or removes at a time; 0: as many as the engine's machine "
        "has processors. More at once hold up calls that are running.",
    )
    docker_registry: str = _setting(
        "",
        "Registry that keeps a second copy of every layer, as `host:port/path`, by TLS unless it is on this machine or "
        "begins with `http://`; no function reaches it; empty: none.",
    )
    docker_registry_user: str = _setting("", "User that the registry knows; empty: it asks for none.")
    docker_registry_password: SecretStr = _setting(SecretStr(""), "That user's password or token.")
    docker_base_image: str = _setting(
        "", "Base images as `runtime=image`, separated by commas; empty: the recipes' own."
    )
    docker_runtime: str = _setting("", "OCI runtime, such as `runsc`; empty: the engine's default.")
    socket_dir: Path = _setting(
        Path("/run/containerpub"),
        "Folder of sandbox sockets, same path on host and worker; keep it short.",
    )
    build_max_concurrent: Positive = _setting(2, "Builds that one worker runs at a time.")
    build_timeout_seconds: PositiveSeconds = _setting(300, "Time a build may take.")
    build_memory_mb: Positive = _setting(1024, "Memory of the step that installs dependencies.")
    build_max_unpacked_bytes: Positive = _setting(
        512 * MEGABYTE, "Size of installed dependencies, and of what a build of a Dockerfile writes."
    )
    build_log_bytes: Positive = _setting(1 * MEGABYTE, "Build log kept for a version.")
    build_index_hosts: str = _setting(
        "",
        "Hosts that builds may reach, separated by commas; `none` forbids all; empty: the index "
        "that the base image's package manager names.",
    )
    dockerfile_runtime: bool = _setting(
        False, "Whether functions may bring a Dockerfile, which is parsed and allow-listed before it is built."
    )
    dockerfile_base_images: tuple[str, ...] = _setting(
        (), "What `FROM` of a Dockerfile may name, separated by commas; empty: the other runtimes' base images."
    )
    dockerfile_cgroup_parent: str = _setting(
        "",
        "Cgroup with a bound on processes in which Dockerfiles are built: an absolute path (`cgroupfs`) or a slice "
        "(`systemd`); empty: the worker makes one, as root on the engine's machine with `cgroupfs`.",
    )
    dockerfile_max_processes: Positive = _setting(
        256, "Processes of one build of a Dockerfile, where the worker makes its cgroup."
    )
    dockerfile_min_free_bytes: NotNegative = _setting(
        2000 * MEGABYTE, "Free space of the engine's disk below which builds of Dockerfiles are ended."
    )
    worker_memory_mb: Positive = _setting(
        4096, "Memory of all sandboxes of one worker together, by their caps; idle ones make room for others."
    )
    sandbox_pause_seconds: PositiveSeconds = _setting(5, "Idle time after which a sandbox is paused.")
    sandbox_idle_seconds: PositiveSeconds = _setting(60, "Idle time after which a sandbox goes.")
    sandbox_max_age_seconds: PositiveSeconds = _setting(3600, "Age after which a sandbox is replaced.")
    sandbox_max_uses: Positive = _setting(10_000, "Calls after which a sandbox is replaced.")
    sandbox_first_user: Annotated[int, Field(ge=1, le=999_999)] = _setting(
        61_184,
        "First of the user ids that sandboxes have, one each while they live: none takes what the kernel grants "
        "another. An engine with user namespaces has to map them.",
    )
    sandbox_users: Annotated[int, Field(ge=64, le=65_536)] = _setting(
        4_336, "How many user ids sandboxes have: more than there are sandboxes at a time."
    )
    sandbox_ahead: Positive = _setting(2, 'Sandboxes kept ready of a function with `isolation = "fresh"`.')
    sandbox_generics: NotNegative = _setting(
        2, "Generic sandboxes kept ready of every runtime and size in use, for short cold starts; 0: none."
    )
    code_cache_bytes: Positive = _setting(
        2**31, "Code of versions that is kept on a machine's disk, least recently used out first."
    )
    image_disk_bytes: NotNegative = _setting(
        20_000 * MEGABYTE,
        "Disk that images of runtimes, and of functions with a Dockerfile, may take on a machine, least recently used "
        "out first; 0: no bound.",
    )
    sandbox_start_timeout_seconds: PositiveSeconds = _setting(30, "Time a sandbox may take to get ready.")

    # Queue
    queue_timeout_seconds: PositiveSeconds = _setting(
        10, "Longest wait for a slot of a synchronous call without `Prefer: wait`."
    )
    idempotency_seconds: PositiveSeconds = _setting(
        86_400, "Time after which an `Idempotency-Key` is free for another call."
    )
    lease_seconds: PositiveSeconds = _setting(30, "Time without a heartbeat after which a worker is lost.")
    heartbeat_seconds: PositiveSeconds = _setting(10, "Time between a worker's heartbeats.")
    max_lost_deliveries: Positive = _setting(
        3, "Attempts that may be lost, with their worker or its engine, before a job ends as failed."
    )
    max_running_per_user: Positive = _setting(100, "Running attempts of one user.")
    max_queued_per_user: Positive = _setting(100_000, "Queued jobs of one user.")
    rate_per_second_per_user: Annotated[float, Field(ge=0)] = _setting(
        0, "Invokes a second that are let through of one user, over all API processes; 0: no limit."
    )
    rate_burst_per_user: Annotated[int, Field(ge=0)] = _setting(
        0, "Invokes of one user that may come at once; 0: those of a second."
    )
    rate_per_second_per_address: Annotated[float, Field(ge=0)] = _setting(
        0, "Log-ins, registrations and refreshes a second of one address, over all API processes; 0: no limit."
    )
    rate_burst_per_address: Annotated[int, Field(ge=0)] = _setting(
        0, "Those of one address that may come at once; 0: those of a second."
    )
    max_stream_backlog: Positive = _setting(
        100_000, "Records waiting for Postgres past which synchronous calls get 503."
    )
    result_days: PositiveDays = _setting(7, "Days that the result or error of a job is kept after its end.")
    redrive_days: PositiveDays = _setting(
        7, "Days that what a job was called with is kept after its end, if it failed: so long it can be redriven."
    )
    record_days: PositiveDays = _setting(
        90, "Days that a job is kept after its end, and records and logs of its attempts after it was accepted."
    )
    reconcile_seconds: PositiveSeconds = _setting(5, "Time between two runs of the reconciler.")
    conservation_seconds: PositiveSeconds = _setting(
        60, "Time between two checks of the leading scheduler that every job is where it belongs."
    )
    leader_seconds: PositiveSeconds = _setting(10, "Life of the scheduler's leadership unless renewed.")
    sweep_seconds: PositiveSeconds = _setting(30, "Time between two sweeps of a worker's engine.")
    drain_seconds: PositiveSeconds = _setting(
        20, "Time running attempts, and calls that wait for them, get at a shutdown."
    )
    dependency_timeout_seconds: Annotated[float, Field(ge=2)] = _setting(5, "Bound on one call to Postgres or Redis.")
    database_pool_size: Positive = _setting(5, "Postgres connections of one process.")

    # Callbacks of finished jobs
    callback_allow: tuple[str, ...] = _setting(
        (), "Networks (IPv4 or IPv6) that callbacks may go to although they are not public, separated by commas."
    )
    callback_timeout_seconds: Annotated[float, Field(gt=0, le=15)] = _setting(
        15, "Time of one try of a callback, from the look-up of the name to the end of the answer."
    )
    callback_max_attempts: Positive = _setting(14, "Tries after which a callback is dead.")
    callback_retry_seconds: PositiveSeconds = _setting(
        5, "Wait after the first try of a callback; it is three times as long after each further one."
    )
    callback_retry_max_seconds: PositiveSeconds = _setting(14_400, "Longest wait between two tries of a callback.")
    callback_concurrency: Positive = _setting(32, "Callbacks sent at a time, at most a fourth of them one user's.")
    callback_max_result_bytes: Positive = _setting(
        128 * KILOBYTE,
        "Largest result or error that a callback carries; one that is larger or in the artifact store is left out.",
    )
    callback_secret_overlap_seconds: PositiveSeconds = _setting(
        86_400, "Time for which a webhook secret that was rotated signs along."
    )

    # Limits
    max_upload_bytes: Positive = _setting(50 * MEGABYTE, "Size of an uploaded archive.")
    max_unpacked_bytes: Positive = _setting(250 * MEGABYTE, "Size of its unpacked content.")
    max_archive_entries: Positive = _setting(2000, "Entries of an archive.")
    max_path_chars: Positive = _setting(240, "Characters of a path in an archive.")
    max_path_depth: Positive = _setting(32, "Levels of a path in an archive.")
    max_body_bytes: Positive = _setting(6 * MEGABYTE, "Size of a request body.")
    max_result_bytes: Positive = _setting(6 * MEGABYTE, "Size of a function's result.")
    inline_bytes: Positive = _setting(
        128 * KILOBYTE, "Size above which what a job was called with, or its result, is kept in the artifact store."
    )
    max_log_bytes: Positive = _setting(256 * KILOBYTE, "Log kept of one invocation.")
    max_json_depth: Positive = _setting(64, "Nesting of a JSON document.")
    max_delay_seconds: Positive = _setting(30 * 86_400, "Furthest time ahead for `delay` and `run_at`.")
    max_batch: Positive = _setting(1000, "Jobs of one `invoke-batch`.")
    max_wait_seconds: Positive = _setting(300, "Longest `wait`.")
    max_event_streams_per_user: Positive = _setting(
        1000, "Streams of events that one user may have open on one API process."
    )
    event_read_seconds: PositiveSeconds = _setting(
        30, "Time a client may take to read what there is of a stream of events before the stream is ended."
    )
    default_page: Positive = _setting(100, "Items of a list, unless `limit` says otherwise.")
    max_page: Positive = _setting(1000, "Largest `limit` of a list.")
    leave_seconds: Annotated[float, Field(ge=0, le=10)] = _setting(
        1,
        "Time an API process that is told to stop serves on as not ready: longer than a load balancer takes to notice.",
    )
    request_timeout_seconds: PositiveSeconds = _setting(
        10, "Time a client may take to send a request's headers, and pause within its body."
    )

    @field_validator(
        "cors_origins",
        "function_egress_allow",
        "function_egress_deny",
        "dockerfile_base_images",
        "callback_allow",
        "trusted_proxies",
        "worker_queues",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("worker_queues")
    @classmethod
    def _are_queues(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one queue: invoke, build, or both")
        for part in value:
            if part not in ("invoke", "build"):
                raise ValueError(f"there is no queue {part}; there are invoke and build")
        return value

    @field_validator("function_egress_allow", "function_egress_deny")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for part in value:
            try:
                IPv4Network(part)
            except ValueError as error:
                raise ValueError(f"{part} is no IPv4 network; write it as 10.1.2.0/24 or 10.1.2.3") from error
        return value

    @field_validator("callback_allow", "trusted_proxies")
    @classmethod
    def _are_networks_of_either_kind(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for part in value:
            try:
                ip_network(part)
            except ValueError as error:
                raise ValueError(f"{part} is no network; write it as 10.1.2.0/24, 10.1.2.3 or fd00::/8") from error
        return value

    @field_validator("docker_registry")
    @classmethod
    def _is_a_registry(cls, value: str) -> str:
        if value and not re.fullmatch(
            r"(https?://)?([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?(/[a-z0-9._/-]*)?", value
        ):
            raise ValueError("write it as host:port/path in lower case, with http:// before it if it has no TLS")
        return value

    @field_validator("docker_base_image")
    @classmethod
    def _base_images_have_runtimes(cls, value: str) -> str:
        for part in filter(None, value.split(",")):
            if "=" not in part:
                raise ValueError("write it as runtime=image, for instance python=python:3.11-slim")
        return value

    @field_validator("dockerfile_cgroup_parent")
    @classmethod
    def _is_a_cgroup(cls, value: str) -> str:
        if value and not re.fullmatch(r"(/[A-Za-z0-9_.-]*[A-Za-z0-9_-])+|[A-Za-z0-9_.-]+\.slice", value):
            raise ValueError("write an absolute path, such as /builds, or the name of a slice, such as builds.slice")
        return value

    @field_validator("encryption_keys")
    @classmethod
    def _are_keys(cls, value: SecretStr) -> SecretStr:
        Keyring.parse(value.get_secret_value())
        return value

    @field_validator("database_url")
    @classmethod
    def _is_postgres(cls, value: SecretStr) -> SecretStr:
        if urlsplit(value.get_secret_value()).scheme not in ("postgresql", "postgres"):
            raise ValueError("must start with postgresql://")
        return value

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: SecretStr) -> SecretStr:
        if urlsplit(value.get_secret_value()).scheme not in ("redis", "rediss", "unix"):
            raise ValueError("must start with redis://, rediss:// or unix://")
        return value

    @property
    def registry_url(self) -> str:
        """``DOCKER_REGISTRY`` with its scheme; empty if there is none."""
        if not self.docker_registry or "://" in self.docker_registry:
            return self.docker_registry
        host = urlsplit(f"//{self.docker_registry}").hostname or ""
        local = host in ("localhost", "::1") or host.startswith("127.")
        return f"{'http' if local else 'https'}://{self.docker_registry}"

    @property
    def keyring(self) -> Keyring:
        """The keys in ``ENCRYPTION_KEYS``."""
        return Keyring.parse(self.encryption_keys.get_secret_value())

    @property
    def base_images(self) -> dict[str, str]:
        """Runtime name to image reference, from ``DOCKER_BASE_IMAGE``."""
        pairs = (part.split("=", 1) for part in self.docker_base_image.split(",") if part)
        return {runtime.strip(): image.strip() for runtime, image in pairs}

    @property
    def callback_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """Those of ``CALLBACK_ALLOW``."""
        return tuple(map(ip_network, self.callback_allow))

    @property
    def proxy_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """Those of ``TRUSTED_PROXIES``."""
        return tuple(map(ip_network, self.trusted_proxies))

    @property
    def index_hosts(self) -> tuple[str, ...] | None:
        """Hosts for dependency installs: ``None`` asks the base image, empty forbids all."""
        if not self.build_index_hosts:
            return None
        if self.build_index_hosts.strip().lower() == "none":
            return ()
        return tuple(part.strip() for part in self.build_index_hosts.split(",") if part.strip())


def load(environment: Mapping[str, str], *, dotenv: Path | None = None, needs_jwt: bool = False) -> Settings:
    """Read the settings of this process.

    :param environment: usually ``os.environ``; it is read here and nowhere else.
    :param dotenv: a ``.env`` file, used where it exists.
    :param needs_jwt: whether this process signs or checks tokens.
    :raises Misconfigured: naming every mistake at once.
    """
    mistakes: list[str] = []
    merged: dict[str, str] = {}
    from_file = dotenv_values(dotenv) if dotenv is not None and dotenv.is_file() else {}
    known = setting_names()
    for source in (from_file, environment):
        for name in known:
            value, path = source.get(name), source.get(f"{name}_FILE")
            if path:
                try:
                    merged[name] = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
                except (OSError, UnicodeDecodeError) as error:
                    mistakes.append(f"{name}_FILE: cannot be read: {error}")
            if value is not None and value != "":
                merged[name] = value
    settings: Settings | None = None
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        mistakes.extend(f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors())
    if needs_jwt:
        mistakes.extend(_secret_mistakes(merged.get("JWT_SECRET", "")))
    if settings is not None:
        mistakes.extend(_cross_checks(settings))
    if mistakes or settings is None:
        raise Misconfigured("The settings have mistakes:\n  " + "\n  ".join(mistakes))
    return settings


def setting_names() -> tuple[str, ...]:
    """The environment variables that :class:`Settings` reads, in the order of its fields."""
    return tuple(name.upper() for name in Settings.model_fields)


def _secret_mistakes(secret: str) -> list[str]:
    if len(secret.encode()) < 32:
        suggestion = "make one with: python3 -c 'import secrets; print(secrets.token_hex(32))'"
        return [f"JWT_SECRET: must be set to 32 bytes at least; {suggestion}"]
    if len(set(secret)) < 8 or any(secret.lower().startswith(word) for word in _PLACEHOLDERS):
        return ["JWT_SECRET: looks like a placeholder; use a random one"]
    return []


def _cross_checks(settings: Settings) -> list[str]:
    mistakes = []
    if settings.heartbeat_seconds * 2 > settings.lease_seconds:
        mistakes.append("HEARTBEAT_SECONDS: must be at most half of LEASE_SECONDS")
    if settings.function_timeout_seconds > settings.function_max_timeout_seconds:
        mistakes.append("FUNCTION_TIMEOUT_SECONDS: is above FUNCTION_MAX_TIMEOUT_SECONDS")
    if settings.function_max_memory_mb > settings.function_memory_limit_mb:
        mistakes.append("FUNCTION_MAX_MEMORY_MB: is above FUNCTION_MEMORY_LIMIT_MB")
    if settings.s3_bucket_name and bool(settings.s3_access_key_id) != bool(
        settings.s3_secret_access_key.get_secret_value()
    ):
        mistakes.append("S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY: set both or neither")
    return mistakes
