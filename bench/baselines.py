"""What the figures are compared with, each measured once a run and only when a figure asks for it.

On servers of the same kind as the platform's, but with nothing else on them.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

from bench import arq_shipped, bare_sandbox, engine, functions, limits
from bench.figure import Baseline, WrongAnswer, median
from shared.embedded.postgres import EmbeddedPostgres
from shared.embedded.redis import EmbeddedRedis
from shared.postgres.migrate import migrate

_MOST_CONNECTIONS = 50  # the embedded Postgres takes 60


class Baselines:
    """:param quick: fewer repetitions. ``None`` answers mean that this machine cannot run that baseline."""

    def __init__(self, *, quick: bool, engine_name: str, say: Callable[[str], None]) -> None:
        self._quick = quick
        self._engine_name = engine_name
        self._say = say
        self._known: dict[str, Baseline] = {}

    @property
    def measured(self) -> list[Baseline]:
        return list(self._known.values())

    async def arq_latency(self) -> Baseline:
        async def measure() -> float:
            async with _redis() as url:
                return await arq_shipped.latency_ms(url, 4 if self._quick else 15)

        return await self._once("arq as shipped, enqueue to result, p50 ms", measure)

    async def arq_drained(self) -> Baseline:
        async def measure() -> float:
            async with _redis() as url:
                return await arq_shipped.drained_per_second(url, 1_000 if self._quick else 5_000)

        return await self._once("arq as shipped, no-op jobs drained /s", measure)

    async def arq_end_to_end(self, count: int) -> Baseline:
        async def measure() -> float:
            async with _redis() as url:
                return await arq_shipped.end_to_end_per_second(url, count)

        return await self._once(f"arq as shipped, {count:,} no-op jobs end to end /s", measure)

    async def redis_round_trip(self) -> Baseline:
        async def measure() -> float:
            async with _redis() as url:
                return await asyncio.to_thread(limits.redis_round_trip_ms, url, 2_000)

        return await self._once("two bare hops through a Redis list, p50 ms", measure)

    async def inserts(self, clients: int) -> Baseline:
        connections = min(clients, _MOST_CONNECTIONS)

        async def measure() -> float:
            with tempfile.TemporaryDirectory(prefix="cp-bench-") as folder:
                async with EmbeddedPostgres(Path(folder, "postgres")) as postgres:
                    await migrate(postgres.dsn)
                    return await limits.inserts_per_second(postgres.dsn, connections, 2 if self._quick else 5)

        return await self._once(f"one INSERT a commit, {connections} connections /s", measure)

    async def bare_call(self, image: str | None) -> Baseline | None:
        """A blocking call to a sandbox made of ``image``, the built ``functions.HELLO``."""
        if self._engine_name != "docker" or image is None:
            return None

        async def measure() -> float:
            count = 500 if self._quick else 3_000
            return await bare_sandbox.call_ms(image, functions.HELLO_BODY, functions.HELLO_RESULT, count)

        return await self._once("bare blocking call to the sandbox's socket, p50 ms", measure)

    async def docker_run(self, image: str | None) -> Baseline | None:
        """``docker run`` of the function in ``image``, by the command."""
        if self._engine_name != "docker" or image is None:
            return None

        async def measure() -> float:
            return median([await _run_ms(image) for _ in range(3 if self._quick else 10)])

        return await self._once("docker run of the same image, p50 ms", measure)

    async def docker_build_and_run(self) -> Baseline | None:
        if self._engine_name != "docker":
            return None

        async def measure() -> float:
            return median([await _build_and_run_ms(number) for number in range(2 if self._quick else 5)])

        return await self._once("docker build and docker run by hand, p50 ms", measure)

    async def _once(self, name: str, measure: Callable[[], Awaitable[float]]) -> Baseline:
        if name not in self._known:
            self._say(f"baseline: {name}")
            self._known[name] = Baseline(name=name, value=await measure())
        return self._known[name]


@asynccontextmanager
async def _redis() -> AsyncIterator[str]:
    with tempfile.TemporaryDirectory(prefix="cp-bench-") as folder:
        async with EmbeddedRedis(Path(folder, "redis")) as redis:
            yield redis.url


async def _run_ms(image: str) -> float:
    started = time.perf_counter()
    _check(await engine.run_once(image, {"body": functions.HELLO_BODY}))
    return 1000 * (time.perf_counter() - started)


async def _build_and_run_ms(number: int) -> float:
    tag = f"containerpub-bench/by-hand:{uuid4().hex}"
    with tempfile.TemporaryDirectory(prefix="cp-bench-") as folder:
        Path(folder, "main.py").write_text(functions.unlike_any(functions.HELLO, number + time.time_ns()))
        started = time.perf_counter()
        await engine.build(Path(folder), tag)
        try:
            _check(await engine.run_once(tag, {"body": functions.HELLO_BODY}))
            return 1000 * (time.perf_counter() - started)
        finally:
            await engine.remove(tag)


def _check(printed: str) -> None:
    if printed != '{"greeting": "Hello, Ada!"}':
        raise WrongAnswer(f"docker run printed {printed!r}")
