"""Processes and servers are killed, stopped and starved under load; every accepted job ends once all the same."""

from __future__ import annotations

import asyncio
import shutil
import signal
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError
from scenes import ENV, LEASE_S, Load, Scene, own_postgres, own_redis, scene, until

from shared.embedded.postgres import EmbeddedPostgres
from shared.embedded.redis import EmbeddedRedis
from shared.queue.queue import RECORDS
from tests.conservation import assert_conserved
from tests.deployment import Platform

__all__ = ["own_postgres", "own_redis"]  # fixtures

BEGUN = "rebuilding the queue"
HANDLER = "\ndef handler(event, context): pass\n"
BIG = "\n".join(f"def f{number}(a, b):\n    return [a, b, {number}]" for number in range(12_000)) + HANDLER
"""Takes long to build."""


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


@pytest.mark.parametrize("workers", [1, 2])
async def test_f4_deploy_of_a_worker_that_slept_beyond_its_lease_ends_well(
    database: str, redis_url: str, workers: int
) -> None:
    async with scene(database, redis_url, workers=workers) as on:
        deploying = asyncio.create_task(on.client.deploy("big", {"main.py": BIG}))

        async def builder() -> str | None:
            entries = await on.redis.hvals("cp:build:running")  # type: ignore[misc]
            pids = [entry.split(b" ")[1].decode().split("-")[-2] for entry in entries]
            return next((name for name, process in on.platform.processes.items() if str(process.pid) in pids), None)

        sleeper = await until(builder, 20, on.platform.logs)
        on.platform.signal(sleeper, signal.SIGSTOP)

        async def given_up() -> bool:
            now = await builder()
            return now != sleeper and (workers == 1 or now is not None)

        await until(given_up, LEASE_S + 10, on.platform.logs)
        on.platform.signal(sleeper, signal.SIGCONT)
        answer = await deploying
        assert answer.status == 201, (answer, on.platform.logs())
        assert await _deploy_of_big(on) == ("active", "succeeded", 2, 1, True)
        assert (await on.client.invoke("big")).status == 200
        on.nothing_exited()


async def _deploy_of_big(on: Scene) -> tuple[Any, ...]:
    """Of its version and its job: status and status, attempt, lost attempts; and whether it is live."""
    (row,) = await on.rows(
        "SELECT v.status, j.status AS job, j.attempt, j.lost, a.version_id IS NOT NULL FROM functions f"
        " JOIN versions v ON v.function_id = f.id JOIN jobs j ON j.version_id = v.id AND j.kind = 'deploy'"
        " LEFT JOIN aliases a ON a.version_id = v.id WHERE f.name = 'big'"
    )
    return tuple(row)


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


async def _kill(server: EmbeddedRedis) -> None:
    server.kill()
    await server.wait()


async def _lose(on: Scene, server: EmbeddedRedis) -> int:
    """Kill Redis and throw its file away; how many records, of attempts that had ended, went with it."""
    await on.redis.client_pause(10_000, all=False)  # writes: from here on no record more comes in
    lost = int(await on.redis.xlen(RECORDS))
    await _kill(server)
    await asyncio.to_thread(shutil.rmtree, server.data)
    return lost


@pytest.mark.parametrize("fault", ["f8-killed-without-aof", "f8-killed-with-aof", "f9-flushed"])
async def test_redis_that_lost_everything_loses_no_job(database: str, own_redis: EmbeddedRedis, fault: str) -> None:
    async with scene(database, own_redis.url, workers=2) as on:
        # Long ones run through the outage: their workers tell the new queue of them.
        await on.accept_many(3, 4)
        await on.busy()
        async with Load(on) as load:
            await load.served(20)
            records_lost = 0
            if fault == "f9-flushed":
                records_lost = await on.empty_redis()
            else:
                if fault == "f8-killed-without-aof":
                    records_lost = await _lose(on, own_redis)
                else:
                    await _kill(own_redis)
                await load.refused(load.invokes)
                await own_redis.start()
            await load.served(20)
        load.only_clean_refusals()
        if fault != "f9-flushed":
            assert all(answer.status == 202 for answer in load.accepts), "Redis away must not refuse a durable job"
        on.nothing_exited()
        await on.all_ended(60)
        await on.one_outcome_each(unrecorded=records_lost)
        attempts = await on.attempts()
        for job in on.accepted[:3]:
            assert [record["outcome"] for record in attempts[job]] == ["succeeded"], "a running attempt was lost"


