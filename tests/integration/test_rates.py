"""Rates of invokes: what is over them is refused, and every answer says what is left."""

from __future__ import annotations

import asyncio
from uuid import uuid4

from redis.asyncio import Redis

from shared.queue.queue import Queue
from shared.queue.rates import Bucket, take
from tests.client import Answer
from tests.deployment import Platform
from tests.integration.conftest import StartApi

ECHO = "def handler(event, context):\n    return event['body']\n"
SLOW = 0.001
"""Calls a second that do not come back within a test."""


def bucket(per_s: float = SLOW, burst: int = 5) -> Bucket:
    return Bucket.of(uuid4().hex, per_s, burst)


async def test_a_burst_is_let_through_and_then_what_comes_back_with_time(queue: Queue) -> None:
    one = bucket(per_s=20, burst=3)
    answers = [await take(queue, [one], 1) for _ in range(4)]
    assert [answer.left for answer in answers] == [2, 1, 0, 0]
    assert [answer.wait_s == 0 for answer in answers] == [True, True, True, False]
    assert 0 < answers[-1].wait_s <= 0.05
    assert 0.1 < answers[-1].full_in_s <= 0.15
    await asyncio.sleep(answers[-1].wait_s + 0.01)
    assert (await take(queue, [one], 1)).wait_s == 0


async def test_callers_at_the_same_time_share_one_bucket(queue: Queue) -> None:
    one = bucket(burst=7)
    answers = await asyncio.gather(*(take(queue, [one], 1) for _ in range(50)))
    assert sum(answer.wait_s == 0 for answer in answers) == 7


async def test_nothing_is_taken_from_any_bucket_when_one_refuses(queue: Queue) -> None:
    narrow, wide = bucket(burst=1), bucket(burst=10)
    assert (await take(queue, [wide, narrow], 1)).bucket == narrow
    refused = await take(queue, [wide, narrow], 1)
    assert (refused.bucket, refused.left) == (narrow, 0)
    assert refused.wait_s > 100
    assert (await take(queue, [wide], 1)).left == 8


async def test_more_at_once_than_a_bucket_holds_is_paid_for_afterwards(queue: Queue) -> None:
    one = bucket(burst=4)
    assert (await take(queue, [one], 10)).wait_s == 0
    refused = await take(queue, [one], 1)
    assert 6 / SLOW < refused.wait_s <= 7 / SLOW


async def test_a_full_bucket_takes_no_room(queue: Queue, redis: Redis) -> None:
    one = bucket(per_s=100, burst=1)
    await take(queue, [one], 1)
    async with asyncio.timeout(5):
        while await redis.exists(f"cp:rate:{one.name}"):
            await asyncio.sleep(0.01)


def limits(answer: Answer) -> tuple[str, str]:
    return answer.headers["RateLimit-Limit"], answer.headers["RateLimit-Remaining"]


async def test_a_functions_rate_is_kept_whatever_way_it_is_called(shared_platform: Platform) -> None:
    async with shared_platform.client() as client:
        await client.register()
        settings = {"rate_per_s": SLOW, "rate_burst": 4}
        assert (await client.deploy("slow", {"main.py": ECHO}, settings=settings)).status == 201
        assert (await client.deploy("free", {"main.py": ECHO})).status == 201
        assert limits(await client.invoke("slow", 1)) == ("4", "3")
        assert limits(await client.invoke("slow", 1, prefer="respond-async")) == ("4", "2")
        items = {"items": [{"body": 1}, {"body": 2}]}
        assert limits(await client.call("POST", "/api/functions/slow/invoke-batch", json=items)) == ("4", "0")
        for refused in (
            await client.invoke("slow", 1),
            await client.call("POST", "/api/functions/slow/invoke-batch", json=items),
        ):
            assert (refused.status, refused.json["code"]) == (429, "rate_limited")
            assert int(refused.headers["Retry-After"]) > 100
            assert limits(refused) == ("4", "0")
        free = await client.invoke("free", 1)
        assert free.status == 200
        assert "RateLimit-Limit" not in free.headers


async def test_a_users_rate_holds_over_all_functions_and_apis(platform: Platform, start_api: StartApi) -> None:
    async with platform.client() as client, platform.client() as other:
        for each in (client, other):
            await each.register()
            for name in ("one", "two"):
                assert (await each.deploy(name, {"main.py": ECHO})).status == 201
        rate = {"RATE_PER_SECOND_PER_USER": str(SLOW), "RATE_BURST_PER_USER": "3"}
        env = rate | {"JWT_SECRET": platform.env["JWT_SECRET"]}
        urls = [(await start_api(env)).url for _ in range(2)]
        answers = []
        for number in range(4):
            client.url = urls[number % 2]
            answers.append(await client.invoke(("one", "two")[number % 2], 1, prefer="respond-async"))
        assert [answer.status for answer in answers] == [202, 202, 202, 429]
        assert [answer.headers["RateLimit-Remaining"] for answer in answers] == ["2", "1", "0", "0"]
        other.url = urls[0]
        assert (await other.invoke("one", 1, prefer="respond-async")).status == 202
