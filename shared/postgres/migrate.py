"""Schema migrations: plain SQL files, forward only, each applied once in its own transaction.

An index on a table that may be large is made by ``CREATE INDEX CONCURRENTLY``, during which others go on writing, in a
file whose first line is ``-- outside a transaction``. It consists of statements that end with their line, each of which
may be made again: one that was broken off is made again from the first.

Processes older than a file whose first line is ``-- breaking`` cannot serve its schema. A process refuses a schema that
lacks a migration it knows, or has a breaking one that it does not know; newer additive ones are fine.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from typing import Any

import asyncpg

from shared.errors import Misconfigured
from shared.postgres.pool import Connection, postgres_errors

_LOCK_RETRY_S = 0.1
_LOCK_KEY = 0x636F6E74  # any number that no other lock uses
_FILE = re.compile(r"^(\d{4})_[a-z0-9]+(_[a-z0-9]+)+\.sql$")

_LEDGER = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    number     integer PRIMARY KEY,
    name       text NOT NULL,
    checksum   text NOT NULL,
    breaking   boolean NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    number: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def breaking(self) -> bool:
        return self.text.startswith("-- breaking")

    @property
    def statements(self) -> list[str] | None:
        """Those to be made one by one outside a transaction; None for a file that is made as a whole within one."""
        if not self.text.startswith("-- outside a transaction"):
            return None
        return [part.strip() for part in self.text.split(";\n") if part.strip()]


def known_migrations() -> list[Migration]:
    """The migrations of this release, in order; raises ``ValueError`` for a gap or a misnamed file."""
    folder = resources.files("sql") / "migrations"
    found = []
    for entry in sorted(folder.iterdir(), key=lambda item: item.name):
        if not entry.name.endswith(".sql"):
            continue
        match = _FILE.match(entry.name)
        if match is None:
            raise ValueError(f"sql/migrations/{entry.name}: name it NNNN_verb_noun.sql")
        found.append(Migration(number=int(match[1]), name=entry.name, text=entry.read_text("utf-8")))
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise ValueError("sql/migrations has a gap or a number twice")
    return found


async def migrate(dsn: str, *, lock_timeout_s: float = 5, statement_timeout_s: float = 600) -> list[str]:
    """Apply what is missing, under an advisory lock; several callers at once are fine.

    :returns: names of the migrations applied.
    :raises Misconfigured: if an applied migration was edited since.
    """
    with postgres_errors():
        connection = await asyncpg.connect(dsn, timeout=10)
    try:
        with postgres_errors():
            # Asked again and again: to wait for it in Postgres would be a transaction, for which an index that is made
            # concurrently waits in turn.
            while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK_KEY):  # noqa: ASYNC110
                await asyncio.sleep(_LOCK_RETRY_S)
            await connection.execute(_LEDGER)
            applied = await _applied(connection)
            done = []
            for migration in await asyncio.to_thread(known_migrations):
                row = applied.get(migration.number)
                if row is not None:
                    if row["checksum"] != migration.checksum:
                        raise Misconfigured(
                            f"{migration.name} differs from what was applied; migrations are not edited"
                        )
                    continue
                await connection.execute(f"SET lock_timeout = '{int(lock_timeout_s * 1000)}ms'")
                await connection.execute(f"SET statement_timeout = '{int(statement_timeout_s * 1000)}ms'")
                if migration.statements is None:
                    async with connection.transaction():
                        await connection.execute(migration.text)
                        await _note(connection, migration)
                else:
                    # An index that is made concurrently waits for others' transactions, not for their locks alone.
                    await connection.execute("SET lock_timeout = 0")
                    for statement in migration.statements:
                        await connection.execute(statement)
                    await _note(connection, migration)
                done.append(migration.name)
            return done
    finally:
        await connection.close()


async def _note(connection: Connection, migration: Migration) -> None:
    await connection.execute(
        "INSERT INTO schema_migrations (number, name, checksum, breaking) VALUES ($1, $2, $3, $4)",
        migration.number,
        migration.name,
        migration.checksum,
        migration.breaking,
    )


async def check_schema(connection: Connection) -> None:
    """Refuse a schema that this release cannot serve.

    :raises Misconfigured: saying whether to migrate or to upgrade.
    """
    with postgres_errors():
        ledger = await connection.fetchval("SELECT to_regclass('schema_migrations')")
        applied = await _applied(connection) if ledger is not None else {}
    known = await asyncio.to_thread(known_migrations)
    missing = [migration.name for migration in known if migration.number not in applied]
    if missing:
        raise Misconfigured(f"The database lacks {', '.join(missing)}; run: containerpub migrate")
    breaking = [row["name"] for number, row in applied.items() if number > known[-1].number and row["breaking"]]
    if breaking:
        raise Misconfigured(f"The database has {', '.join(breaking)}, which this release does not know; upgrade it")


async def _applied(connection: Connection) -> dict[int, Any]:
    rows = await connection.fetch("SELECT number, name, checksum, breaking FROM schema_migrations")
    return {row["number"]: row for row in rows}