@pytest.mark.parametrize("fault", ["f8-killed-again", "f9-emptied", "leader-killed", "f10-no-memory"])
async def test_fault_in_the_middle_of_a_rebuild_loses_no_job(
    database: str, own_redis: EmbeddedRedis, fault: str
) -> None:
    async with scene(database, own_redis.url, workers=2) as on:
        await on.accept_many(3, 6)
        await on.accept_many(100, 0.02)
        await on.busy()
        async with Load(on) as load:
            await load.served(5)
            await _kill(own_redis)
            await own_redis.start()

            async def rebuilding() -> bool:
                try:
                    return bool(await on.redis.hget("cp:generation", "open") == b"0")  # type: ignore[misc]
                except RedisError:
                    return False

            await until(rebuilding, 20, on.platform.logs)
            records_lost = 0
            if fault == "f8-killed-again":
                await _kill(own_redis)
                await own_redis.start()
            elif fault == "f9-emptied":
                records_lost = await on.empty_redis()
            elif fault == "leader-killed":
                on.platform.kill("scheduler")
                on.platform.start("scheduler-2")
            else:
                log = on.platform.log("scheduler")
                begun = log.read_text().count(BEGUN)
                await on.redis.config_set("maxmemory", 1)

                async def begun_again() -> bool:
                    return log.read_text().count(BEGUN) > begun

                await until(begun_again, 20, on.platform.logs)
                await on.redis.config_set("maxmemory", 0)
            await load.served(10, within_s=40)
        load.only_clean_refusals()
        await on.all_ended(60)
        on.nothing_exited()
        await on.one_outcome_each(unrecorded=records_lost)
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
        async with Load(on) as load:
            await load.served(10)
            await on.platform.terminate(name)
            await load.served(10)
        assert {answer.status for answer in load.invokes} == {200}
        assert {answer.status for answer in load.accepts} == {202}
        jobs = await on.all_ended(30)
        assert {row["attempt"] for row in jobs.values()} == {1}
        attempts = await on.attempts()
        outcomes = {(record["outcome"], record["reason"]) for records in attempts.values() for record in records}
        assert set(outcomes) == {("succeeded", None), ("handed_back", None)}
        await on.one_outcome_each()


async def test_f22_deploy_on_a_worker_that_is_restarted_goes_on_elsewhere(database: str, redis_url: str) -> None:
    async with scene(database, redis_url, DRAIN_SECONDS="0.2") as on:
        deploy = await on.client.deploy("big", {"main.py": BIG}, prefer=None)
        assert deploy.status == 202

        async def builds() -> bool:
            return bool(await on.redis.hlen("cp:build:running"))

        await until(builds, 20, on.platform.logs)
        await on.platform.terminate("worker-1")
        assert (await on.client.job(deploy.json["job_id"]))["status"] == "queued", "it was not in the middle of it"
        on.platform.start("worker-2")
        job = await on.client.job(deploy.json["job_id"], wait=60)
        assert (job["status"], job["attempt"]) == ("succeeded", 1), (job, on.platform.logs())
        assert await _deploy_of_big(on) == ("active", "succeeded", 1, 0, True)
        assert (await on.client.invoke("big")).status == 200


async def test_f22_api_told_to_stop_is_not_ready_first_and_answers_what_it_has(database: str, redis_url: str) -> None:
    async with scene(database, redis_url, LEAVE_SECONDS="2", DRAIN_SECONDS="15") as on:
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
        assert (answer.status, answer.json.get("result")) == (200, "slept"), answer
        await on.platform.ends("api", within_s=10)


async def test_f22_calls_that_outlast_an_api_told_to_stop_go_on_as_jobs(database: str, redis_url: str) -> None:
    async with scene(database, redis_url, LEAVE_SECONDS="0", DRAIN_SECONDS="1") as on:
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
        await on.platform.ends("api", within_s=10)
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
        names = ("api", "scheduler", "worker-1")
        for name in names:
            platform.start(name)
        for name in names:
            await platform.ends(name, status=1)
            assert "maxmemory-policy allkeys-lru" in platform.log(name).read_text()
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")
        await redis.aclose()
        await platform.stop()
