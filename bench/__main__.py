"""``python -m bench``: measure the figures of ``docs/reference/bench.md`` and print them beside their baselines."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import traceback
from argparse import ArgumentParser
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from bench import (
    async_accept,
    async_end_to_end,
    backlog,
    burst,
    cold_kinds,
    cold_start,
    crash,
    crowd,
    deploy_first_result,
    engine,
    engine_restart,
    idle_memory,
    machine,
    million,
    misbehaviour,
    outages,
    report,
    rolling,
    sandboxes,
    scale,
    slots,
    waiting,
    warm_sync,
)
from bench.baselines import Baselines
from bench.figure import Figure
from bench.measurement import Measure, Measurement
from bench.platform import ROOT

FAMILIES: dict[str, Measure] = {
    "idle_memory": idle_memory.measure,
    "warm_sync": warm_sync.measure,
    "async_accept": async_accept.measure,
    "async_end_to_end": async_end_to_end.measure,
    "cold_start": cold_start.measure,
    "cold_kinds": cold_kinds.plain,
    "cold_packages": cold_kinds.with_packages,
    "sandboxes": sandboxes.measure,
    "deploy_first_result": deploy_first_result.measure,
    "scale": scale.measure,
    "backlog": backlog.measure,
    "waiting": waiting.measure,
    "slots": slots.measure,
    "burst": burst.measure,
}
PROOFS: dict[str, Measure] = {
    "crash": crash.measure,
    "crowd": crowd.measure,
    "misbehaviour": misbehaviour.measure,
    "engine_restart": engine_restart.measure,
    "outages": outages.measure,
    "rolling": rolling.measure,
    "million": million.measure,
}
"""What must hold over minutes; each is run by its name."""


async def measure(names: list[str], *, quick: bool, out: Path) -> int:
    """0 also when a figure misses its target: it is a measurement. 1 when an answer was wrong or something broke."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    engine_name = await engine.choose()
    facts = await machine.facts(engine_name, quick=quick)
    baselines = Baselines(quick=quick, engine_name=engine_name, say=_say)
    measurement = Measurement(quick=quick, engine_name=engine_name, baselines=baselines, say=_say)
    figures: list[Figure] = []
    errors = []
    for name in names:
        try:
            measure_one = (FAMILIES | PROOFS)[name]
            load_average = os.getloadavg()[0]
            figures += [replace(figure, load_average=load_average) for figure in await measure_one(measurement)]
        except Exception as error:  # noqa: BLE001 - the other families are still worth measuring; the status tells
            traceback.print_exc()
            errors.append(f"{name}: {type(error).__name__}: {error}")
    report.show(figures, baselines.measured, facts)
    report.write(out, figures, baselines.measured, facts, "\n".join(errors) or None)
    print(f"written to {out}")
    for failure in errors:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if errors else 0


def main() -> int:
    parser = ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the short form: minutes less, and rougher")
    parser.add_argument(
        "--only", action="append", choices=FAMILIES | PROOFS, help="measure this family; may be repeated"
    )
    parser.add_argument("--out", type=Path, help="the JSON file (default: bench/results/<date>.json)")
    arguments = parser.parse_args()
    default = ROOT / "bench" / "results" / f"{datetime.now(UTC):%Y-%m-%dT%H%M%S}.json"
    try:
        return uvloop.run(
            measure(arguments.only or list(FAMILIES), quick=arguments.quick, out=arguments.out or default)
        )
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130


def _say(what: str) -> None:
    print(f"bench: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
