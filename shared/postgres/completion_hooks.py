"""Callbacks and following jobs, written in the transaction that ends the job which asks for them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from shared.chains import reference
from shared.ids import new_id
from shared.postgres.pool import Connection
from shared.postgres.queries import queries
from shared.postgres.submissions import insert
from shared.queue.message import JobMessage, now_ms
from shared.submission.submission import Submission

log = logging.getLogger(__name__)

MAX_CHAIN_DEPTH = 8

_SQL = queries("completion_hooks")
_DELIVERIES = queries("deliveries")


async def run_completion_hooks(connection: Connection, jobs: Sequence[UUID]) -> list[JobMessage]:
    """Write the callbacks and following jobs that just ended ``jobs`` ask for; the following jobs, to be put on the
    queue after the commit.

    Call it once for each job, in the transaction that makes it final.
    """
    rows = await connection.fetch(_SQL["completion_hooks"], jobs)
    called = [row for row in rows if row["callback_url"] is not None]
    if called:
        await connection.execute(
            _DELIVERIES["insert_deliveries"],
            sorted(new_id() for _ in called),
            [row["id"] for row in called],
            [row["user_id"] for row in called],
            [row["callback_url"] for row in called],
            [f"job.{row['status']}" for row in called],
        )
    refused, followed = [], []
    for row in rows:
        if row["next_name"] is None:
            continue
        why = _refusal(row)
        if why is None:
            followed.append(row)
        else:
            refused.append((row["id"], why))
            log.warning("nothing follows a job", extra={"job": str(row["id"]), "reason": why})
    if refused:
        await connection.execute(_SQL["refuse_chains"], [job for job, _ in refused], [why for _, why in refused])
    return await _chain(connection, followed) if followed else []


def _refusal(row: Any) -> str | None:
    if row["chain_depth"] >= MAX_CHAIN_DEPTH:
        return "chain_too_deep"
    if row["next_id"] is None:
        return "function_not_found"
    return "no_active_version" if row["next_version"] is None else None


async def _chain(connection: Connection, rows: Sequence[Any]) -> list[JobMessage]:
    followers = [
        Submission(
            id=job,
            user_id=row["user_id"],
            function_id=row["next_id"],
            version_id=row["next_version"],
            concurrency=row["next_concurrency"] or 0,
            accepted_ms=now_ms(),
            payload=reference(row["id"]),
            chained_from=row["id"],
            chain_depth=row["chain_depth"] + 1,
        )
        for job, row in zip(sorted(new_id() for _ in rows), rows, strict=True)
    ]
    return [follower.message() for follower in await insert(connection, followers)]
