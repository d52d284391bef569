"""Processes and servers are killed, stopped and starved under load; every accepted job ends once all the same."""

from __future__ import annotations

import asyncio
import shutil
import signal

import pytest
from redis.asyncio import Redis
from scenes import ENV, LEASE_S, Load, own_postgres, own_redis, scene, until

from shared.embedded.postgres import EmbeddedPostgres
from shared.embedded.redis import EmbeddedRedis
from shared.postgres.jobs import Jobs
from shared.postgres.pool import Pool
from tests.conservation import assert_conserved
from tests.deployment import Platform
from tests.seeds import message

__all__ = ["own_postgres", "own_redis"]  # fixtures


@pytest.mark.parametrize("workers", [2, 4])
async def test_f1_killed_worker_loses_attempts_and_no_job(database: str, redis_url: str, workers: int) -> None:
    async with scene(database, redis_url, workers=workers) as on:
        await on.accept_many(8 * workers, 0.5)
        lost = await on.kill_worker(await on.busy(2))
        assert lost
        jobs = await on.all_ended(LEASE_S + 5)
        attempts = await on.attempts()
        for job, row in jobs.items():
            outcomes = [(record["outcome"], record["attempt"]) for record in attempts[job]]
            if job in lost:
                assert (row["attempt"], row["lost"]) == (2, 1)
                assert outcomes == [("lost", 1), ("succeeded", 2)]
                assert len({record["worker_id"] for record in attempts[job]}) == 2
            else:
                assert (row["attempt"], row["lost"], outcomes) == (1, 0, [("succeeded", 1)])
        assert len({record["worker_id"] for records in attempts.values() for record in records}) == workers
        await on.one_outcome_each()


async def test_f4_worker_that_slept_beyond_its_lease_settles_nothing(database: str, redis_url: str) -> None:
    async with scene(database, redis_url, workers=2) as on:
        await on.accept_many(4, 1.0)
        sleeper = await on.busy()
        on.platform.signal(sleeper, signal.SIGSTOP)
        mine = (await on.holders())[sleeper]
        # A stopped worker may also have been handed records, which others take over after five seconds.
        await on.all_ended(LEASE_S + 10)
        on.platform.signal(sleeper, signal.SIGCONT)
        log = on.platform.log(sleeper)

        async def told() -> bool:
            text = log.read_text()
            return "settle refused" in text or "not ours any more" in text

        await until(told, 15, on.platform.logs)
        attempts = await on.attempts()
        for job in mine:
            assert [record["outcome"] for record in attempts[job]] == ["lost", "succeeded"]
        await on.one_outcome_each()
        # It serves on, as the same process.
        await on.accept_many(12, 0.3)
        await on.all_ended(10)
        attempts = await on.attempts()
        assert len({record["worker_id"] for records in attempts.values() for record in records[-1:]}) == 2
        on.nothing_exited()


async def test_f20_job_that_costs_worker_after_worker_is_given_up(database: str, redis_url: str) -> None:
    async with scene(database, redis_url, workers=2) as on:
        await on.accept(60)
        for number in range(3):
            lost = await on.kill_worker(await on.busy())
            assert lost == set(on.accepted)
            on.platform.start(f"worker-{number + 3}")
        (row,) = (await on.all_ended(LEASE_S + 5)).values()
        assert (row["status"], row["reason"], row["attempt"], row["lost"]) == ("failed", "worker_lost", 3, 3)
        (records,) = (await on.attempts()).values()
        assert [(record["outcome"], record["attempt"]) for record in records] == [("lost", 1), ("lost", 2), ("lost", 3)]
        view = await on.client.job(on.accepted[0])
        assert (view["status"], view["reason"]) == ("failed", "worker_lost")
        await assert_conserved(on.redis, database)


async def test_f5_job_committed_and_never_enqueued_is_found(database: str, redis_url: str, pool: Pool) -> None:
    async with scene(database, redis_url) as on:
        version = (await on.rows("SELECT id, function_id FROM versions"))[0]
        user = (await on.rows("SELECT id FROM users"))[0]["id"]
        job = message(user, function=version["function_id"], version_id=version["id"], payload=b'{"body":0}')
        await Jobs(pool).accept([job])
        on.accepted.append(str(job.id))
        await on.all_ended(10)
        await on.one_outcome_each()


