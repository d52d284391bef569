"""The bare connection to a real Redis: order, loss, silence, errors."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import redis.exceptions
from redis.asyncio import Redis

from shared.embedded.redis import EmbeddedRedis
from shared.loop import Loops
from shared.queue.connection import connect
from shared.queue.link import Link, Wire
from shared.queue.push import Push


@pytest.fixture
async def link(redis: Redis) -> AsyncIterator[Link]:
    opened = Link(redis.connection_pool, timeout_s=5)
    yield opened
    await opened.close()


@pytest.fixture
async def own_redis(tmp_path: Path) -> AsyncIterator[EmbeddedRedis]:
    async with EmbeddedRedis(tmp_path / "redis") as server:
        yield server


async def test_concurrent_calls_share_one_connection_and_get_each_its_own_answer(link: Link, redis: Redis) -> None:
    before = (await redis.info("stats"))["total_connections_received"]
    answers = await asyncio.gather(*(link.call("ECHO", str(number)) for number in range(500)))
    assert answers == [str(number).encode() for number in range(500)]
    assert (await redis.info("stats"))["total_connections_received"] == before + 1


async def test_large_values_and_nested_answers_arrive_whole(link: Link) -> None:
    value = os.urandom(3_000_000)
    assert await link.call("SET", "large", value) == b"OK"
    assert await link.call("EVAL", "return {1, {redis.call('GET', 'large'), 'x'}, false}", 0) == [
        1,
        [value, b"x"],
        None,
    ]


async def test_errors_of_redis_are_raised_where_they_belong_and_nothing_shifts(link: Link) -> None:
    wrong, unknown, right = await asyncio.gather(
        link.call("GET"), link.call("EVALSHA", "0" * 40, 0), link.call("ECHO", "fine"), return_exceptions=True
    )
    assert isinstance(wrong, redis.exceptions.ResponseError)
    assert isinstance(unknown, redis.exceptions.NoScriptError)
    assert right == b"fine"


async def test_a_caller_that_goes_away_does_not_shift_the_answers_of_others(link: Link) -> None:
    leaving = asyncio.create_task(link.call("ECHO", "mine"))
    await asyncio.sleep(0)
    staying = asyncio.create_task(link.call("ECHO", "yours"))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying == b"yours"


async def test_calls_in_flight_fail_when_redis_dies_and_later_ones_connect_again(own_redis: EmbeddedRedis) -> None:
    async with connect(own_redis.url, timeout_s=5) as client:
        link = Link(client.connection_pool, timeout_s=5)
        waiting = asyncio.create_task(link.call("BLPOP", "never", 0))
        async with asyncio.timeout(5):
            while not (await client.info("clients"))["blocked_clients"]:
                await asyncio.sleep(0.01)
        await own_redis.stop()
        with pytest.raises(redis.exceptions.ConnectionError):
            await waiting
        with pytest.raises((redis.exceptions.ConnectionError, OSError)):
            await link.call("PING")
        await own_redis.start()
        assert await link.call("PING") == b"PONG"
        await link.close()


async def test_f12_silent_redis_fails_calls_in_time_and_its_late_answers_go_to_nobody(own_redis: EmbeddedRedis) -> None:
    async with connect(own_redis.url, timeout_s=5) as client:
        link = Link(client.connection_pool, timeout_s=0.3)
        pid = int((await client.info("server"))["process_id"])
        await link.call("PING")
        psutil.Process(pid).send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(redis.exceptions.TimeoutError):
                async with asyncio.timeout(5):
                    await link.call("ECHO", "late")
        finally:
            psutil.Process(pid).send_signal(signal.SIGCONT)
        assert await link.call("ECHO", "fresh") == b"fresh"
        await link.close()


async def test_a_connection_that_is_lost_before_its_first_call_has_a_turn_fails_the_call(link: Link) -> None:
    calling = asyncio.create_task(link.call("PING"))
    while link._opening is None:
        await asyncio.sleep(0)

    def lose(opened: asyncio.Task[Wire]) -> None:
        opened.result().close()
        link._lost(opened.result(), redis.exceptions.ConnectionError("lost"))

    link._opening.add_done_callback(lose)
    async with asyncio.timeout(5):
        with pytest.raises(redis.exceptions.ConnectionError):
            await calling
        assert await link.call("ECHO", "fine") == b"fine"


async def test_a_closed_link_leaves_no_connection_behind(redis: Redis) -> None:
    link = Link(redis.connection_pool, timeout_s=5)
    await link.call("PING")
    connected = (await redis.info("clients"))["connected_clients"]
    await link.close()
    await link.close()
    async with asyncio.timeout(5):
        while (await redis.info("clients"))["connected_clients"] != connected - 1:
            await asyncio.sleep(0.01)


async def test_f12_push_notices_a_connection_that_went_silent(
    own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.queue.push.PROBE_S", 0.2)
    lost, standing, heard = asyncio.Event(), asyncio.Event(), asyncio.Event()
    async with connect(own_redis.url, timeout_s=2) as client:
        push = Push(
            client.connection_pool,
            {"news": lambda _: heard.set()},
            on_standing=standing.set,
            on_loss=lost.set,
        )
        loops = Loops()
        loops.start(push.loop)
        async with asyncio.timeout(10):
            await standing.wait()
            pid = int((await client.info("server"))["process_id"])
            standing.clear()
            psutil.Process(pid).send_signal(signal.SIGSTOP)
            try:
                await lost.wait()
            finally:
                psutil.Process(pid).send_signal(signal.SIGCONT)
            await standing.wait()
            await client.publish("news", "here")
            await heard.wait()
        await loops.stop()


async def test_a_message_that_cannot_be_read_costs_neither_the_connection_nor_the_next_message(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    lost, standing, heard = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def read(message: bytes) -> None:
        message.decode("ascii")
        heard.set()

    push = Push(redis.connection_pool, {"news": read}, on_standing=standing.set, on_loss=lost.set)
    loops = Loops()
    loops.start(push.loop)
    async with asyncio.timeout(10):
        await standing.wait()
        await redis.publish("news", b"\xff not ours")
        await redis.publish("news", b"ours")
        await heard.wait()
    assert not lost.is_set()
    assert "a push cannot be read" in caplog.messages
    await loops.stop()
