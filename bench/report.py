"""The results as a table for people and a JSON file for machines."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.figure import Baseline, Better, Figure, Verdict

_STYLES = {Verdict.YES: "green", Verdict.FLOOR: "yellow", Verdict.NO: "red", Verdict.NONE: "dim"}


def show(figures: Sequence[Figure], baselines: Sequence[Baseline], machine: Mapping[str, object]) -> None:
    """Print both tables. A pipe gets the same text, as wide as it needs."""
    console = Console(width=None if Console().is_terminal else 200)
    table = Table(
        title=f"{machine['cores']} cores, {machine['system']}, engine {machine['engine']}, {machine['form']} form",
        caption=_caption(machine),
    )
    for name in ("figure", "ours", "target", "baseline", "", "ratio", "reached", "load"):
        table.add_column(name, justify="left" if name in ("figure", "", "reached") else "right")
    for figure in figures:
        verdict = figure.verdict
        table.add_row(
            figure.what,
            _value(figure.value, figure.unit),
            _target(figure),
            "" if figure.baseline is None else _value(figure.baseline.value, figure.unit),
            "" if figure.baseline is None else figure.baseline.name,
            "" if figure.ratio is None else f"{figure.ratio:,.3g} x",
            f"[{_STYLES[verdict]}]{verdict}[/]",
            f"{figure.load_average:.1f}",
        )
    console.print(table)
    if baselines:
        table = Table(title="Baselines and limits of this run")
        table.add_column("what")
        table.add_column("value", justify="right")
        for baseline in baselines:
            table.add_row(baseline.name, f"{baseline.value:,.4g}")
        console.print(table)


def write(
    path: Path,
    figures: Sequence[Figure],
    baselines: Sequence[Baseline],
    machine: Mapping[str, object],
    error: str | None,
) -> None:
    """The file has ``machine``, ``figures``, ``baselines`` and ``error``, which is null unless something went wrong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": {**machine, "load_average_after": os.getloadavg()},
        "figures": [
            {
                **asdict(figure),
                "ratio": figure.ratio,
                "reached": figure.verdict is Verdict.YES,
                "verdict": figure.verdict,
            }
            for figure in figures
        ],
        "baselines": [asdict(baseline) for baseline in baselines],
        "error": error,
    }
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _caption(machine: Mapping[str, object]) -> str | None:
    if machine["engine"] == "docker":
        return None
    return "No container engine answered: functions ran as child processes, and no figure counts."


def _value(value: float, unit: str) -> str:
    digits = 2 if value < 100 else 0
    return f"{value:,.{digits}f} {unit}".replace(" /s", "/s")


def _target(figure: Figure) -> str:
    if figure.target is None:
        return ""
    sign = "≤" if figure.better is Better.LESS else "≥"
    target = f"{sign} {figure.target:,g} {figure.unit}".replace(" /s", "/s")
    return target if figure.floor is None else f"{target} (floor {figure.floor:,g})"