async def _lose_aof(server: EmbeddedRedis) -> None:
    server.kill()
    await server.wait()
    await asyncio.to_thread(shutil.rmtree, server.data)


@pytest.mark.parametrize("fault", ["f8-killed-without-aof", "f8-killed-with-aof", "f9-flushed"])
async def test_redis_that_lost_everything_loses_no_job(database: str, own_redis: EmbeddedRedis, fault: str) -> None:
    async with scene(database, own_redis.url, workers=2) as on:
        # Long ones run through the outage: their workers tell the new queue of them.
        await on.accept_many(3, 4)
        await on.busy()
        async with Load(on) as load:
            await load.served(20)
            if fault == "f9-flushed":
                await on.redis.flushall()
            else:
                if fault == "f8-killed-without-aof":
                    await _lose_aof(own_redis)
                else:
                    own_redis.kill()
                    await own_redis.wait()
                await load.refused(load.invokes)
                await own_redis.start()
            await load.served(20)
        load.only_clean_refusals()
        if fault != "f9-flushed":
            assert all(answer.status == 202 for answer in load.accepts), "Redis away must not refuse a durable job"
        on.nothing_exited()
        await on.all_ended(60)
        await on.one_outcome_each()
        attempts = await on.attempts()
        for job in on.accepted[:3]:
            assert [record["outcome"] for record in attempts[job]] == ["succeeded"], "a running attempt was lost"


async def test_f9_a_waited_for_call_that_was_lost_with_redis_is_told_so_and_one_that_runs_is_not(
    database: str, redis_url: str
) -> None:
    async with scene(database, redis_url, FUNCTION_MAX_CONCURRENT="1") as on:
        runs = asyncio.create_task(on.client.invoke("nap", 4))

        async def at(key: bytes) -> int:
            return int(await on.redis.hlen(key))

        async def one_runs() -> bool:
            return await at(b"cp:invoke:running") == 1

        async def both_are_there() -> bool:
            return (await at(b"cp:invoke:running"), await at(b"cp:invoke:messages")) == (1, 2)

        await until(one_runs, 10, on.platform.logs)
        waits = asyncio.create_task(on.client.invoke("nap", 0))
        await until(both_are_there, 10, on.platform.logs)
        await on.redis.flushall()
        async with asyncio.timeout(15):  # the function's own time-out is 90 s
            lost = await waits
            assert (lost.status, lost.json["code"], lost.json["may_have_run"]) == (503, "dependency_down", True)
            assert (await runs).status == 200
        assert (await on.client.invoke("nap", 0)).status == 200


async def test_f13_postgres_killed_hard_comes_back_and_nothing_acknowledged_is_lost(
    own_postgres: EmbeddedPostgres, redis_url: str
) -> None:
    async with scene(own_postgres.dsn, redis_url, workers=2) as on:
        async with Load(on) as load:
            await load.served(20)
            own_postgres.kill()
            await own_postgres.wait()
            await load.refused(load.accepts)
            await own_postgres.start()
            await load.served(20, within_s=10)
        load.only_clean_refusals()
        on.nothing_exited()
        await on.all_ended(30)
        await on.one_outcome_each()


async def test_f22_worker_told_to_stop_under_load_fails_nobody(database: str, redis_url: str) -> None:
    async with scene(database, redis_url, workers=2) as on:
        # Longer than the drain: these are handed back.
        await on.accept_many(2, 5)
        name = await on.busy()
        process = on.platform.processes[name]
        async with Load(on) as load:
            await load.served(10)
            on.platform.signal(name, signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 30) == 0
            del on.platform.processes[name]
            await load.served(10)
        assert {answer.status for answer in load.invokes} == {200}
        assert {answer.status for answer in load.accepts} == {202}
        jobs = await on.all_ended(30)
        assert {row["attempt"] for row in jobs.values()} == {1}
        attempts = await on.attempts()
        outcomes = {(record["outcome"], record["reason"]) for records in attempts.values() for record in records}
        assert set(outcomes) == {("succeeded", None), ("handed_back", None)}
        await on.one_outcome_each()


