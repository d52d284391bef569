"""Writes records of attempts to Postgres: to jobs, versions, invocations, logs, and the jobs that follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson

from shared.ids import time_of
from shared.jobs import JobStatus
from shared.postgres.completion_hooks import run_completion_hooks
from shared.postgres.pool import Connection, Pool, postgres_errors
from shared.postgres.queries import queries
from shared.queue.message import JobMessage
from shared.queue.records import Record, epoch_number
from shared.sealing import to_column

_SQL = queries("jobs")


async def settle(pool: Pool, records: Sequence[Record]) -> Sequence[JobMessage]:
    """Write records of attempts in one transaction. Repeating it changes nothing.

    :returns: the jobs that follow ended ones, to be put on the queue.
    """
    latest: dict[UUID, Record] = {}
    for record in records:
        if record.status == JobStatus.RUNNING:
            continue
        before = latest.get(record.id)
        if before is None or _supersedes(record, before):
            latest[record.id] = record
    attempts = [record for record in records if record.outcome is not None and record.kind == "invoke"]
    with postgres_errors():
        async with pool.acquire() as connection, connection.transaction():
            # One order of row locks for all workers, so that two batches cannot wait for each other.
            ended = []
            if latest:
                ended = await _upsert_jobs(connection, sorted(latest.values(), key=lambda record: record.id))
            for distinct in _rounds(attempts):
                await _insert_invocations(connection, distinct)
            if attempts:
                await _insert_logs(connection, attempts)
            await _fail_versions(connection, [record for record in latest.values() if record.kind == "deploy"])
            return await run_completion_hooks(connection, ended) if ended else []


def _supersedes(record: Record, before: Record) -> bool:
    if before.status in ("succeeded", "failed", "cancelled"):
        return False
    return record.epoch is None or before.epoch is None or epoch_number(record.epoch) >= epoch_number(before.epoch)


def _rounds(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    """``records`` in rounds without two records of one attempt: the second one of an attempt completes the first, so it
    is written after it."""
    while records:
        distinct: dict[tuple[UUID, str | None], Record] = {}
        again = [r for r in records if distinct.setdefault((r.id, r.epoch), r) is not r]
        yield list(distinct.values())
        records = again


def from_unix_ms(value: float | None) -> datetime | None:
    return None if value is None else datetime.fromtimestamp(value / 1000, UTC)


async def _upsert_jobs(connection: Connection, records: Sequence[Record]) -> list[UUID]:
    """:returns: the jobs that ended by this and that a callback or another job follows."""
    final = ("succeeded", "failed", "cancelled")
    records = [_unspent(r) if r.outcome == "handed_back" else r for r in records]
    rows = await connection.fetch(
        _SQL["settle_jobs"],
        [r.id for r in records],
        [r.kind for r in records],
        [r.user_id for r in records],
        [r.function_id for r in records],
        [r.version_id for r in records],
        [r.status for r in records],
        # The reason of a lost attempt belongs into its own record: the job goes on and has none.
        [r.reason if r.status in final else None for r in records],
        [r.attempt for r in records],
        [r.lost for r in records],
        [None if r.epoch is None else epoch_number(r.epoch) for r in records],
        [r.payload for r in records],
        [r.result for r in records],
        [r.error if r.status in final else None for r in records],
        [r.queue_ms for r in records],
        [r.sandbox_ms for r in records],
        [r.run_ms for r in records],
        [r.total_ms for r in records],
        [time_of(r.id) for r in records],
        [from_unix_ms(r.started_ms) for r in records],
        [from_unix_ms(r.at_ms) if r.status in final else None for r in records],
        [None if r.run_at_ms is None else (r.run_at_ms - r.at_ms) / 1000 for r in records],
    )
    return [row["id"] for row in rows]


async def _fail_versions(connection: Connection, deploys: Sequence[Record]) -> None:
    """Fail the versions of deploys that ended without success, in the transaction that ends their jobs: only the
    attempt whose end counts decides."""
    failed = [record for record in deploys if record.status in ("failed", "cancelled")]
    if failed:
        await connection.execute(
            _SQL["fail_versions"],
            [record.id for record in failed],
            [record.reason or record.status for record in failed],
            [_deploy_error(record) for record in failed],
        )


def _deploy_error(record: Record) -> str:
    if record.error is not None:
        return _text(str(orjson.loads(record.error)["message"]))
    return "The deploy was cancelled." if record.status == "cancelled" else "The workers that built it were lost."


def _unspent(record: Record) -> Record:
    """The record of a handed-back attempt as it is applied to its job: as if the attempt had not been made."""
    before = max(0, record.attempt - 1)
    return replace(record, attempt=before, started_ms=None, queue_ms=None, sandbox_ms=None, run_ms=None, total_ms=None)


async def _insert_invocations(connection: Connection, records: Sequence[Record]) -> None:
    await connection.execute(
        _SQL["insert_invocations"],
        [time_of(r.id) for r in records],
        [r.id for r in records],
        [r.attempt for r in records],
        [r.user_id for r in records],
        [r.function_id for r in records],
        [r.version_id for r in records],
        [r.worker for r in records],
        [epoch_number(r.epoch or "0-0") for r in records],
        [r.outcome for r in records],
        [r.reason for r in records],
        [None if r.error is None else _text(to_column(r.error)) for r in records],
        [r.start_kind for r in records],
        [r.exit_code for r in records],
        [r.queue_ms for r in records],
        [r.sandbox_ms for r in records],
        [r.run_ms for r in records],
        [r.total_ms for r in records],
        [r.cpu_ms for r in records],
        [r.peak_memory_bytes for r in records],
        [r.timeout_ms for r in records],
        [r.memory_mb for r in records],
        [r.logs_truncated for r in records],
        [orjson.dumps(r.request or {}).decode() for r in records],
        [from_unix_ms(r.started_ms) for r in records],
        [from_unix_ms(r.at_ms) for r in records],
    )


async def _insert_logs(connection: Connection, records: Sequence[Record]) -> None:
    rows: list[tuple[Any, ...]] = []
    for r in records:
        if r.logs is None:
            continue
        at = from_unix_ms(r.at_ms)
        for seq, (stream, level, message, *sealed) in enumerate(orjson.loads(r.logs)):
            rows.append(
                (
                    time_of(r.id),
                    r.id,
                    epoch_number(r.epoch or "0-0"),
                    seq,
                    r.attempt,
                    r.function_id,
                    stream,
                    level,
                    _text(message),
                    at,
                    bool(sealed),
                )
            )
    if rows:
        await connection.execute(_SQL["insert_logs"], *(list(column) for column in zip(*rows, strict=True)))


def _text(text: str) -> str:
    """``text`` with U+0000, which Postgres cannot hold, escaped as the log escapes other bytes that are not text."""
    return text.replace("\x00", "\\x00")
