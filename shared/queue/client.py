"""A connection to Redis that runs the queue's scripts."""

from __future__ import annotations

from typing import Any

import redis.exceptions
from redis.asyncio import Redis

from shared.queue import scripts
from shared.queue.connection import redis_errors
from shared.queue.link import Link
from shared.queue.names import GENERATION
from shared.queue.scripts import QueueClosed, Script

_STEP_S = 5.0
"""Time-out of a step if the Redis client has none."""


class Client:
    """Safe to share within a process. Holds a connection of its own for the steps, beside those of ``redis``."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        pool = redis.connection_pool
        self._link = Link(pool, timeout_s=pool.connection_kwargs.get("socket_timeout") or _STEP_S)

    async def _run(self, script: Script, *args: str | bytes | int | float) -> Any:
        try:
            with redis_errors():
                return await self._link.call("EVALSHA", script.sha, 0, *args)
        except QueueClosed as closed:
            if not isinstance(closed.__cause__, redis.exceptions.NoScriptError) or not await self._make_known(script):
                raise
        with redis_errors():
            return await self._link.call("EVALSHA", script.sha, 0, *args)

    async def _make_known(self, script: Script) -> bool:
        """Load a script of this release if another release's leader opened the queue; whether it can be used."""
        with redis_errors():
            state = await self.redis.hmget(GENERATION, ["open", "layout", "run"])  # type: ignore[misc]
            run = (await self.redis.info("server"))["run_id"]
            if state != [b"1", scripts.LAYOUT.encode(), run.encode()]:
                return False
            # Another rebuild may have begun since: the script answers, as it is loaded, whether the queue is still
            # open.
            return bool(await self.redis.eval(script.source, 0) == scripts.USABLE)  # type: ignore[misc]

    async def evaluate(self, script: str, *args: str | bytes | int | float) -> Any:
        """Run a script that is no step of the queue, over the same connection as the steps."""
        with redis_errors():
            return await self._link.call("EVAL", script, 0, *args)

    async def aclose(self) -> None:
        """Close this connection; the Redis client that the queue was made with stays open. Idempotent."""
        await self._link.close()

    async def generation(self) -> tuple[str, bool] | None:
        """The generation and whether claims are open; None while there is none."""
        with redis_errors():
            gen, is_open = await self.redis.hmget(GENERATION, ["gen", "open"])  # type: ignore[misc]
        return None if gen is None else (gen.decode(), is_open == b"1")

    async def is_open(self) -> bool:
        state = await self.generation()
        return state is not None and state[1]
