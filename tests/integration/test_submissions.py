"""Every job comes into being in one way: each of its attributes arrives, whatever asks for it, and whatever besides."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from shared.artifacts import open_store, store_config
from shared.ids import new_id
from shared.jobs import JobKind
from shared.payload_store import PayloadStore
from shared.postgres.jobs import Jobs
from shared.postgres.pool import Pool
from shared.postgres.submissions import Submissions, insert
from shared.queue.message import JobMessage, message_of, now_ms
from shared.queue.queue import Queue
from shared.sealing import Keyring, Part, new_key
from shared.settings import load
from shared.submission.submission import Submission
from shared.submission.submitter import Submitter
from tests.seeds import new_user

ON_ITS_WAY = {"accepted_ms", "reply", "idempotency", "counted", "deadline_ms"}
"""What is no column: of the message, of another table, or of how a column is made."""
LATER = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)


@pytest.fixture
async def user(pool: Pool) -> UUID:
    return await new_user(pool)


@pytest.fixture
def keyring() -> Keyring:
    return Keyring.parse(new_key())


@pytest.fixture
async def submitter(pool: Pool, queue: Queue, keyring: Keyring, tmp_path: Path) -> AsyncIterator[Submitter]:
    store = await open_store(store_config(load({"DATA_DIR": str(tmp_path)})))
    payload_store = PayloadStore(keyring, store, inline_bytes=64)
    made = Submitter(Submissions(pool), Jobs(pool), queue, payload_store, patience_s=1)
    yield made
    await made.close()
    await store.close()


def plain(user: UUID, **asked: Any) -> Submission:
    known: dict[str, Any] = {
        "id": new_id(),
        "user_id": user,
        "function_id": new_id(),
        "version_id": new_id(),
        "accepted_ms": now_ms(),
        "payload": b'{"body":1}',
    }
    return Submission(**(known | asked))


def full(user: UUID) -> Submission:
    return plain(
        user,
        concurrency=3,
        priority=1,
        deadline_ms=round((LATER + timedelta(hours=1)).timestamp() * 1000),
        run_at=LATER,
        callback_url="https://receiver.example/",
        redrive_of=new_id(),
        chained_from=new_id(),
        chain_depth=2,
    )


async def row_of(pool: Pool, job: UUID) -> dict[str, Any]:
    return dict(await pool.fetchrow("SELECT * FROM jobs WHERE id = $1", job))


async def test_every_attribute_of_a_submission_has_a_column_and_arrives_there(pool: Pool, user: UUID) -> None:
    asked = full(user)
    unset = plain(user)._replace(id=asked.id)
    stored = set(Submission._fields) - ON_ITS_WAY
    same = {name for name in stored if getattr(asked, name) == getattr(unset, name)}
    assert same == {"id", "kind", "user_id", "payload"}
    await Submissions(pool).insert([asked])
    row = await row_of(pool, asked.id)
    assert {name: row[name] for name in stored} == {name: getattr(asked, name) for name in stored}
    assert (row["status"], row["expires_at"], row["created_at"]) == ("scheduled", asked.expires_at, asked.created_at)


async def test_jobs_that_need_different_columns_share_a_commit(pool: Pool, user: UUID) -> None:
    first, second, third = plain(user), full(user), plain(user, kind=JobKind.DELETE, version_id=None, payload=b"")
    await Submissions(pool).insert([first, second, third])
    rows = [await row_of(pool, one.id) for one in (first, second, third)]
    assert [row["status"] for row in rows] == ["queued", "scheduled", "queued"]
    assert [row["callback_url"] for row in rows] == [None, second.callback_url, None]
    assert [row["priority"] for row in rows] == [0, 1, 0]
    assert [row["payload"] for row in rows] == [first.payload, second.payload, None]
    assert [row["kind"] for row in rows] == ["invoke", "invoke", "delete"]


async def test_a_time_that_was_counted_is_counted_again_by_postgres(pool: Pool, user: UUID) -> None:
    asked = plain(user)
    asked = asked._replace(run_at=asked.created_at + timedelta(seconds=300), counted=True)
    before = await pool.fetchval("SELECT now()")
    await Submissions(pool).insert([asked])
    run_at = (await row_of(pool, asked.id))["run_at"]
    assert timedelta(seconds=300) <= run_at - before < timedelta(seconds=330)


async def test_of_jobs_that_repeat_the_same_one_the_first_stands_and_the_other_is_left_out(
    pool: Pool, user: UUID
) -> None:
    old = new_id()
    first, second, other = plain(user, redrive_of=old), plain(user, redrive_of=old), plain(user)
    assert await insert(pool, [first]) == [first]
    assert await insert(pool, [second, other]) == [other]
    assert await pool.fetchval("SELECT count(*) FROM jobs") == 2


async def test_a_job_is_the_same_message_as_it_is_submitted_and_as_it_is_read_from_postgres(
    pool: Pool, user: UUID
) -> None:
    asked = full(user)._replace(run_at=None)
    await Submissions(pool).insert([asked])
    (job,) = await Jobs(pool).still_open([asked.id])
    own_clock = {"enqueued_ms": 0}
    assert _fields(message_of(job)) | own_clock == _fields(asked.message()) | own_clock


def _fields(message: JobMessage) -> dict[str, Any]:
    return {one.name: getattr(message, one.name) for one in fields(message)}


async def test_what_is_submitted_together_is_sealed_committed_and_put_on_the_queue_but_for_what_is_due_later(
    pool: Pool, queue: Queue, submitter: Submitter, keyring: Keyring, user: UUID
) -> None:
    now, later = plain(user), plain(user, run_at=LATER)
    await submitter.submit_together([now, later])
    await submitter.close()  # waits for what is on its way to the queue
    assert await queue.present("invoke", [now.id, later.id]) == [True, False]
    for one in (now, later):
        payload = (await row_of(pool, one.id))["payload"]
        assert payload != one.payload
        assert keyring.open(payload, one.id, Part.PAYLOAD) == one.payload
