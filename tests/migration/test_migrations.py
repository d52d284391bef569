"""Migrations and named queries, on an empty Postgres and on one that is migrated."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from shared.embedded.postgres import EmbeddedPostgres
from shared.errors import Misconfigured, Unavailable
from shared.postgres.migrate import check_schema, known_migrations, migrate
from shared.postgres.queries import nouns, queries
from shared.postgres.submissions import ALL_GIVEN, INSERT_JOB_ONCE, insert_statement
from tests.conftest import dsn_of

NEWEST = known_migrations()[-1]
NAMES = [migration.name for migration in known_migrations()]

# Everything that makes up a schema, a line each; months of partitions depend on the day and are left out.
_SHAPE = """
SELECT format('column %s.%s %s %s %s', table_name, column_name, data_type, is_nullable, column_default)
FROM information_schema.columns WHERE table_schema = 'public' AND table_name !~ '_\\d{4}_\\d{2}$'
UNION ALL SELECT format('constraint %s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text !~ '_\\d{4}_\\d{2}$'
UNION ALL SELECT format('index %s', indexdef) FROM pg_indexes
WHERE schemaname = 'public' AND tablename !~ '_\\d{4}_\\d{2}$'
UNION ALL SELECT format('trigger %s', pg_get_triggerdef(oid)) FROM pg_trigger WHERE NOT tgisinternal
UNION ALL SELECT format('function %s', pg_get_functiondef(oid)) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
ORDER BY 1
"""


@pytest.fixture
def empty(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The address of a database with nothing in it."""
    name = f"empty_{uuid4().hex[:12]}"

    async def run(statement: str) -> None:
        connection = await asyncpg.connect(postgres_server.dsn)
        await connection.execute(statement)
        await connection.close()

    asyncio.run(run(f"CREATE DATABASE {name}"))
    yield dsn_of(postgres_server, name)
    asyncio.run(run(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
async def connection(database: str) -> AsyncIterator[Any]:
    """To a migrated database."""
    opened = await asyncpg.connect(database)
    yield opened
    await opened.close()


async def shape(dsn: str) -> list[str]:
    connection = await asyncpg.connect(dsn)
    try:
        return [row[0] for row in await connection.fetch(_SHAPE)]
    finally:
        await connection.close()


async def test_migrations_make_a_schema_once(empty: str) -> None:
    assert await shape(empty) == []
    assert await migrate(empty) == NAMES
    once = await shape(empty)
    assert any(line.startswith("column jobs.status") for line in once)
    assert await migrate(empty) == []
    assert await shape(empty) == once


async def test_migrations_replayed_elsewhere_make_the_same_schema(empty: str, database: str) -> None:
    await migrate(empty)
    assert await shape(empty) == await shape(database)


async def test_several_at_once_apply_each_migration_once(empty: str) -> None:
    done = await asyncio.gather(*(migrate(empty) for _ in range(4)))
    assert sorted(name for names in done for name in names) == NAMES
    connection = await asyncpg.connect(empty)
    await check_schema(connection)
    await connection.close()


async def test_writers_go_on_while_an_index_is_made_and_one_that_was_broken_off_is_made_again(empty: str) -> None:
    await migrate(empty)
    writer, other, watcher = [await asyncpg.connect(empty) for _ in range(3)]
    try:
        await watcher.execute("DROP INDEX sessions_over; DELETE FROM schema_migrations WHERE number = 11")
        # As a server that ended in the middle leaves it.
        await watcher.execute("CREATE INDEX sessions_over ON sessions (id)")
        insert = "INSERT INTO users (id, email, username, password_hash) VALUES ($1, $2, $3, '-')"
        session = "INSERT INTO sessions (id, user_id, refresh_hash, expires_at) VALUES ($1, $1, '', now())"
        one = uuid4()
        async with writer.transaction():
            await writer.execute(insert, one, "a@b.c", "ab")
            await writer.execute(session, one)
            making = [asyncio.create_task(migrate(empty)) for _ in range(2)]
            waits = (
                "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%CONCURRENTLY%' AND wait_event_type = 'Lock'"
            )
            async with asyncio.timeout(20):
                while not await watcher.fetchval(waits):
                    await asyncio.sleep(0.02)
            two = uuid4()
            await other.execute(insert, two, "c@d.e", "cd")
            await asyncio.wait_for(other.execute(session, two), 5)
        done = await asyncio.wait_for(asyncio.gather(*making), 30)
        assert sorted(map(len, done)) == [0, 1]
        assert await watcher.fetchval("SELECT indisvalid FROM pg_index WHERE indexrelid = 'sessions_over'::regclass")
        found = await watcher.fetchval("SELECT indexdef FROM pg_indexes WHERE indexname = 'sessions_over'")
        assert "LEAST" in found
    finally:
        for connection in (writer, other, watcher):
            await connection.close()


def test_an_index_on_a_table_that_is_there_is_made_while_others_write() -> None:
    for migration in known_migrations()[10:]:
        new = re.findall(r"CREATE TABLE (?:IF NOT EXISTS )?(\w+)", migration.text)
        made = re.findall(r"CREATE (?:UNIQUE )?INDEX (CONCURRENTLY )?(?:IF NOT EXISTS )?\w+ ON (\w+)", migration.text)
        assert [table for concurrently, table in made if not concurrently and table not in new] == [], migration.name


async def test_migration_that_was_edited_after_it_was_applied_is_refused(database: str, connection: Any) -> None:
    await connection.execute("UPDATE schema_migrations SET checksum = 'another' WHERE number = 1")
    with pytest.raises(Misconfigured, match="migrations are not edited"):
        await migrate(database)


async def test_migration_that_cannot_get_its_locks_gives_up_and_leaves_nothing(empty: str) -> None:
    blocker = await asyncpg.connect(empty)
    try:
        await blocker.execute("CREATE TABLE users (id uuid)")
        with pytest.raises(asyncpg.PostgresError):
            await migrate(empty)
        assert await blocker.fetchval("SELECT count(*) FROM schema_migrations") == 0
        assert await blocker.fetchval("SELECT to_regclass('jobs')") is None
        await blocker.execute("DROP TABLE users")
        assert await migrate(empty) == NAMES
    finally:
        await blocker.close()


async def test_schema_of_this_release_is_accepted(connection: Any) -> None:
    await check_schema(connection)


async def test_empty_database_is_refused_with_what_to_do(empty: str) -> None:
    connection = await asyncpg.connect(empty)
    with pytest.raises(Misconfigured, match="containerpub migrate"):
        await check_schema(connection)
    await connection.close()


async def test_schema_that_lacks_a_migration_is_refused(connection: Any) -> None:
    await connection.execute("DELETE FROM schema_migrations WHERE number = $1", NEWEST.number)
    with pytest.raises(Misconfigured, match=NEWEST.name):
        await check_schema(connection)


async def _newer(connection: Any, *, breaking: bool) -> None:
    await connection.execute(
        "INSERT INTO schema_migrations (number, name, checksum, breaking) VALUES ($1, '9999_add_future.sql', 'x', $2)",
        NEWEST.number + 1,
        breaking,
    )


async def test_f23_newer_additive_schema_is_served(connection: Any, database: str) -> None:
    await _newer(connection, breaking=False)
    await check_schema(connection)
    assert await migrate(database) == []


async def test_f23_newer_breaking_schema_is_refused(connection: Any) -> None:
    await _newer(connection, breaking=True)
    with pytest.raises(Misconfigured, match="9999_add_future"):
        await check_schema(connection)


async def test_server_that_is_away_is_said_to_be_away(empty: str) -> None:
    with pytest.raises(Unavailable):
        await migrate(empty.replace("host=", "host=/nowhere"))


def test_names_of_migrations_have_a_number_a_verb_and_a_noun() -> None:
    assert [migration.number for migration in known_migrations()] == list(range(1, len(NAMES) + 1))


@pytest.mark.parametrize(("noun", "name"), [(noun, name) for noun in nouns() for name in queries(noun)])
async def test_named_query_prepares(connection: Any, noun: str, name: str) -> None:
    await connection.prepare(queries(noun)[name])


@pytest.mark.parametrize("statement", [insert_statement(ALL_GIVEN), INSERT_JOB_ONCE])
async def test_insert_that_is_made_of_the_list_of_columns_prepares(connection: Any, statement: str) -> None:
    await connection.prepare(statement)


@pytest.mark.parametrize(("noun", "name"), [(noun, name) for noun in nouns() for name in queries(noun)])
def test_named_query_says_what_it_is_for(noun: str, name: str) -> None:
    first = queries(noun)[name].splitlines()[0]
    assert first.startswith("-- ")
    assert first.endswith((".", ",")) or len(first) > 60


async def test_every_table_with_updated_at_keeps_it(connection: Any) -> None:
    tables = await connection.fetch(
        "SELECT table_name FROM information_schema.columns WHERE table_schema = 'public' AND column_name = 'updated_at'"
    )
    touched = await connection.fetch(
        "SELECT tgrelid::regclass::text AS name FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid "
        "WHERE p.proname = 'touch_updated_at'"
    )
    assert {row["table_name"] for row in tables} == {row["name"] for row in touched}


async def test_update_moves_updated_at(connection: Any) -> None:
    user = uuid4()
    await connection.execute(
        "INSERT INTO users (id, email, username, password_hash, updated_at) VALUES ($1, 'a@b.c', 'ab', '-', "
        "'2000-01-01Z')",
        user,
    )
    await connection.execute("UPDATE users SET password_hash = '+' WHERE id = $1", user)
    assert await connection.fetchval("SELECT now() - updated_at < '1 minute' FROM users WHERE id = $1", user)


@pytest.mark.parametrize(
    ("status", "reason", "finished"),
    [("succeeded", None, False), ("queued", None, True), ("failed", None, True), ("lingering", None, False)],
)
async def test_schema_refuses_a_job_that_cannot_be(
    connection: Any, status: str, reason: str | None, finished: bool
) -> None:
    user = uuid4()
    await connection.execute(
        "INSERT INTO users (id, email, username, password_hash) VALUES ($1, 'a@b.c', 'ab', '-')", user
    )
    with pytest.raises(asyncpg.CheckViolationError):
        await connection.execute(
            "INSERT INTO jobs (id, kind, user_id, function_id, status, reason, created_at, finished_at) "
            "VALUES ($1, 'invoke', $2, $1, $3, $4, now(), CASE WHEN $5 THEN now() END)",
            uuid4(),
            user,
            status,
            reason,
            finished,
        )


async def test_jobs_go_with_their_user_and_others_stay(connection: Any) -> None:
    one, other = uuid4(), uuid4()
    for user, name in ((one, "ab"), (other, "cd")):
        await connection.execute(
            "INSERT INTO users (id, email, username, password_hash) VALUES ($1, $2, $3, '-')", user, f"{name}@x.y", name
        )
        await connection.execute(
            "INSERT INTO jobs (id, kind, user_id, function_id, status, created_at) "
            "SELECT gen_random_uuid(), 'invoke', $1, gen_random_uuid(), 'queued', now() FROM generate_series(1, 3)",
            user,
        )
    await connection.execute("DELETE FROM users WHERE id = $1", one)
    rows = await connection.fetch("SELECT user_id, count(*) FROM jobs GROUP BY user_id")
    assert [tuple(row) for row in rows] == [(other, 3)]
