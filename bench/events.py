"""What the container engine tells of a stretch of time."""

from __future__ import annotations

import json

from aiodocker import Docker
from aiohttp import ClientTimeout

from bench.load import Outcome
from bench.measurement import Measurement
from bench.platform import Platform
from worker.engine.docker.hardening import LABEL_INSTALLATION, LABEL_WORKER

_TIMEOUT_S = 30.0


async def containers_started(measurement: Measurement, platform: Platform, outcome: Outcome) -> int:
    """How many containers of sandboxes were started while ``outcome`` was measured; 0 of an engine without any."""
    if measurement.engine_name != "docker":
        return 0
    window = {
        "since": f"{outcome.started:.3f}",
        "until": f"{outcome.started + outcome.elapsed_s:.3f}",
        "filters": json.dumps(
            {
                "type": ["container"],
                "event": ["start"],
                "label": [f"{LABEL_INSTALLATION}={platform.installation}", LABEL_WORKER],
            }
        ),
    }
    async with (
        Docker() as docker,
        docker._query("events", params=window, timeout=ClientTimeout(total=_TIMEOUT_S)) as response,
    ):
        return len((await response.read()).splitlines())
