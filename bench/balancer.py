"""In front of several API processes: calls go to those that say they are ready, as behind any load balancer."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

import aiohttp

LOOK_S = 0.1
_LOOK_TIMEOUT_S = 2.0
_NOBODY_S = 10.0
_CALL_S = 60.0


class Balancer:
    """Keeps connections alive and asks each process every :data:`LOOK_S` whether it is ready. A call that could not be
    sent, since nobody listens any more, goes to another process; one that was sent is never repeated.

    Use as an async context manager.

    :param headers: what every call is sent with.
    """

    def __init__(self, ports: Sequence[int], headers: Mapping[str, str]) -> None:
        self.ready: set[int] = set()
        self.passed_on = 0
        self._ports = tuple(ports)
        self._headers = dict(headers)
        self._turn = itertools.count()
        self._http: aiohttp.ClientSession
        self._looking: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=_CALL_S)
        self._http = aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0))
        self._looking = [asyncio.create_task(self._look(port)) for port in self._ports]
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._looking:
            task.cancel()
        await asyncio.gather(*self._looking, return_exceptions=True)
        await self._http.close()

    async def ask(self, method: str, path: str, *, headers: Mapping[str, str], body: object) -> tuple[int, Any]:
        """Status and JSON of the answer. Raises what aiohttp raises when there is none, and ``TimeoutError`` when no
        process is ready for long."""
        async with asyncio.timeout(_NOBODY_S) as bound:
            while True:
                ready = sorted(self.ready)
                if not ready:
                    await asyncio.sleep(LOOK_S / 2)
                    continue
                port = ready[next(self._turn) % len(ready)]
                bound.reschedule(None)
                try:
                    async with self._http.request(
                        method, f"http://127.0.0.1:{port}{path}", headers={**self._headers, **headers}, json=body
                    ) as answer:
                        return answer.status, json.loads(await answer.read())
                except aiohttp.ClientConnectorError:
                    self.passed_on += 1
                    self.ready.discard(port)
                    bound.reschedule(asyncio.get_running_loop().time() + _NOBODY_S)

    async def _look(self, port: int) -> None:
        while True:
            try:
                async with asyncio.timeout(_LOOK_TIMEOUT_S):
                    async with self._http.get(f"http://127.0.0.1:{port}/api/ready") as answer:
                        good = answer.status == 200
            except (aiohttp.ClientError, TimeoutError):
                good = False
            (self.ready.add if good else self.ready.discard)(port)
            await asyncio.sleep(LOOK_S)
