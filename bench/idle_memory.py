"""Memory of an idle platform: API, worker and scheduler, each with its share of the pages that they share."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import psutil

from bench.figure import Better, Figure
from bench.measurement import Measurement
from bench.platform import Platform
from bench.warmth import warm_hello

MEGABYTE = 1_000_000
_EVERY_S = 1.0


async def measure(measurement: Measurement) -> list[Figure]:
    """After the start, and again after load, which leaves caches and fragments behind."""
    seconds = measurement.pick(5, 60)
    async with measurement.platform() as platform, platform.caller() as caller:
        measurement.say(f"memory of the idle platform, mean of {seconds} s")
        fresh = await _mean(platform, seconds)
        measurement.say(f"memory after load, mean of {seconds} s")
        await warm_hello(platform, caller, measurement.pick(6, 20))
        used = await _mean(platform, seconds)
    return [
        Figure(
            key=key,
            what=f"idle memory, api + worker + scheduler, {when}",
            value=sum(parts.values()),
            unit="MB",
            better=Better.LESS,
            target=250,
            details={"mb": parts, "kind": "PSS" if sys.platform == "linux" else "RSS", "seconds": seconds},
        )
        for key, when, parts in (
            ("idle_memory", "after the start", fresh),
            ("idle_memory_after_load", "after load", used),
        )
    ]


async def _mean(platform: Platform, seconds: int) -> dict[str, float]:
    """Megabytes (10^6 bytes) by process, the mean of a look a second."""
    sums: dict[str, int] = {}
    for _ in range(seconds):
        await asyncio.sleep(_EVERY_S)
        for name, process in platform.processes().items():
            sums[name] = sums.get(name, 0) + await asyncio.to_thread(_bytes, process)
    return {name: total / seconds / MEGABYTE for name, total in sums.items()}


def _bytes(process: psutil.Process) -> int:
    """Proportional set size, as the kernel sums it; resident size where the kernel does not."""
    if sys.platform != "linux":
        return int(process.memory_info().rss)
    for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"the kernel gives no PSS of process {process.pid}")
