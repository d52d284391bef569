"""What an subscriber has not read is bounded, and one that missed something looks again."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

from api.subscriptions import Subscription
from shared.ids import new_id
from shared.jobs import Job, JobKind, JobStatus


def job() -> Job:
    return Job(
        id=new_id(),
        kind=JobKind.INVOKE,
        user_id=uuid4(),
        function_id=uuid4(),
        version_id=None,
        version=None,
        status=JobStatus.QUEUED,
        reason=None,
        attempt=0,
        lost=0,
        concurrency=0,
        payload=None,
        result=None,
        error=None,
        queue_ms=None,
        sandbox_ms=None,
        run_ms=None,
        total_ms=None,
        created_at=datetime.now(UTC),
        run_at=None,
        started_at=None,
        finished_at=None,
    )


async def test_a_feed_that_is_not_read_holds_a_megabyte_at_most_and_is_told_to_look() -> None:
    subscription = Subscription(job())
    subscription.look = False
    for number in range(100):
        subscription.push({"number": number}, 256 * 1024)
    assert subscription.is_set()
    assert subscription.look
    assert subscription.missed
    assert [event["number"] for event in subscription.take()] == [0, 1, 2, 3]
    assert not subscription.is_set()
    subscription.push({"number": 100}, 256 * 1024)
    assert [event["number"] for event in subscription.take()] == [100]


async def test_a_feed_that_was_read_takes_one_push_however_large() -> None:
    subscription = Subscription(job())
    for number in range(2):
        subscription.push({"number": number}, 8 * 1024 * 1024)
    assert [event["number"] for event in subscription.take()] == [0]
    assert subscription.missed
    subscription.push({"number": 2}, 8 * 1024 * 1024)
    assert [event["number"] for event in subscription.take()] == [2]
