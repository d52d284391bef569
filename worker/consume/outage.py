"""Keeps a worker from claiming jobs while its container engine does not answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from shared.loop import Loop
from shared.queue.message import JobMessage
from worker.engine.contract import Engine

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 5.0
_LOOK_AGAIN_S = 0.5
_PAUSE_S = 1.0


class Outage:
    """Decides on jobs whose attempt the engine failed, and watches for the engine's return.

    :param hold: called with True when the engine does not answer, with False when it does again.
    :param max_lost: after so many lost attempts a job ends.
    """

    def __init__(self, engine: Engine, hold: Callable[[bool], None], *, max_lost: int) -> None:
        self._engine = engine
        self._hold = hold
        self._max_lost = max_lost
        self._away = False

    async def again(self, message: JobMessage) -> bool:
        """Whether a job whose attempt the engine failed is to be delivered again; returns when it may be.

        If the engine does not answer, this worker claims nothing from here on, so that the job's next attempts are not
        used up in the time that an engine takes to restart. An engine that still answers may be about to stop, and
        other workers of a stopped engine may not have noticed yet. So the job waits a little, longer each time.
        """
        if message.lost + 1 >= self._max_lost:
            return False
        await self._look()
        await asyncio.sleep(_PAUSE_S * 4**message.lost)
        await self._look()
        return True

    @property
    def loop(self) -> Loop:
        return Loop(
            name="outage",
            run_once=self._look,
            interval_s=lambda: _LOOK_AGAIN_S if self._away else _LOOK_EVERY_S,
        )

    async def _look(self) -> None:
        away = not await self._engine.answers()
        if away == self._away:
            return
        if away:
            log.warning("the container engine does not answer: no jobs are taken until it does")
        else:
            log.info("the container engine answers again")
        self._away = away
        self._hold(away)
