"""What a person looks for in a job: where it is, since when, for how long."""

from __future__ import annotations

from datetime import datetime
from typing import Any

STATE_COLUMNS = ("KIND", "STATUS", "CREATED", "TOOK", "MORE")
_PHASES = ("queue", "sandbox", "run", "total")


def state_of(job: dict[str, Any]) -> list[str | None]:
    """The cells of a job under :data:`STATE_COLUMNS`."""
    return [job.get("kind"), job.get("status"), moment(job.get("created_at")), took(job), more(job)]


def job_fields(job: dict[str, Any]) -> list[tuple[str, object]]:
    """Names and values of all that a job shows but its error and result; None where it has nothing to say."""
    fields = ("id", "function", "function_id", "version", "kind", "status", "reason", "attempt")
    times = ("created_at", "run_at", "expires_at", "started_at", "finished_at")
    others = ("redrive_of", "chained_from", "chain_refused", "callback_url", "missing")
    priority = job.get("priority")
    return [
        *((name, job.get(name)) for name in fields),
        ("progress", progress(job)),
        ("priority", None if priority == "normal" else priority),
        *((name, moment(job.get(name))) for name in times),
        ("took", took(job)),
        ("timings", _timings(job)),
        *((name, job.get(name)) for name in others),
    ]


def moment(text: object) -> str | None:
    """A time of the API to the second."""
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M:%SZ")
    except ValueError:
        return text


def span(milliseconds: float) -> str:
    """A duration in the unit that it is told in."""
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def took(job: dict[str, Any]) -> str | None:
    """How long the job ran, if it is known."""
    ran = (job.get("timings") or {}).get("run_ms")
    return span(ran) if isinstance(ran, int | float) else None


def progress(job: dict[str, Any]) -> str | None:
    """What a running function said of how far it is."""
    said = job.get("progress")
    if not isinstance(said, dict):
        return None
    fraction = said.get("fraction")
    shown = f"{fraction:.0%}" if isinstance(fraction, int | float) else "-"
    return f"{shown} {said.get('message', '')}".rstrip()


def more(job: dict[str, Any]) -> str | None:
    """Why a job failed, when it is due, how far it is."""
    if job.get("status") == "scheduled":
        return f"due {moment(job.get('run_at'))}"
    return job.get("reason") or progress(job)


def _timings(job: dict[str, Any]) -> str | None:
    timings = job.get("timings") or {}
    known = [(phase, timings.get(f"{phase}_ms")) for phase in _PHASES]
    return ", ".join(f"{phase} {span(value)}" for phase, value in known if isinstance(value, int | float)) or None
