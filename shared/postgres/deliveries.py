"""Callbacks in Postgres: claimed, ended, listed, and the secrets that they are signed with."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from shared.callbacks.signature import new_secret
from shared.errors import Unreadable
from shared.postgres.pool import Pool, postgres_errors
from shared.postgres.queries import queries
from shared.sealing import Keyring, Part

_SQL = queries("deliveries")

log = logging.getLogger(__name__)


class DeliveryStatus(StrEnum):
    PENDING = "pending"  # due at its next_at; the sender moves it on
    DELIVERED = "delivered"  # its receiver answered 2xx
    DEAD = "dead"  # no try is left; its owner may have it sent again


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One callback of one job. ``id`` is the ``webhook-id`` of every try. ``attempts`` counts the tries."""

    id: UUID
    job_id: UUID
    user_id: UUID
    url: str
    event: str
    status: DeliveryStatus
    attempts: int
    next_at: datetime
    last_status: int | None  # HTTP's, of the last try that got an answer
    last_error: str | None
    created_at: datetime
    attempted_at: datetime | None
    delivered_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSecret:
    secret: str
    created_at: datetime
    previous: str | None
    previous_until: datetime | None

    @property
    def signing(self) -> tuple[str, ...]:
        """The secrets that sign a callback sent now."""
        if self.previous is None or self.previous_until is None or self.previous_until <= datetime.now(UTC):
            return (self.secret,)
        return self.secret, self.previous


class Deliveries:
    """:param keyring: seals the secrets: to read the database is not enough to use them."""

    def __init__(self, pool: Pool, keyring: Keyring | None = None) -> None:
        self._pool = pool
        self._keyring = keyring or Keyring()

    async def claim(
        self, *, most: int, most_per_user: int, hold_s: float, sending: Mapping[UUID, int]
    ) -> Sequence[Delivery]:
        """Callbacks that are due, with this try counted; no other process gets them for ``hold_s`` seconds.

        :param sending: how many callbacks of each user the caller is sending; they count against ``most_per_user``.
        """
        with postgres_errors():
            rows = await self._pool.fetch(
                _SQL["claim_deliveries"], most, most_per_user, hold_s, list(sending), list(sending.values())
            )
        return [_delivery(row) for row in rows]

    async def end(
        self,
        delivery: Delivery,
        status: DeliveryStatus,
        *,
        http_status: int | None = None,
        error: str | None = None,
        wait_s: float = 0,
    ) -> bool:
        """Write down how a try ended; False if another try began since."""
        with postgres_errors():
            done: str = await self._pool.execute(
                _SQL["end_delivery"], delivery.id, delivery.attempts, status.value, http_status, error, wait_s
            )
        return done == "UPDATE 1"

    async def list(
        self, user: UUID, *, before: UUID, limit: int, job: UUID | None = None, status: str | None = None
    ) -> Sequence[Delivery]:
        """A page of a user's callbacks, newest first."""
        with postgres_errors():
            rows = await self._pool.fetch(_SQL["list_deliveries"], user, before, job, status, limit)
        return [_delivery(row) for row in rows]

    async def redeliver(self, user: UUID, delivery: UUID) -> Delivery | None:
        """Have a callback sent once more; None if the user has no such."""
        with postgres_errors():
            row = await self._pool.fetchrow(_SQL["redeliver"], delivery, user)
        return None if row is None else _delivery(row)

    async def secret(self, user: UUID) -> WebhookSecret:
        """What the user's callbacks are signed with; made if there is none yet.

        :raises Unreadable: if it is sealed with a key that is not there.
        """
        row = None
        with postgres_errors():
            while row is None:  # another call made it after this statement began to look
                row = await self._pool.fetchrow(_SQL["webhook_secret"], user, self._new_secret(user))
        return self._secret(row)

    async def rotate_secret(self, user: UUID, *, overlap_s: float) -> WebhookSecret:
        """Another secret; the one before signs along for ``overlap_s`` seconds, if it can be read."""
        with postgres_errors():
            row = await self._pool.fetchrow(_SQL["rotate_webhook_secret"], user, self._new_secret(user), overlap_s)
        return self._secret(row)

    def _new_secret(self, user: UUID) -> str:
        return self._keyring.seal_column(new_secret(), user, Part.SIGNING)

    def _secret(self, row: Any) -> WebhookSecret:
        def opened(text: str) -> str:
            return self._keyring.open_column(text, row["user_id"], Part.SIGNING)

        try:
            previous = None if row["previous"] is None else opened(row["previous"])
        except Unreadable as error:
            log.warning("a webhook secret is left out", extra={"user": str(row["user_id"]), "error": error.message})
            previous = None
        return WebhookSecret(
            secret=opened(row["secret"]),
            created_at=row["created_at"],
            previous=previous,
            previous_until=None if previous is None else row["previous_until"],
        )


def _delivery(row: Any) -> Delivery:
    return Delivery(
        id=row["id"],
        job_id=row["job_id"],
        user_id=row["user_id"],
        url=row["url"],
        event=row["event"],
        status=DeliveryStatus(row["status"]),
        attempts=row["attempts"],
        next_at=row["next_at"],
        last_status=row["last_status"],
        last_error=row["last_error"],
        created_at=row["created_at"],
        attempted_at=row["attempted_at"],
        delivered_at=row["delivered_at"],
    )
