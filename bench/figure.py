"""A measured figure: our value beside its target and its baseline."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class WrongAnswer(Exception):
    """The platform did not do what was measured: no figure comes of it, and the run fails."""


class Better(StrEnum):
    LESS = "less"
    MORE = "more"


class Verdict(StrEnum):
    YES = "yes"
    FLOOR = "floor"  # the least that this release promises, not the target
    NO = "no"
    NONE = "-"  # there is no target: it stands beside its baseline


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What ours is compared with, measured in the same run, in the figure's unit."""

    name: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """:param key: stable name, for the JSON file. :param details: what else was seen, for the JSON file only.
    :param load_average: of the last minute before its family was measured; what went before counts too.
    """

    key: str
    what: str
    value: float
    unit: str
    better: Better
    target: float | None
    floor: float | None = None
    baseline: Baseline | None = None
    details: dict[str, object] = field(default_factory=dict)
    load_average: float = 0.0

    @property
    def verdict(self) -> Verdict:
        if self.target is None:
            return Verdict.NONE
        if self._reaches(self.target):
            return Verdict.YES
        return Verdict.FLOOR if self.floor is not None and self._reaches(self.floor) else Verdict.NO

    @property
    def ratio(self) -> float | None:
        """How many times better than the baseline; below 1 is worse."""
        if self.baseline is None or not self.baseline.value or not self.value:
            return None
        ratio = self.value / self.baseline.value
        return ratio if self.better is Better.MORE else 1 / ratio

    def _reaches(self, bound: float) -> bool:
        return self.value >= bound if self.better is Better.MORE else self.value <= bound


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of a sorted, non-empty sequence: always a value that was measured."""
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
