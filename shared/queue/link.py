"""One connection to Redis for a whole process: commands go out as they come, answers come back in order.

redis-py makes the connection (addresses, TLS, log-in, database). After that this module sends the queue's steps itself,
packed and parsed by hiredis. A client that takes a connection from a pool, guards every read with a timeout and parses
a line at a time costs more time than the step itself takes in Redis.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis
import redis.exceptions
from redis.asyncio.connection import Connection, ConnectionPool


class Wire(asyncio.Protocol):
    """A connection that is logged in.

    :param on_answer: called with every answer; an error is an answer that is an exception.
    :param on_loss: called once, when the connection is gone.
    """

    def __init__(self, on_answer: Callable[[Any], None], on_loss: Callable[[], None]) -> None:
        self._reader = hiredis.Reader(protocolError=redis.exceptions.InvalidResponse, replyError=_reply_error)
        self._on_answer = on_answer
        self._on_loss = on_loss
        self._writer: asyncio.StreamWriter  # held, or it would close its transport

    @classmethod
    async def open(cls, pool: ConnectionPool, on_answer: Callable[[Any], None], on_loss: Callable[[], None]) -> Wire:
        """Connect as ``pool`` does. Raises :class:`redis.exceptions.RedisError` or :class:`OSError`."""
        connection = cast(Connection, pool.make_connection())  # type: ignore[no-untyped-call]
        wire = cls(on_answer, on_loss)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            assert connection._writer is not None
            wire._writer, connection._writer = connection._writer, None
            wire._writer.transport.set_protocol(wire)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return wire

    def send(self, *command: str | bytes | int | float) -> None:
        self._writer.transport.write(hiredis.pack_command(command))  # type: ignore[arg-type]

    def close(self) -> None:
        """Idempotent; ``on_loss`` is called soon after."""
        self._writer.transport.abort()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (answer := self._reader.gets()) is not False:
                self._on_answer(answer)
        except redis.exceptions.InvalidResponse:
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._on_loss()


class Link:
    """Sends commands over one connection, which it makes again after a loss.

    :param timeout_s: an answer that takes longer ends the connection: it would shift all later ones.
    """

    def __init__(self, pool: ConnectionPool, *, timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._wire: Wire | None = None
        self._opening: asyncio.Task[Wire] | None = None
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()  # with the time of asking
        self._watch: asyncio.TimerHandle | None = None

    async def call(self, *command: str | bytes | int | float) -> Any:
        """The answer to ``command``, which was sent at most once.

        :raises redis.exceptions.RedisError: an error that Redis answers, no connection, or no answer in time. In the
            last case the command may have run.
        """
        wire = self._wire or await self._open()
        if wire is not self._wire:  # lost before this task ran again
            raise redis.exceptions.ConnectionError("the connection was lost")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((answer, loop.time()))
        wire.send(*command)
        if self._watch is None:
            self._watch = loop.call_later(self._timeout_s, self._look)
        return await answer

    async def close(self) -> None:
        """Calls in flight fail. Idempotent; a later call connects again."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        if self._wire is not None:
            self._wire.close()
            self._lost(self._wire, redis.exceptions.ConnectionError("closed"))
            await asyncio.sleep(0)  # the transport lets go of its socket with the loop's next turn

    async def _open(self) -> Wire:
        if self._opening is None:
            self._opening = asyncio.create_task(self._connect(), name="redis-link")
            self._opening.add_done_callback(self._opened)
        return await asyncio.shield(self._opening)

    async def _connect(self) -> Wire:
        wire: Wire

        def lost() -> None:
            self._lost(wire, redis.exceptions.ConnectionError("the connection was lost"))

        wire = await Wire.open(self._pool, self._answered, lost)
        self._wire = wire
        return wire

    def _opened(self, task: asyncio.Task[Wire]) -> None:
        self._opening = None
        if not task.cancelled():
            task.exception()  # the caller that waits for it has it

    def _answered(self, answer: Any) -> None:
        waiting, _ = self._waiting.popleft()
        if waiting.done():
            return
        if isinstance(answer, Exception):
            waiting.set_exception(answer)
        else:
            waiting.set_result(answer)

    def _lost(self, wire: Wire, error: redis.exceptions.RedisError) -> None:
        if self._wire is not wire:
            return
        self._wire = None
        waiting, self._waiting = self._waiting, deque()
        for one, _ in waiting:
            if not one.done():
                one.set_exception(error)

    def _look(self) -> None:
        """One timer for all calls: it checks the call that waits longest."""
        self._watch = None
        if not self._waiting or self._wire is None:
            return
        loop = asyncio.get_running_loop()
        left = self._waiting[0][1] + self._timeout_s - loop.time()
        if left > 0:
            self._watch = loop.call_later(left, self._look)
            return
        wire = self._wire
        self._lost(wire, redis.exceptions.TimeoutError(f"no answer within {self._timeout_s:g} s"))
        wire.close()


def _reply_error(text: str) -> redis.exceptions.ResponseError:
    if text.startswith("NOSCRIPT"):
        return redis.exceptions.NoScriptError(text)
    return redis.exceptions.ResponseError(text)
