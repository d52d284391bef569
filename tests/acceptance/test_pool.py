"""The pool of one worker, on a real engine: what is reused, what is frozen, what goes, and the budget."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from engines import (
    Bench,
    call,
    docker_bench,
    docker_bench_of,
    engine_config,
    engine_socket,
    process_bench_of,
    short_dir,
)

from bench.relay import Relay
from shared.layers import VersionLayers
from tests.processes import runs
from worker.config import EngineConfig
from worker.engine.docker import DockerEngine
from worker.errors import EngineUnavailable
from worker.sandbox.pool import Pool, PoolLimits
from worker.sandbox.pooled import PooledSandbox, StartKind

__all__ = ["docker_bench", "engine_config", "short_dir"]  # fixtures

WITHIN_S = 20


def limits(**changes: Any) -> PoolLimits:
    usual: dict[str, Any] = {
        "memory_mb": 1024,
        "pause_s": 1000,
        "idle_s": 1000,
        "max_age_s": 1000,
        "max_uses": 1000,
        "ahead": 1,
        "generics": 0,
    }
    return PoolLimits(**{**usual, **changes})


@pytest.fixture
async def process(engine_config: EngineConfig) -> AsyncIterator[Bench]:
    async for one in process_bench_of(engine_config):
        yield one


async def until(condition: Any) -> None:
    """Wait for something that a background task brings about."""
    async with asyncio.timeout(WITHIN_S):
        while not condition():
            await asyncio.sleep(0.01)


def standing(bench: Bench) -> list[psutil.Process]:
    """The sandboxes that there are, by their processes and not by the pool's own books."""
    found = []
    for file in bench.config.socket_dir.glob("*/*/pid"):
        with suppress(FileNotFoundError, psutil.NoSuchProcess):
            found.append(psutil.Process(int(file.read_text().split()[0])))
    return [one for one in found if runs(one)]


async def use(pool: Pool, pooled: PooledSandbox, **release: Any) -> None:
    outcome = await pooled.sandbox.call(call())
    assert outcome.reason is None, outcome
    leaving = pool.release(pooled, **release)
    if leaving is not None:
        await leaving


async def test_a_sandbox_is_used_again_for_its_own_spec_only(process: Bench) -> None:
    pool = Pool(engine=process.engine, limits=limits())
    mine, other = process.spec("echo"), process.spec("echo")
    first = await pool.acquire(mine)
    assert first.start_kind is StartKind.COLD
    await use(pool, first)
    stranger = await pool.acquire(other)
    assert stranger.sandbox.id != first.sandbox.id
    again = await pool.acquire(mine)
    assert again.sandbox.id == first.sandbox.id
    assert again.start_kind is StartKind.WARM
    await use(pool, again)
    await use(pool, stranger)
    await pool.close()
    assert pool.state()["memory_mb"] == 0


async def test_an_idle_sandbox_is_paused_and_wakes_for_a_call(process: Bench) -> None:
    pool = Pool(engine=process.engine, limits=limits(pause_s=0.05))
    maintaining = asyncio.create_task(pool.loop.run())
    spec = process.spec("echo")
    await use(pool, await pool.acquire(spec))
    await until(lambda: pool.state()["paused"] == 1)
    pooled = await pool.acquire(spec)
    assert pooled.start_kind is StartKind.PAUSED
    await use(pool, pooled)
    maintaining.cancel()
    await pool.close()


async def test_an_idle_sandbox_goes_when_its_time_is_over_unless_it_is_kept(process: Bench) -> None:
    pool = Pool(engine=process.engine, limits=limits(idle_s=0.05))
    kept, other = process.spec("echo"), process.spec("echo")
    pool.keep({kept: 1})
    maintaining = asyncio.create_task(pool.loop.run())
    going = await pool.acquire(other)
    await use(pool, going)
    await until(lambda: not going.sandbox.reusable and pool.state()["idle"] == 1)
    await until(lambda: pool.state()["memory_mb"] == 128)
    pooled = await pool.acquire(kept)
    assert pooled.start_kind is StartKind.WARM
    await use(pool, pooled)
    maintaining.cancel()
    await pool.close()


