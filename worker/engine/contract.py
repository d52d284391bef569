"""What an execution engine must offer, and the data that crosses its boundary.

An *engine* builds versions and starts *sandboxes*. ``docker`` makes containers, ``process`` child processes; both
are held to ``tests/acceptance/test_engine_conformance.py``. Nothing outside ``worker/engine`` knows which one runs.

A sandbox serves one call at a time. After any outcome but ``succeeded``, ``handler_error``, ``invalid_result`` and
``result_too_large`` it reports ``reusable = False`` and must be destroyed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from shared.errors import Unavailable
from shared.functions import Network

if TYPE_CHECKING:
    from worker.engine.tail import Tail


class LogStream(StrEnum):
    STDOUT = "stdout"
    STDERR = "stderr"
    LOGGER = "logger"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One stretch of output: consecutive bytes of one stream and level, decoded as UTF-8 with ``backslashreplace``."""

    stream: LogStream
    level: str  # debug, info, warning, error, critical
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """What is to be built. ``artifact`` is the canonical tar.gz (plain files and folders only, names vetted)."""

    version_id: UUID
    function_id: UUID
    user_id: UUID
    runtime: str
    handler: str
    artifact: Path
    artifact_sha256: str
    timeout_s: float  # of the whole build
    memory_mb: int  # of the step that installs dependencies
    max_unpacked_bytes: int  # of installed dependencies
    max_log_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltImage:
    """``ref`` is what ``SandboxSpec.image`` takes: an image id (docker) or a folder's name (process)."""

    ref: str
    size_bytes: int
    analysis: Mapping[str, object] = field(default_factory=dict)


class BuildRejected(Exception):
    """The user's code cannot become a version. ``reason`` is ``analysis_rejected`` or ``build_failed``."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class EngineUnavailable(Unavailable):
    """The engine did not answer or failed on its own account: the function is not to blame, a retry makes sense."""


class NotRun(EngineUnavailable):
    """As its parent, and surely nothing of the function ran."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """What a sandbox is started from. Two calls may share a sandbox only if their specs are equal."""

    version_id: UUID
    function_id: UUID
    user_id: UUID
    function_name: str
    version: int
    runtime: str
    handler: str
    image: str
    memory_mb: int
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
    tail: Tail | None = None  # what those see who look on


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOutcome:
    """How one call ended.

    ``reason`` is ``None`` on success, else one of ``handler_error``, ``timeout``, ``out_of_memory``, ``crashed``,
    ``invalid_result``, ``result_too_large``, ``sandbox_start_failed``. ``result`` is JSON text, verbatim from the
    function; ``error`` has ``type``, ``message`` and, for handler errors, ``traceback``. ``exit_code`` is 0 on
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
    """False only if surely no code of the function ran: the call may be made again in another sandbox."""
    retry: float | bool | None = None
    """What the function says of another attempt: False for none, seconds until one, None for what its settings say."""
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
class BlankSpec:
    """What a blank is started from: a runtime, and the size and the network that it has from the start."""

    runtime: str
    memory_mb: int
    cpus: float
    network: Network = "none"


def blank_spec(spec: SandboxSpec) -> BlankSpec:
    """Of what kind a blank must be to become such a sandbox."""
    return BlankSpec(runtime=spec.runtime, memory_mb=spec.memory_mb, cpus=spec.cpus, network=spec.network)


class Blank(Protocol):
    """A started sandbox of a runtime that has met no function's code yet."""

    id: str
    spec: BlankSpec

    @property
    def usable(self) -> bool:
        """False once it died or was destroyed or specialised."""

    async def specialise(self, spec: SandboxSpec) -> Sandbox:
        """Give it a version's code, read-only, and import its module: from now on it is that version's sandbox.

        Needs a spec of the same runtime, size and network that was prepared. Raises :class:`EngineUnavailable`, and is
        gone then.
        """

    async def destroy(self) -> None:
        """As :meth:`Sandbox.destroy`."""


Standing = Callable[[frozenset[UUID]], Awaitable[Mapping[UUID, str | None]]]
"""Which of these versions stand: they are known, their build did not fail, and their function was not deleted. Answers
the image of each, ``None`` while it is being built."""


class Engine(Protocol):
    name: str

    async def open(self) -> None:
        """Check that the engine answers; raises :class:`EngineUnavailable` with what to do."""

    async def answers(self) -> bool:
        """Whether the engine serves requests just now; asked with a short bound."""

    async def build(self, plan: BuildPlan, log: Callable[[str], None]) -> BuiltImage:
        """Make ``plan`` startable. ``log`` takes output line by line. Raises :class:`BuildRejected` or
        :class:`EngineUnavailable`. Building the same plan twice yields an equal result; where a Dockerfile is built,
        on one machine only."""

    async def start(self, spec: SandboxSpec) -> Sandbox:
        """Start a sandbox and return it once it may be called. What goes wrong *in* the function while its module
        is imported is reported by the first call's outcome, not here. Raises :class:`EngineUnavailable`."""

    async def prestart(self, spec: BlankSpec) -> Blank | None:
        """Start a blank; ``None`` for runtimes that have none. Raises :class:`EngineUnavailable`."""

    async def prepare(self, spec: SandboxSpec) -> bool:
        """Bring a version's code to this machine so that a blank can be specialised to it at once; False if no blank
        can become what ``spec`` says. Idempotent, and cheap when it is there. Raises :class:`EngineUnavailable`."""

    async def has_image(self, image: str) -> bool:
        """Whether ``image`` is on this machine."""

    async def remove_image(self, image: str) -> None:
        """Drop a version's image; absent is fine. One that a sandbox still uses is left to :meth:`tidy`."""

    async def sweep(self, live_workers: frozenset[str]) -> int:
        """Destroy sandboxes, and remove folders and half-made images, of this installation whose worker is not in
        ``live_workers``; their count. Raises :class:`EngineUnavailable`."""

    async def tidy(self, standing: Standing) -> int:
        """Remove the images of this installation's versions that do not stand; then, while what is left takes more
        disk than it may, the images of versions that were not used for longest, dependencies that no version stands
        on, and runtimes at last. How many went.

        What a sandbox or a running build uses stays, whoever's worker it is; another installation's too. A version
        whose image went is built again at its next call. Raises :class:`EngineUnavailable`, and what ``standing``
        raises."""

    async def close(self) -> None:
        """Destroy every sandbox of this worker and let go of the engine."""
