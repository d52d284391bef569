"""The Postgres pool, bounded in time, and the one place where its errors become ours."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg
from asyncpg.pool import PoolAcquireContext

from shared.errors import Conflict, Invalid, Unavailable

Pool = Any  # asyncpg ships no types; an asyncpg.Pool
Connection = Any  # an asyncpg.Connection

_CONSTRAINTS: dict[str, tuple[type[Conflict] | type[Invalid], str, str, str]] = {
    "users_email_unique": (Conflict, "email_taken", "This e-mail address is registered already; log in.", "email"),
    "users_username_unique": (Conflict, "username_taken", "This user name is taken; choose another.", "username"),
    "users_email_length": (Invalid, "invalid_email", "The e-mail address must have 3 to 254 characters.", "email"),
    "users_username_shape": (
        Invalid,
        "invalid_username",
        "A user name has 2 to 39 characters out of a-z, 0-9, - and _, and starts with a letter or digit.",
        "username",
    ),
    "functions_name_shape": (
        Invalid,
        "invalid_name",
        "A function name has 1 to 63 characters out of a-z, 0-9, - and _, starting and ending with a letter or digit.",
        "name",
    ),
}
"""Name of a violated constraint to the error that a caller gets: class, code, sentence, field."""

_AWAY = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the connection broke within an operation; the pool drops it when it comes back
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.TransactionRollbackError,  # a deadlock, say: the same again may succeed
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.exceptions.CannotConnectNowError,
    asyncpg.LockNotAvailableError,
    asyncpg.PostgresSystemError,
    asyncpg.InternalServerError,
    OSError,
    TimeoutError,
)


_GIVE_UP_S = 0.25
"""How long a connection whose statement was broken off gets to become usable again."""


class _Acquired(PoolAcquireContext):  # type: ignore[misc]
    """A connection of the pool for a block. If the block runs out of time, the caller is told so at once: asyncpg would
    let it wait for as long again until Postgres confirms that the statement was broken off."""

    connection: Any

    async def __aexit__(self, kind: Any = None, error: Any = None, trace: Any = None) -> None:
        if not isinstance(error, TimeoutError | asyncio.CancelledError):
            await super().__aexit__(kind, error, trace)
            return
        self.done = True
        connection, self.connection = self.connection, None
        try:
            await self.pool.release(connection, timeout=_GIVE_UP_S)
        except (TimeoutError, *_AWAY):
            pass  # asyncpg has closed the connection, and opens another one when it needs one


class _BoundedPool(asyncpg.Pool):  # type: ignore[misc]
    """A pool in which a caller waits at most ``patience_s`` for a connection, and as long in all for the connection and
    the answer to a single statement. asyncpg's own waits have no end: while Postgres hangs, one group of callers after
    the other would wait."""

    patience_s: float

    def acquire(self, *, timeout: float | None = None) -> Any:
        return _Acquired(self, self.patience_s if timeout is None else timeout)

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        async with asyncio.timeout(timeout or self.patience_s):
            return str(await super().execute(query, *args, timeout=timeout))

    async def fetch(self, query: str, *args: Any, timeout: float | None = None, record_class: Any = None) -> Any:
        async with asyncio.timeout(timeout or self.patience_s):
            return await super().fetch(query, *args, timeout=timeout, record_class=record_class)

    async def fetchrow(self, query: str, *args: Any, timeout: float | None = None, record_class: Any = None) -> Any:
        async with asyncio.timeout(timeout or self.patience_s):
            return await super().fetchrow(query, *args, timeout=timeout, record_class=record_class)

    async def fetchval(self, query: str, *args: Any, column: int = 0, timeout: float | None = None) -> Any:
        async with asyncio.timeout(timeout or self.patience_s):
            return await super().fetchval(query, *args, column=column, timeout=timeout)


async def open_pool(dsn: str, *, size: int, timeout_s: float, name: str) -> Pool:
    """A pool whose statements end within ``timeout_s``, and so does waiting for one of its connections.

    :raises Unavailable: if Postgres does not answer.
    """
    pool = _BoundedPool(
        dsn,
        min_size=1,
        max_size=size,
        max_queries=50_000,
        max_inactive_connection_lifetime=300,
        loop=None,
        connection_class=asyncpg.Connection,
        record_class=asyncpg.Record,
        command_timeout=timeout_s,
        timeout=timeout_s,
        server_settings={"application_name": f"containerpub-{name}", "timezone": "UTC"},
    )
    pool.patience_s = timeout_s
    with postgres_errors():
        return await pool


async def close_pool(pool: Pool) -> None:
    """Close in good order, or by force when that takes more than two seconds."""
    try:
        await asyncio.wait_for(pool.close(), 2)
    except (TimeoutError, *_AWAY):
        pool.terminate()


def is_refusal(error: Exception) -> bool:
    """Whether Postgres would refuse the statement that raised ``error`` at every further try: its values are at
    fault."""
    return not isinstance(error, asyncpg.PostgresError) or isinstance(
        error, asyncpg.DataError | asyncpg.IntegrityConstraintViolationError | asyncpg.ProgramLimitExceededError
    )


@contextmanager
def postgres_errors() -> Iterator[None]:
    """Turns Postgres's errors into ours; a violated constraint becomes the error that :data:`_CONSTRAINTS` has for
    it."""
    try:
        yield
    except asyncpg.IntegrityConstraintViolationError as error:
        known = _CONSTRAINTS.get(error.constraint_name or "")
        if known is None:
            raise
        cls, code, sentence, field = known
        raise cls(sentence, code=code, field=field) from error
    except _AWAY as error:
        raise Unavailable(f"Postgres did not answer: {type(error).__name__}", retry_after_s=1) from error
