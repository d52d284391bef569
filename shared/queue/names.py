"""Keys and channels of the queue in Redis. Those of one queue begin with ``cp:<queue>:`` (``lua/prelude.lua``)."""

from __future__ import annotations

QUEUES = ("invoke", "build")
RECORDS = "cp:records"
RECORDS_GROUP = "postgres"
GENERATION = "cp:generation"
WORKERS = "cp:workers"
OUT_OF_PLACE = "cp:out-of-place"
FINAL_CHANNEL = "cp:final"
EVENTS_CHANNEL = "cp:events"
"""Events of jobs that have subscribers: a job's id, a space, a JSON object with its ``kind``."""
WATCHED = "cp:watched"
CHANGED_CHANNEL = "cp:changed"
REBUILT_CHANNEL = "cp:rebuilt"
"""A new generation begins: workers register their running attempts with it."""
OPENED_CHANNEL = "cp:opened"
"""The new generation is open: a synchronous job that it does not hold is lost."""


def progress_key(job: str) -> str:
    return f"cp:progress:{job}"
