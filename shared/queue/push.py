"""Push: one subscription connection a process, that comes back by itself and says so.

A push is a hint, never the only copy: after a loss ``on_standing`` tells the owner to look again at whatever it is
waiting for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import redis.exceptions
from redis.asyncio import Redis

log = logging.getLogger(__name__)

RECONNECT_S = 0.2
PROBE_S = 5.0


class Push:
    """Delivers messages of named channels to callbacks, which must not block.

    :param channels: channel to callback; fixed for the life of the object.
    :param on_standing: called each time the subscription stands, at first and again after a loss.
    :param on_loss: called when the connection is lost.
    """

    def __init__(
        self,
        redis: Redis,
        channels: dict[str, Callable[[bytes], None]],
        *,
        on_standing: Callable[[], None] = lambda: None,
        on_loss: Callable[[], None] = lambda: None,
    ) -> None:
        self._redis = redis
        self._channels = {name.encode(): callback for name, callback in channels.items()}
        self._on_standing = on_standing
        self._on_loss = on_loss
        self._task: asyncio.Task[None] | None = None
        self.standing = asyncio.Event()

    async def start(self) -> None:
        """Start listening; returns at once, ``standing`` is set when the subscription stands."""
        self._task = asyncio.create_task(self._run(), name="push")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        while True:
            pubsub = self._redis.pubsub()
            try:
                await pubsub.subscribe(*self._channels)
                pending = len(self._channels)
                probed = False
                while True:
                    answer = await pubsub.parse_response(block=False, timeout=PROBE_S)
                    if answer is None:
                        # A connection that says nothing may be dead without a word: ask, and give up if it stays mute.
                        if probed:
                            raise redis.exceptions.ConnectionError("no answer to a ping")
                        probed = True
                        await pubsub.ping()
                        continue
                    probed = False
                    kind = answer[0]
                    if kind == b"message":
                        self._channels[answer[1]](answer[2])
                    elif kind == b"subscribe" and pending:
                        pending -= 1
                        if pending == 0:
                            self.standing.set()
                            self._on_standing()
            except (redis.exceptions.RedisError, OSError) as error:
                if self.standing.is_set():
                    log.warning("push connection lost", extra={"error": type(error).__name__})
                    self.standing.clear()
                    self._on_loss()
                await asyncio.sleep(RECONNECT_S)
            finally:
                await pubsub.aclose()  # type: ignore[no-untyped-call]