async def test_w8_a_sandbox_is_replaced_after_its_uses(process: Bench) -> None:
    pool = Pool(engine=process.engine, limits=limits(max_uses=2))
    spec = process.spec("echo")
    ids = []
    for _ in range(3):
        pooled = await pool.acquire(spec)
        ids.append(pooled.sandbox.id)
        await use(pool, pooled)
    assert ids[0] == ids[1] != ids[2]
    await pool.close()


async def test_the_budget_is_never_passed_and_the_oldest_idle_one_makes_room(process: Bench) -> None:
    pool = Pool(engine=process.engine, limits=limits(memory_mb=256))
    specs = [process.spec("echo") for _ in range(3)]
    first = await pool.acquire(specs[0])
    second = await pool.acquire(specs[1])
    assert pool.state()["memory_mb"] == 256
    waiting = asyncio.create_task(pool.acquire(specs[2]))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    await use(pool, first)
    third = await waiting
    assert pool.state()["memory_mb"] == 256
    assert not first.sandbox.reusable
    for pooled in (second, third):
        await use(pool, pooled)
    await pool.close()


async def test_many_at_once_share_a_small_budget_without_passing_it(process: Bench) -> None:
    pool = Pool(engine=process.engine, limits=limits(memory_mb=384))
    specs = [process.spec("echo") for _ in range(6)]
    seen: list[int] = []

    async def one(index: int) -> None:
        pooled = await pool.acquire(specs[index % 6])
        seen.append(len(standing(process)))
        await use(pool, pooled)

    async with asyncio.timeout(60), asyncio.TaskGroup() as callers:
        for index in range(18):
            callers.create_task(one(index))
    assert max(seen) == 3, seen  # of 128 MB each
    await pool.close()
    assert standing(process) == []
    assert pool.state() == {**pool.state(), "busy": 0, "idle": 0, "memory_mb": 0}


async def test_a_sandbox_larger_than_the_budget_is_refused_at_once(process: Bench) -> None:
    pool = Pool(engine=process.engine, limits=limits(memory_mb=64))
    with pytest.raises(EngineUnavailable, match="never fits"):
        await pool.acquire(process.spec("echo"))


async def test_a_caller_that_gives_up_waiting_leaves_its_place_to_the_next(process: Bench) -> None:
    pool = Pool(engine=process.engine, limits=limits(memory_mb=128))
    specs = [process.spec("echo") for _ in range(3)]
    holding = await pool.acquire(specs[0])
    impatient = asyncio.create_task(pool.acquire(specs[1]))
    patient = asyncio.create_task(pool.acquire(specs[2]))
    await asyncio.sleep(0)
    impatient.cancel()
    await use(pool, holding)
    async with asyncio.timeout(WITHIN_S):
        await use(pool, await patient)
    await pool.close()
    assert pool.state()["memory_mb"] == 0


async def test_a_fresh_sandbox_serves_one_call_and_the_next_stands_ready(process: Bench) -> None:
    pool = Pool(engine=process.engine, limits=limits())
    spec = process.spec("echo")
    ids = set()
    for number in range(3):
        pooled = await pool.acquire(spec, fresh=True)
        assert pooled.start_kind is (StartKind.WARM if number else StartKind.COLD)
        ids.add(pooled.sandbox.id)
        await use(pool, pooled, fresh=True)
        await until(lambda: pool.state()["idle"] == 1)
    assert len(ids) == 3
    await pool.close()
    assert pool.state()["memory_mb"] == 0


async def test_an_idle_sandbox_that_died_is_noticed_and_not_handed_out(process: Bench) -> None:
    pool = Pool(engine=process.engine, limits=limits())
    spec = process.spec("echo")
    pooled = await pool.acquire(spec)
    await use(pool, pooled)
    await pooled.sandbox.destroy()
    again = await pool.acquire(spec)
    assert again.sandbox.id != pooled.sandbox.id
    await use(pool, again)
    await pool.close()
    assert pool.state()["memory_mb"] == 0


async def test_dropped_specs_go_and_others_stay(process: Bench) -> None:
    pool = Pool(engine=process.engine, limits=limits())
    gone, stays = process.spec("echo"), process.spec("echo")
    for spec in (gone, stays):
        await use(pool, await pool.acquire(spec))
    pool.drop(lambda spec: spec.version_id == gone.version_id)
    await until(lambda: pool.state()["memory_mb"] == 128)
    assert (await pool.acquire(stays)).start_kind is StartKind.WARM
    await pool.close()


