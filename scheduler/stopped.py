"""Brings the queue's list of stopped functions in line with Postgres, in case the API process that stopped or started
one died before it reached the queue."""

from __future__ import annotations

from shared.postgres.functions import Functions
from shared.queue.queue import Queue

_STEPS = 20


class StoppedFunctions:
    def __init__(self, queue: Queue, functions: Functions) -> None:
        self._queue = queue
        self._functions = functions

    async def run_once(self) -> int:
        """Stop and start functions on the queue as Postgres has them; how many changed there.

        A function with many parked jobs is started in steps, so that no run is long.
        """
        wanted = await self._functions.stopped()
        stopped, starting = await self._queue.stopped_functions()
        for function in wanted - stopped:
            await self._queue.stop_function(function)
        started = (stopped | starting) - wanted
        for function in started:
            for _ in range(_STEPS):
                if await self._queue.start_function(function):
                    break
        return len(wanted - stopped) + len(started)