async def test_f22_api_told_to_stop_is_not_ready_first_and_answers_what_it_has(database: str, redis_url: str) -> None:
    async with scene(database, redis_url, LEAVE_SECONDS="3") as on:
        process = on.platform.processes["api"]
        slow = asyncio.create_task(on.client.invoke("nap", 5))
        await on.busy()
        on.platform.signal("api", signal.SIGTERM)

        async def leaving() -> bool:
            answer = await on.client.call("GET", "/api/ready")
            return answer.status == 503 and answer.json["checks"]["process"] == "stopping"

        await until(leaving, 2, on.platform.logs)
        late = await on.client.invoke("nap", 0)
        assert (late.status, late.headers["Connection"]) == (200, "close")
        answer = await slow
        assert (answer.status, answer.json["result"]) == (200, "slept")
        assert await asyncio.to_thread(process.wait, 10) == 0
        del on.platform.processes["api"]


async def test_f22_calls_that_outlast_an_api_told_to_stop_go_on_as_jobs(database: str, redis_url: str) -> None:
    async with scene(database, redis_url, LEAVE_SECONDS="0", DRAIN_SECONDS="1") as on:
        process = on.platform.processes["api"]
        accepted = await on.accept(5)
        path = f"/api/jobs/{accepted.json['job_id']}?wait=60"
        callers = [
            asyncio.create_task(wait)
            for wait in (
                on.client.invoke("nap", 5),
                on.client.invoke("nap", 5, prefer="wait=60"),
                on.client.call("GET", path),
            )
        ]
        await on.busy(3)
        on.platform.signal("api", signal.SIGTERM)
        plain, patient, look = await asyncio.gather(*callers)
        assert (plain.status, patient.status) == (202, 202)
        assert (look.status, look.json["status"]) == (200, "running")
        assert await asyncio.to_thread(process.wait, 10) == 0
        del on.platform.processes["api"]
        on.accepted += [answer.json["job_id"] for answer in (plain, patient)]
        jobs = await on.all_ended(15)
        assert {(row["status"], row["attempt"]) for row in jobs.values()} == {("succeeded", 1)}
        await on.one_outcome_each()


async def test_f10_redis_without_memory_delays_durable_jobs_and_loses_none(database: str, redis_url: str) -> None:
    async with scene(database, redis_url) as on:
        await on.redis.config_set("maxmemory", 1)
        try:
            await on.accept_many(5, 0)
            refused = await on.client.invoke("nap", 0)
            assert (refused.status, refused.json["code"]) == (503, "dependency_down")
            await asyncio.sleep(3 * float(ENV["HEARTBEAT_SECONDS"]))
        finally:
            await on.redis.config_set("maxmemory", 0)
        await on.all_ended(15)
        assert (await on.client.invoke("nap", 0)).status == 200
        on.nothing_exited()
        await on.one_outcome_each()


async def test_f11_redis_that_evicts_later_is_complained_of(database: str, redis_url: str) -> None:
    async with scene(database, redis_url) as on:
        await on.redis.config_set("maxmemory-policy", "volatile-lru")
        try:

            async def complained() -> bool:
                return "maxmemory-policy volatile-lru" in on.platform.log("scheduler").read_text()

            await until(complained, 20, on.platform.logs)
        finally:
            await on.redis.config_set("maxmemory-policy", "noeviction")
        on.nothing_exited()


async def test_f11_redis_that_evicts_is_refused_at_the_start(database: str, redis_url: str) -> None:
    redis = Redis.from_url(redis_url)
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    platform = Platform(database_url=database, redis_url=redis_url, engine="process")
    try:
        started = {name: platform.start(name) for name in ("api", "scheduler", "worker-1")}
        for name, process in started.items():
            assert await asyncio.to_thread(process.wait, 30) == 1
            assert "maxmemory-policy allkeys-lru" in platform.log(name).read_text()
            del platform.processes[name]
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")
        await redis.aclose()
        await platform.stop()
