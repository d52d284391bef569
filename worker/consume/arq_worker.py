"""arq's worker with our queue in the place of its own.

Kept of arq: the registry of job functions, the context and its start-up and shutdown hooks, and the health key in
Redis. Replaced: the format of jobs, polling, claiming, retries and results, for the reasons in ``docs/decisions/0001``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson
from arq.connections import ArqRedis
from arq.typing import StartupShutdown
from arq.worker import Function, func
from arq.worker import Worker as ArqWorker

from shared.loop import Loop, Loops
from shared.process import ended
from shared.queue.connection import redis_errors
from shared.queue.message import JobMessage
from shared.queue.queue import Claim
from shared.queue.records import Record
from worker.consume.dispatcher import Cleanup, Dispatcher

log = logging.getLogger(__name__)

HEALTH_EVERY_S = 10

Job = Callable[[dict[Any, Any], JobMessage, Claim], Awaitable[tuple[Record, Cleanup]]]


class Worker(ArqWorker):
    """Serves dispatchers until told to stop.

    :param jobs: job kind to coroutine.
    :ivar loops: what runs beside the dispatchers; one that dies ends the worker.
    """

    def __init__(
        self,
        jobs: dict[str, Job],
        *,
        redis: ArqRedis,
        name: str,
        slots: int,
        on_startup: StartupShutdown,
        on_shutdown: StartupShutdown,
    ) -> None:
        super().__init__(
            [func(_as_arq(job), name=name) for name, job in jobs.items()],
            queue_name=f"cp:arq:{name}",
            redis_pool=redis,
            on_startup=on_startup,
            on_shutdown=on_shutdown,
            handle_signals=False,
            max_jobs=slots,
            health_check_interval=HEALTH_EVERY_S,
            job_serializer=orjson.dumps,
            job_deserializer=orjson.loads,
            log_results=False,
        )
        self.dispatchers: Sequence[Dispatcher] = ()
        self.loops: Sequence[Loop] = ()
        self.stopping = asyncio.Event()

    async def run_one(self, message: JobMessage, claim: Claim) -> tuple[Record, Cleanup]:
        """Run one attempt through the registered function of its kind."""
        function = self.functions[message.kind.value]
        if not isinstance(function, Function):
            raise TypeError(f"{message.kind} is not a job function")
        result: tuple[Record, Cleanup] = await function.coroutine(self.ctx, message, claim)
        return result

    async def main(self) -> None:
        self.ctx["redis"] = self.pool
        stop = asyncio.create_task(self.stopping.wait(), name="stopping")
        try:
            if await self._started(stop):
                await self._serve(stop)
        finally:
            stop.cancel()

    async def _started(self, stop: asyncio.Task[Any]) -> bool:
        """Run the start-up hook; False if the worker was told to stop before it was through."""
        if self.on_startup is None:
            return True
        starting = asyncio.ensure_future(self.on_startup(self.ctx))
        try:
            await asyncio.wait([starting, stop], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not starting.done():
                await ended([starting])
        if starting.cancelled():
            return False
        starting.result()
        return True

    async def _serve(self, stop: asyncio.Task[Any]) -> None:
        dispatchers = [
            asyncio.create_task(dispatcher.work(), name=f"dispatcher-{dispatcher.name}")
            for dispatcher in self.dispatchers
        ]
        loops = Loops()
        loops.start(*self.loops, Loop(name="health", run_once=self._health, interval_s=HEALTH_EVERY_S))
        failing = asyncio.create_task(loops.failed(), name="loops")
        try:
            done, _ = await asyncio.wait([*dispatchers, failing, stop], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stop}:
                log.error("the worker cannot go on", extra={"task": task.get_name()})
                task.result()
            for dispatcher in self.dispatchers:
                dispatcher.drain()
            await asyncio.gather(*dispatchers)
        finally:
            await ended([*dispatchers, failing])
            await loops.stop()

    async def close(self) -> None:
        """Run the shutdown hook; the hook closes what the start-up opened."""
        if self.on_shutdown is not None:
            await self.on_shutdown(self.ctx)
        await self.pool.aclose()

    async def _health(self) -> None:
        self.jobs_complete = sum(dispatcher.settled for dispatcher in self.dispatchers)
        with redis_errors():
            await self.record_health()


def _as_arq(job: Job) -> Any:
    """arq wants coroutine functions, by name."""

    async def run(ctx: dict[Any, Any], message: JobMessage, claim: Claim) -> tuple[Record, Cleanup]:
        return await job(ctx, message, claim)

    return run
