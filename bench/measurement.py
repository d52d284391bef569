"""What every family of figures gets: how long to measure, on which engine, beside which baselines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from bench.baselines import Baselines
from bench.figure import Figure
from bench.platform import Platform

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """:param quick: the short form. :param say: tells the person who waits what is going on."""

    quick: bool
    engine_name: str
    baselines: Baselines
    say: Callable[[str], None]

    def platform(self, *, workers: int = 1, env: dict[str, str] | None = None) -> Platform:
        return Platform(self.engine_name, workers=workers, env=env)

    def pick(self, quick: Value, full: Value) -> Value:
        return quick if self.quick else full


Measure = Callable[[Measurement], Awaitable[list[Figure]]]
