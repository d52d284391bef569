"""How many containers a worker has its engine create, start and remove at a time: more would hold up the calls."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from aiodocker import Docker
from engines import call, docker_bench_of, engine_config, engine_socket, short_dir

from bench.relay import Relay
from worker.config import EngineConfig
from worker.engine.docker import DockerEngine

pytestmark = pytest.mark.docker

__all__ = ["engine_config", "short_dir"]  # fixtures

CREATE, START, REMOVE = b"/containers/create?", b"/start HTTP/", b"DELETE "
WITHIN_S = 60


@contextmanager
def holding(relay: Relay, word: bytes) -> Iterator[None]:
    relay.hold_each(word)
    try:
        yield
    finally:
        relay.flow()


async def held(relay: Relay, engine: DockerEngine, most: int) -> None:
    """Return once the engine would have got ``most`` requests, and fail if there are more."""
    async with asyncio.timeout(WITHIN_S):
        while len(relay.waiting) < most:
            await asyncio.sleep(0.01)
        # Whoever else wanted to be there by now has had time for it: that of some answers of the engine.
        for _ in range(20):
            assert await engine.answers()
    assert len(relay.waiting) == most, relay.waiting


@pytest.mark.parametrize("allowed", [2, 0])
async def test_only_so_many_containers_come_and_go_at_a_time(
    engine_config: EngineConfig, short_dir: Path, allowed: int
) -> None:
    async with Docker() as docker:
        most = allowed or (await docker.system.info())["NCPU"]
    count = most + 4
    async with Relay(short_dir / "engine", engine_socket()) as relay:
        config = replace(engine_config, docker_host=relay.url, max_container_changes=allowed)
        async with aclosing(docker_bench_of(config)) as benches:
            bench = await anext(benches)
            assert isinstance(bench.engine, DockerEngine)
            sandboxes = []
            for word in (CREATE, START):
                async with asyncio.TaskGroup() as group:
                    with holding(relay, word):
                        starts = [group.create_task(bench.start("echo")) for _ in range(count)]
                        await held(relay, bench.engine, most)
                sandboxes += [start.result() for start in starts]
            for sandbox in sandboxes:
                assert (await sandbox.call(call("there"))).reason is None
            async with asyncio.TaskGroup() as group:
                with holding(relay, REMOVE):
                    for sandbox in sandboxes:
                        group.create_task(sandbox.destroy())
                    await held(relay, bench.engine, most)
