"""Push: one subscription connection a process, which connects again after a loss and tells its owner.

A push is a hint, never the only copy: after a loss ``on_standing`` has the owner look again at all that it waits for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import redis.exceptions
from redis.asyncio.connection import ConnectionPool

from shared.loop import Loop
from shared.queue.link import Wire

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
        pool: ConnectionPool,
        channels: dict[str, Callable[[bytes], None]],
        *,
        on_standing: Callable[[], None] = lambda: None,
        on_loss: Callable[[], None] = lambda: None,
    ) -> None:
        self._pool = pool
        self._channels = {name.encode(): callback for name, callback in channels.items()}
        self._on_standing = on_standing
        self._on_loss = on_loss
        self._pending = 0
        self._heard = False  # since the last look
        self.standing = asyncio.Event()

    @property
    def loop(self) -> Loop:
        return Loop(name="push", run_once=self.run_once, interval_s=RECONNECT_S)

    async def run_once(self) -> None:
        """Connect, and listen until the connection is lost."""
        try:
            await self._listen()
        except (redis.exceptions.RedisError, OSError) as error:
            if self.standing.is_set():
                log.warning("push connection lost", extra={"error": type(error).__name__})
                self.standing.clear()
                self._on_loss()

    async def _listen(self) -> None:
        """Until the connection is lost, which raises."""
        lost = asyncio.Event()
        wire = await Wire.open(self._pool, self._answered, lost.set)
        try:
            self._pending = len(self._channels)
            wire.send("SUBSCRIBE", *self._channels)
            probed = False
            while True:
                self._heard = False
                try:
                    async with asyncio.timeout(PROBE_S):
                        await lost.wait()
                    raise redis.exceptions.ConnectionError("the connection was lost")
                except TimeoutError:
                    # A silent connection may be dead: send a ping, and give up if no answer comes.
                    if self._heard:
                        probed = False
                        continue
                    if probed:
                        raise redis.exceptions.ConnectionError("no answer to a ping") from None
                    probed = True
                    wire.send("PING")
        finally:
            wire.close()

    def _answered(self, answer: Any) -> None:
        self._heard = True
        kind = answer[0] if isinstance(answer, list) else None
        if kind == b"message":
            self._hear(answer[1], answer[2])
        elif kind == b"subscribe" and self._pending:
            self._pending -= 1
            if self._pending == 0:
                self.standing.set()
                self._on_standing()

    def _hear(self, channel: bytes, message: bytes) -> None:
        try:
            self._channels[channel](message)
        except Exception:  # one bad message must not end the connection, which every waiting call needs
            log.exception("a push cannot be read", extra={"channel": channel.decode("utf-8", "replace")})
