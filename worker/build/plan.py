"""The input of a build, and its results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from shared.layers import VersionLayers

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """The version to build. ``artifact`` is the canonical tar.gz (plain files and folders only, names vetted)."""

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
class BuiltVersion:
    """The layers of a version that was built; all of them are in the artifact store."""

    layers: VersionLayers
    analysis: Mapping[str, object] = field(default_factory=dict)


class BuildRejected(Exception):
    """The user's code cannot become a version. ``reason`` is ``analysis_rejected`` or ``build_failed``."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
