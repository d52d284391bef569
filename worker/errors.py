"""What goes wrong on the platform's side of a sandbox or a build."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.errors import Unavailable

if TYPE_CHECKING:
    pass


class EngineUnavailable(Unavailable):
    """The engine did not answer or failed on its own account: the function is not to blame, a retry makes sense."""


class NotRun(EngineUnavailable):
    """As its parent, and surely nothing of the function ran."""
