"""Waiting for a job to reach a final state."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

from cli.client import Request
from cli.errors import ExitStatus
from cli.session import Session, job_path

FINAL = frozenset({"succeeded", "failed", "cancelled"})
LONGEST_POLL_S = 20  # shorter than what proxies commonly allow an answer to take
_SHORTEST_ROUND_S = 0.2


async def job_state(session: Session, job_id: str, *, wait_s: int = 0) -> dict[str, Any]:
    """The job now, or when it becomes final within ``wait_s``."""
    params = {"wait": str(wait_s)} if wait_s else {}
    answer = await session.call(Request(method="GET", path=job_path(job_id), params=params, wait_s=wait_s))
    return answer.document


async def wait_for_job(session: Session, job_id: str, *, wait_s: float) -> dict[str, Any]:
    """The job once it is final, or as it is after ``wait_s``."""
    until = time.monotonic() + wait_s
    while True:
        left = max(0.0, until - time.monotonic())
        began = time.monotonic()
        job = await job_state(session, job_id, wait_s=min(LONGEST_POLL_S, math.ceil(left)))
        if is_final(job) or time.monotonic() >= until:
            return job
        await pause_after(began)


async def pause_after(began: float) -> None:
    """Keep a server that answers without waiting from being asked without pause."""
    await asyncio.sleep(max(0.0, _SHORTEST_ROUND_S - (time.monotonic() - began)))


def is_final(job: dict[str, Any]) -> bool:
    return job.get("status") in FINAL


def status_of(job: dict[str, Any]) -> ExitStatus:
    """What the command exits with for ``job`` as it is."""
    return ExitStatus.FAILED if job.get("status") in ("failed", "cancelled") else ExitStatus.OK
