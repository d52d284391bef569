"""Accounts and sessions in Postgres."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from shared.errors import Forbidden
from shared.ids import new_id
from shared.postgres.pool import Pool, postgres_errors
from shared.postgres.queries import queries

_SQL = queries("users")


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    id: UUID
    email: str
    username: str
    created_at: datetime


class Users:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def register(self, *, email: str, username: str, password_hash: str, max_users: int) -> User:
        """:raises Conflict: if the e-mail address or user name is taken. :raises Forbidden: if no more may register."""
        with postgres_errors():
            async with self._pool.acquire() as connection, connection.transaction():
                if max_users:
                    await connection.execute(_SQL["lock_registration"])
                row = await connection.fetchrow(
                    _SQL["insert_user"], new_id(), email, username, password_hash, max_users
                )
        if row is None:
            raise Forbidden(
                f"This installation takes {max_users} account(s) and has them; its operator sets MAX_USERS.",
                code="registration_closed",
            )
        return _user(row)

    async def credentials(self, email: str) -> tuple[User, str] | None:
        """The account of ``email`` with its password hash."""
        with postgres_errors():
            row = await self._pool.fetchrow(_SQL["user_by_email"], email)
        return None if row is None else (_user(row), row["password_hash"])

    async def open_session(self, user: UUID, refresh_hash: bytes, *, life_s: int) -> UUID:
        session = new_id()
        with postgres_errors():
            await self._pool.execute(_SQL["insert_session"], session, user, refresh_hash, float(life_s))
        return session

    async def of_session(self, session: UUID) -> User | None:
        """The account behind a session that still stands."""
        with postgres_errors():
            row = await self._pool.fetchrow(_SQL["session_user"], session)
        return None if row is None else _user(row)

    async def rotate_session(self, session: UUID, current: bytes, following: bytes, *, life_s: int) -> User | None:
        """Exchange a refresh token. A token that is not the current one ends the session: it was replayed."""
        with postgres_errors():
            row = await self._pool.fetchrow(_SQL["rotate_session"], session, current, following, float(life_s))
            if row is None:
                await self._pool.execute(_SQL["revoke_session"], session)
                return None
        return _user(row)

    async def revoke_session(self, session: UUID) -> None:
        with postgres_errors():
            await self._pool.execute(_SQL["revoke_session"], session)


def _user(row: Any) -> User:
    return User(id=row["id"], email=row["email"], username=row["username"], created_at=row["created_at"])
