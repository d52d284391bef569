"""The cost of starting a sandbox, in seconds, measured as starts happen."""

from __future__ import annotations

from dataclasses import dataclass

_WEIGHT = 0.25
_AT_FIRST_S = 0.15
_LEAST_S = 0.02
_MOST_S = 0.25
"""A start that took longer waited for a processor or for the engine, and waiting takes nothing from others."""


@dataclass(slots=True)
class StartCosts:
    """Means of what starts took, by their kind. A generic sandbox that becomes a version's is replaced by another, so
    that start costs both: making the version of it, and making the next generic one."""

    _image_s: float = _AT_FIRST_S
    _generic_s: float = _AT_FIRST_S
    _specialize_s: float = _LEAST_S

    def from_image(self, took_s: float) -> None:
        self._image_s = _mean(self._image_s, took_s)

    def generic(self, took_s: float) -> None:
        """A generic sandbox was started."""
        self._generic_s = _mean(self._generic_s, took_s)

    def specialized(self, took_s: float) -> None:
        """A generic sandbox became a version's."""
        self._specialize_s = _mean(self._specialize_s, took_s)

    def of_start(self, *, from_generic: bool) -> float:
        """What the next start will take, in seconds."""
        cost_s = self._specialize_s + self._generic_s if from_generic else self._image_s
        return min(max(cost_s, _LEAST_S), _MOST_S)


def _mean(before_s: float, took_s: float) -> float:
    return before_s + _WEIGHT * (min(took_s, _MOST_S) - before_s)