async def test_a_cold_start_is_made_from_a_generic_once_the_code_is_here(process: Bench) -> None:
    pool = Pool(engine=process.engine, limits=limits(generics=1))
    maintaining = asyncio.create_task(pool.loop.run())
    spec = process.spec("echo")
    first = await pool.acquire(spec)
    await until(lambda: pool.state()["generic"] == 1)
    second = await pool.acquire(spec)  # the first is busy
    assert second.start_kind is StartKind.COLD
    await until(lambda: pool.state()["generic"] == 1)  # the next one
    assert pool.state()["busy"] == 2
    await use(pool, first)
    await use(pool, second)
    maintaining.cancel()
    await pool.close()
    assert pool.state() == {**pool.state(), "generic": 0, "memory_mb": 0}


async def test_a_version_that_another_worker_built_is_made_from_a_generic_at_its_first_call(process: Bench) -> None:
    pool = Pool(engine=process.engine, limits=limits(generics=2))
    maintaining = asyncio.create_task(pool.loop.run())
    await use(pool, await pool.acquire(process.spec("echo")))
    await until(lambda: pool.state()["generic"] == 2)
    maintaining.cancel()
    (standing,) = pool._generics._standing.values()
    ready = {generic.id for generic in standing}
    strange = process.spec("echo")  # this worker has never heard of it
    async with asyncio.timeout(WITHIN_S), asyncio.TaskGroup() as callers:
        acquiring = [callers.create_task(pool.acquire(strange)) for _ in range(2)]
    pooled_sandboxes = [one.result() for one in acquiring]
    assert pooled_sandboxes[0].sandbox.id in ready
    assert {pooled.start_kind for pooled in pooled_sandboxes} == {StartKind.COLD}
    for pooled in pooled_sandboxes:
        await use(pool, pooled)
    await pool.close()


async def test_idle_sandboxes_make_room_for_a_generic_but_not_those_that_are_kept(process: Bench) -> None:
    pool = Pool(engine=process.engine, limits=limits(memory_mb=512, generics=2))
    specs = [process.spec("echo") for _ in range(4)]
    for spec in specs:
        await use(pool, await pool.acquire(spec))
    assert pool.state() == {**pool.state(), "idle": 4, "memory_mb": 512}
    pool.keep({specs[0]: 1})
    maintaining = asyncio.create_task(pool.loop.run())
    # A quarter of the memory, and the kept one is the oldest.
    await until(lambda: pool.state()["generic"] == 1 and pool.state()["idle"] == 3)
    await asyncio.sleep(1.2)
    assert pool.state() == {**pool.state(), "generic": 1, "idle": 3, "memory_mb": 512}
    assert {spec for spec in specs if not pool._idle.count(spec)} == {specs[1]}
    # The evicted one comes back through the generic sandbox, for which the next oldest then makes room.
    await use(pool, await pool.acquire(specs[1]))
    assert pool.state()["generic"] == 0
    await until(lambda: pool.state()["generic"] == 1)
    assert {spec for spec in specs if not pool._idle.count(spec)} == {specs[2]}
    maintaining.cancel()
    await pool.close()
    assert pool.state() == {**pool.state(), "generic": 0, "memory_mb": 0}


async def end_from_outside(bench: Bench, sandbox_id: str, end: str) -> None:
    """As an operator would."""
    assert isinstance(bench.engine, DockerEngine)
    container = bench.engine._client().docker.containers.container(f"containerpub-{sandbox_id}")
    await (container.delete(force=True) if end == "delete" else getattr(container, end)())


