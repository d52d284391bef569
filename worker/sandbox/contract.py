"""Sandboxes as the rest of the worker knows them, and the data that goes in and out.

A sandbox serves one call at a time. After any outcome but ``succeeded``, ``handler_error``, ``invalid_result`` and
``result_too_large`` it reports ``reusable = False`` and must be destroyed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from shared.functions import Network
from shared.layers import VersionLayers

if TYPE_CHECKING:
    from worker.sandbox.tail import Tail
from worker.sandbox.log import LogEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """The specification of a sandbox. Two calls may share a sandbox only if their specs are equal."""

    version_id: UUID
    function_id: UUID
    user_id: UUID
    function_name: str
    version: int
    runtime: str
    handler: str
    layers: VersionLayers
    memory_mb: int
    tmp_mb: int
    cpus: float
    timeout_ms: int
    env: tuple[tuple[str, str], ...] = ()
    network: Network = "none"

    def __hash__(self) -> int:
        # Looked up several times a call; specs of one version hardly ever differ.
        return hash(self.version_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One attempt handed to a sandbox. ``event`` is the JSON text that the handler receives as ``event``."""

    job_id: UUID
    attempt: int
    event: bytes
    timeout_ms: int
    max_result_bytes: int
    max_log_bytes: int
    tail: Tail | None = None  # what subscribers are told


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOutcome:
    """How one call ended.

    ``reason`` is ``None`` on success, else one of ``handler_error``, ``timeout``, ``out_of_memory``, ``crashed``,
    ``invalid_result``, ``result_too_large``, ``sandbox_start_failed``. ``result`` is JSON text, verbatim from the
    function; ``error`` has ``type``, ``message``, for handler errors ``traceback``, and ``hint`` where a limit of the
    sandbox is the likely cause. ``exit_code`` is 0 on
    success, -1 for a timeout, otherwise the process's own (137 after SIGKILL) or 1 for a handler error.
    """

    reason: str | None
    result: bytes | None = None
    error: Mapping[str, str] | None = None
    logs: tuple[LogEntry, ...] = ()
    logs_truncated: bool = False
    exit_code: int | None = 0
    run_ms: float = 0.0
    cpu_ms: float | None = None
    peak_memory_bytes: int | None = None
    ran: bool = True
    """False only if certainly no code of the function ran: then the call may be made again in another sandbox."""
    retry: float | bool | None = None
    """The function's wish for another attempt: False for none, seconds until one, None to go by its settings."""
    is_response: bool = False
    """The result is a shaped HTTP answer: ``status``, ``headers`` (an object, or pairs where names are repeated), and
    ``body`` (text or any JSON) or ``body_base64``."""


class Sandbox(Protocol):
    """A started sandbox that is ready for a call."""

    id: str

    @property
    def reusable(self) -> bool:
        """False once it timed out, died, misbehaved or was destroyed."""

    async def call(self, call: Call) -> CallOutcome:
        """Run one call to its end or its timeout. Never raises for what the function does.

        Cancelling this coroutine leaves the sandbox not reusable; the caller then destroys it.
        """

    async def pause(self) -> None:
        """Freeze it: it uses no CPU until it is unpaused. Raises :class:`EngineUnavailable`."""

    async def unpause(self) -> None:
        """Let a paused one run again. Raises :class:`EngineUnavailable`; it is not reusable then."""

    async def destroy(self) -> None:
        """Kill and remove it with everything it owned, paused or not. Idempotent; returns when nothing is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenericSpec:
    """The specification of a generic sandbox: runtime, base and release, and the size and network that it keeps."""

    runtime: str
    foundation: VersionLayers  # base and runtime alone
    memory_mb: int
    tmp_mb: int
    cpus: float
    network: Network = "none"


def generic_spec(spec: SandboxSpec) -> GenericSpec:
    """The spec of the generic sandboxes that can become a sandbox of ``spec``."""
    return GenericSpec(
        runtime=spec.runtime,
        foundation=spec.layers.foundation,
        memory_mb=spec.memory_mb,
        tmp_mb=spec.tmp_mb,
        cpus=spec.cpus,
        network=spec.network,
    )


class GenericSandbox(Protocol):
    """A started sandbox of a runtime that has met no function's code yet."""

    id: str
    spec: GenericSpec

    @property
    def usable(self) -> bool:
        """False once it died or was destroyed or specialized."""

    async def specialize(self, spec: SandboxSpec) -> Sandbox:
        """Give it a version's code, read-only, and import its module: from now on it is that version's sandbox.

        Needs a spec of the same runtime, size and network that was prepared. Raises :class:`EngineUnavailable`, and is
        gone then.
        """

    async def destroy(self) -> None:
        """As :meth:`Sandbox.destroy`."""


class SandboxStarter(Protocol):
    """The part of an engine that makes sandboxes."""

    async def start(self, spec: SandboxSpec) -> Sandbox:
        """Start a sandbox and return it once it may be called. Fetches layers of the version that this machine lacks.
        If the function's module fails to import, the first call's outcome says so. Raises :class:`EngineUnavailable`,
        also as :class:`LayerUnavailable` or :class:`Unsuited`."""

    async def start_generic(self, spec: GenericSpec) -> GenericSandbox | None:
        """Start a generic sandbox; ``None`` for runtimes that have none. Raises :class:`EngineUnavailable`."""

    async def prepare(self, spec: SandboxSpec) -> bool:
        """Bring a version's code to this machine so that a generic sandbox can be specialized to it at once; False if
        no generic sandbox can become what ``spec`` says. Idempotent, and cheap when it is there. Raises
        :class:`EngineUnavailable`."""

    async def suits(self, runtime: str, layers: VersionLayers) -> bool:
        """Whether a version of ``runtime`` and these layers was built for an engine of this kind."""

    async def has(self, spec: SandboxSpec) -> bool:
        """Whether this machine has the image that sandboxes of ``spec`` are started from."""
