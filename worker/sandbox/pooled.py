"""A sandbox as the pool hands it out and takes it back."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from worker.sandbox.contract import Sandbox, SandboxSpec


class StartKind(StrEnum):
    COLD = "cold"  # it had to be made, from an image or from a generic sandbox
    PAUSED = "paused"  # an idle one was unpaused
    WARM = "warm"  # one that had served before was running


@dataclass(slots=True, kw_only=True, eq=False)
class PooledSandbox:
    """A sandbox on its way through the pool; in use between ``acquire`` and ``release``.

    Times are of ``time.monotonic``: the loop's own clock may move by whole milliseconds only, and calls are shorter.
    """

    sandbox: Sandbox
    spec: SandboxSpec
    born: float
    idle_since: float
    held_since: float = 0.0
    start_kind: StartKind = StartKind.COLD
    paused: bool = False
    uses: int = 0