@pytest.mark.docker
@pytest.mark.parametrize(
    ("end", "pause_s"),
    [("kill", 1000), ("stop", 0.05), ("delete", 0.05)],
    ids=["running-kill", "paused-stop", "paused-delete"],
)
async def test_f15_sandboxes_and_generics_ended_from_outside_are_replaced_and_counted_right(
    docker_bench: Bench, end: str, pause_s: float
) -> None:
    pool = Pool(engine=docker_bench.engine, limits=limits(pause_s=pause_s, generics=1))
    spec = docker_bench.spec("echo")
    kept = "paused" if pause_s < 1 else "idle"
    pool.keep({spec: 2})
    maintaining = asyncio.create_task(pool.loop.run())
    try:
        await until(lambda: pool.state()[kept] == 2)
        await pool._generics.prepare(spec)
        await until(lambda: pool.state()["generic"] == 1)
        ended = {pooled.sandbox.id for pooled in pool._idle}
        (generics,) = pool._generics._standing.values()
        ended.add(generics[0].id)
        for one in ended:
            await end_from_outside(docker_bench, one, end)

        def mended() -> bool:
            there = {pooled.sandbox.id for pooled in pool._idle} | {generic.id for generic in generics}
            return not there & ended and (pool.state()[kept], pool.state()["generic"]) == (2, 1)

        await until(mended)
        await until(lambda: pool.state()["memory_mb"] == 3 * 128)
        await use(pool, await pool.acquire(spec))
    finally:
        maintaining.cancel()
        await pool.close()
    assert pool.state() == {**pool.state(), "busy": 0, "idle": 0, "paused": 0, "generic": 0, "memory_mb": 0}


@pytest.mark.docker
async def test_f15_a_sandbox_removed_under_a_call_leaves_nothing_in_the_books(docker_bench: Bench) -> None:
    pool = Pool(engine=docker_bench.engine, limits=limits())
    pooled = await pool.acquire(docker_bench.spec("sleep"))
    running = asyncio.ensure_future(pooled.sandbox.call(call(60, timeout_ms=30_000)))
    await asyncio.sleep(0)  # the call is on its way
    await end_from_outside(docker_bench, pooled.sandbox.id, "delete")
    assert (await running).reason == "sandbox_start_failed"
    leaving = pool.release(pooled)
    assert leaving is not None
    await leaving
    assert pool.state() == {**pool.state(), "busy": 0, "memory_mb": 0}
    await pool.close()


async def test_what_cannot_be_started_does_not_keep_others_from_being_kept_warm(process: Bench) -> None:
    pool = Pool(engine=process.engine, limits=limits())
    broken, fine = process.spec("echo", layers=replace(process.layers, base="absent")), process.spec("echo")
    pool.keep({broken: 1, fine: 1})
    maintaining = asyncio.create_task(pool.loop.run())
    await until(lambda: pool.state()["idle"] == 1)
    maintaining.cancel()
    await pool.close()
    assert pool.state()["memory_mb"] == 0


async def test_a_pool_that_drains_keeps_nothing_and_serves_who_asks(process: Bench) -> None:
    pool = Pool(engine=process.engine, limits=limits())
    idle, busy = process.spec("echo"), process.spec("echo")
    pooled = await pool.acquire(busy)
    await use(pool, await pool.acquire(idle))
    pool.drain()
    await until(lambda: pool.state()["memory_mb"] == 128)
    await use(pool, pooled)
    await use(pool, await pool.acquire(idle))
    await pool.prewarm(idle)
    assert pool.state() == {**pool.state(), "busy": 0, "idle": 0, "memory_mb": 0}
    await pool.close()


async def test_r8_callers_that_wait_get_freed_sandboxes_and_none_is_evicted_for_their_own_version(
    process: Bench,
) -> None:
    pool = Pool(engine=process.engine, limits=limits(memory_mb=384))
    spec = process.spec("echo")
    served: list[str] = []

    async def client() -> None:
        for _ in range(20):
            pooled = await pool.acquire(spec)
            served.append(pooled.sandbox.id)
            await use(pool, pooled)

    async with asyncio.timeout(60), asyncio.TaskGroup() as clients:
        for _ in range(24):
            clients.create_task(client())
    assert len(served) == 480
    assert len(set(served)) <= 3, "a sandbox was destroyed while callers of its version waited"
    await pool.close()
    assert pool.state()["memory_mb"] == 0


