"""``containerpub check``: whether every accepted job is where it belongs."""

from __future__ import annotations

import asyncio
import os
from contextlib import aclosing
from pathlib import Path

from cli.errors import CliError, ExitStatus, Unreachable
from cli.output import Output
from shared.embedded.postgres import EmbeddedPostgres
from shared.embedded.redis import EmbeddedRedis
from shared.errors import ContainerPubError
from shared.postgres.pool import close_pool, open_pool
from shared.queue.connection import connect
from shared.queue.conservation import Balance, Conservation
from shared.queue.queue import Queue
from shared.queue.scripts import QueueClosed
from shared.settings import load


def run_check(output: Output, data: Path | None, *, patience_s: float, limit: int) -> ExitStatus:
    """Compare Postgres with the queue, of the embedded servers in ``data`` if it is given; ``FAILED`` if something is
    out of place for good."""
    try:
        if data is None:
            settings = load(os.environ, dotenv=Path(".env"))
            database_url, redis_url = settings.database_url.get_secret_value(), settings.redis_url.get_secret_value()
        else:
            database_url = EmbeddedPostgres(data / "postgres").visit().dsn
            redis_url = EmbeddedRedis(data / "redis").visit().url
    except ContainerPubError as error:
        raise CliError(error.message) from error
    try:
        balance = asyncio.run(_check(database_url, redis_url, patience_s))
    except (ContainerPubError, QueueClosed) as error:
        raise Unreachable(f"The check is not possible now: {error}.", hint="Try again in a minute.") from error
    _show(output, balance, limit)
    return ExitStatus.FAILED if balance.findings else ExitStatus.OK


async def _check(database_url: str, redis_url: str, patience_s: float) -> Balance:
    pool = await open_pool(database_url, size=1, timeout_s=30, name="check")
    try:
        async with connect(redis_url, timeout_s=30) as redis, aclosing(Queue(redis)) as queue:
            return await Conservation(redis, queue, pool).run_once(patience_s=patience_s)
    finally:
        await close_pool(pool)


def _show(output: Output, balance: Balance, limit: int) -> None:
    counts = {
        "open": balance.open,
        "due_later": balance.later,
        "running": balance.running,
        "waiting": balance.waiting,
        "parked": balance.parked,
        "out_of_place": len(balance.findings),
    }
    named = sorted(balance.findings)[:limit]
    if output.as_json:
        output.document(
            {**counts, "findings": [{"queue": one.queue, "subject": one.subject, "what": one.what} for one in named]}
        )
        return
    output.fields([(name.replace("_", " "), count) for name, count in counts.items()])
    for one in named:
        output.line(str(one))
    if len(balance.findings) > limit or balance.cut:
        output.line("and more")
