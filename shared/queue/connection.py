"""Connections to Redis, bounded in time, and the one place where its errors become ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis.exceptions
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.errors import Misconfigured, Unavailable
from shared.queue.scripts import QueueClosed


class _Pool(ConnectionPool):
    """A pool whose callers connect side by side. In redis-py's own pool they connect one after the other, so while
    Redis hangs each would wait for the time-outs of those before."""

    async def get_connection(self, command_name: str | None = None, *keys: Any, **options: Any) -> AbstractConnection:
        connection: AbstractConnection = self.get_available_connection()  # type: ignore[no-untyped-call]
        try:
            await self.ensure_connection(connection)
        except BaseException:
            await self.release(connection)
            raise
        return connection


def connect(url: str, *, timeout_s: float) -> Redis:
    """A client that connects and gets each answer within ``timeout_s``. It connects lazily and again after a loss."""
    pool = _Pool.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        health_check_interval=0,
        # A step that was sent may have run: only its caller can decide whether to send it again.
        retry=Retry(NoBackoff(), 0),
    )
    client: Redis = Redis.from_pool(pool)
    return client


@contextmanager
def redis_errors() -> Iterator[None]:
    """Turns Redis's errors into ours: :class:`QueueClosed` while the queue is rebuilt, else :class:`Unavailable`."""
    try:
        yield
    except redis.exceptions.NoScriptError as error:
        raise QueueClosed("Redis was restarted or is new; the queue is being rebuilt") from error
    except (redis.exceptions.OutOfMemoryError, redis.exceptions.ReadOnlyError) as error:
        # redis-py chooses these classes by an answer's first word, and takes it off the text.
        raise Unavailable(f"Redis cannot take writes: {error}", retry_after_s=1) from error
    except redis.exceptions.ResponseError as error:
        text = str(error)
        if text.startswith("NOGENERATION") or "NOGENERATION" in text:
            raise QueueClosed("the queue is being rebuilt") from error
        if text.startswith(("OOM", "MISCONF", "READONLY", "LOADING", "BUSY", "MASTERDOWN")) or "OOM" in text:
            raise Unavailable(f"Redis cannot take writes: {text}", retry_after_s=1) from error
        raise
    except (redis.exceptions.RedisError, OSError) as error:
        raise Unavailable(f"Redis did not answer: {type(error).__name__}", retry_after_s=1) from error


async def refuse_evicting_policy(client: Redis) -> None:
    """Refuse a Redis that is set to evict keys: it would drop queued jobs silently.

    :raises Misconfigured: saying which setting to change.
    """
    with redis_errors():
        answer = await client.config_get("maxmemory-policy")
    policy = answer.get("maxmemory-policy", "noeviction")
    if policy != "noeviction":
        raise Misconfigured(f"Redis evicts keys (maxmemory-policy {policy}); set it to noeviction")