async def test_r8_a_freed_sandbox_goes_to_the_caller_that_has_waited_longest(process: Bench) -> None:
    pool = Pool(engine=process.engine, limits=limits(memory_mb=128))
    spec = process.spec("echo")
    holding = await pool.acquire(spec)
    order: list[int] = []

    async def caller(number: int) -> None:
        pooled = await pool.acquire(spec)
        order.append(number)
        assert pooled.start_kind is StartKind.WARM
        await use(pool, pooled)

    callers = [asyncio.create_task(caller(number)) for number in range(5)]
    await asyncio.sleep(0)
    await use(pool, holding)
    async with asyncio.timeout(WITHIN_S):
        await asyncio.gather(*callers)
    assert order == [0, 1, 2, 3, 4]
    await pool.close()


async def test_r8_long_calls_get_as_many_sandboxes_as_they_have_callers(process: Bench) -> None:
    pool = Pool(engine=process.engine, limits=limits())
    spec = process.spec("echo")
    await use(pool, await pool.acquire(spec))
    async with asyncio.timeout(WITHIN_S):
        pooled_sandboxes = await asyncio.gather(*(pool.acquire(spec) for _ in range(6)))  # none is given back
    assert len({pooled.sandbox.id for pooled in pooled_sandboxes}) == 6
    for pooled in pooled_sandboxes:
        pool.release(pooled)
    await pool.close()
    assert pool.state()["memory_mb"] == 0


async def test_a_version_without_a_sandbox_gets_room_from_one_whose_callers_never_cease(process: Bench) -> None:
    pool = Pool(engine=process.engine, limits=limits(memory_mb=256))
    busy, rare = process.spec("echo"), process.spec("echo")
    served: set[str] = set()
    over = asyncio.Event()

    async def client() -> None:
        while not over.is_set():
            pooled = await pool.acquire(busy)
            served.add(pooled.sandbox.id)
            await use(pool, pooled)

    clients = [asyncio.create_task(client()) for _ in range(8)]
    try:
        await until(lambda: pool.state()["memory_mb"] == 256 and len(served) == 2)
        async with asyncio.timeout(WITHIN_S):
            pooled = await pool.acquire(rare)
        assert len(served) <= 3
        await use(pool, pooled)
    finally:
        over.set()
        await asyncio.gather(*clients)
    await pool.close()
    assert pool.state()["memory_mb"] == 0


async def test_callers_whose_starts_fail_are_all_told(process: Bench) -> None:
    pool = Pool(engine=process.engine, limits=limits())
    broken = process.spec("echo", layers=VersionLayers(base="absent", layers=()))
    async with asyncio.timeout(WITHIN_S):
        told = await asyncio.gather(*(pool.acquire(broken) for _ in range(16)), return_exceptions=True)
    assert all(isinstance(one, EngineUnavailable) for one in told)
    assert pool.state() == {**pool.state(), "busy": 0, "memory_mb": 0}
    await pool.close()


async def test_callers_that_give_up_leave_no_start_that_waits_for_room(process: Bench) -> None:
    pool = Pool(engine=process.engine, limits=limits(memory_mb=128))
    holding = await pool.acquire(process.spec("echo"))
    others = [asyncio.create_task(pool.acquire(process.spec("echo"))) for _ in range(3)]
    await asyncio.sleep(0)
    for other in others:
        other.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await use(pool, holding)
    await until(lambda: pool._budget.first is None)
    assert pool.state() == {**pool.state(), "busy": 0, "idle": 1, "memory_mb": 128}
    await pool.close()


@pytest.mark.docker
async def test_r4_what_the_engine_cannot_remove_counts_until_it_is_gone(
    engine_config: EngineConfig, short_dir: Path
) -> None:
    async with Relay(short_dir / "engine", engine_socket()) as relay:
        config = replace(engine_config, docker_host=relay.url, engine_call_timeout_s=2)
        async with aclosing(docker_bench_of(config)) as benches:
            bench = await anext(benches)
            pool = Pool(engine=bench.engine, limits=limits(generics=1))
            maintaining = asyncio.create_task(pool.loop.run())
            pooled = await pool.acquire(bench.spec("echo"))
            await until(lambda: pool.state()["generic"] == 1)
            maintaining.cancel()
            relay.stall()
            leaving = pool.release(pooled, fresh=True)
            pool.drain()
            assert leaving is not None
            await leaving
            assert pool.state() == {**pool.state(), "busy": 2, "memory_mb": 256}, "counted as free while it is there"
            relay.flow()
            await until(lambda: pool.state()["memory_mb"] == 0)
            await pool.close()
