"""Errors of the platform, not of the function, around sandboxes and builds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.errors import Unavailable
from shared.jobs import Reason

if TYPE_CHECKING:
    pass


class EngineUnavailable(Unavailable):
    """The engine did not answer or failed on its own account: the function is not to blame, a retry makes sense."""


class NotRun(EngineUnavailable):
    """The engine failed, and no code of the function ran."""


class LayerUnavailable(EngineUnavailable):
    """A layer is not on this machine, and the artifact store does not have it or does not answer.

    :param reason: ``artifact_missing`` if the store does not have it as it was, else ``dependency_down``.
    """

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.reason = reason


class Unsuited(EngineUnavailable):
    """The version was built by another kind of engine, and has to be built again."""
