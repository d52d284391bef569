"""Callbacks: written with the end of a job, sent until they are delivered or dead, to public addresses only."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import dns.message
import dns.rdatatype
import dns.rrset
import orjson
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from scheduler.callbacks import Callbacks
from shared.callbacks.url import checked_url
from shared.errors import Misconfigured
from shared.ids import new_id
from shared.jobs import JobStatus
from shared.payload_store import REFERENCE
from shared.postgres.deliveries import Deliveries, Delivery, DeliveryStatus
from shared.postgres.jobs import HIGHEST_ID, Jobs
from shared.postgres.pool import Pool
from shared.queue.message import JobMessage
from shared.sealing import Keyring, Part, new_key
from shared.settings import Settings, load
from tests.receiver import Receiver
from tests.seeds import accept, accept_once, message, new_user, record

LOOPBACK = {"CALLBACK_ALLOW": "127.0.0.0/8", "CALLBACK_RETRY_SECONDS": "0.001", "CALLBACK_RETRY_MAX_SECONDS": "0.001"}


@pytest.fixture
def jobs(pool: Pool) -> Jobs:
    return Jobs(pool)


@pytest.fixture
def deliveries(pool: Pool) -> Deliveries:
    return Deliveries(pool)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver


@pytest.fixture
async def user(pool: Pool) -> UUID:
    return await new_user(pool)


async def ended_job(pool: Pool, user: UUID, url: str | None, **fields: Any) -> JobMessage:
    """A durable job that ended just now."""
    jobs = Jobs(pool)
    job = message(user)
    await accept(pool, [job], callback_url=url)
    await jobs.settle([record(job, **fields)])
    return job


def settings(**changes: str) -> Settings:
    return load(LOOPBACK | changes)


async def deployed(pool: Pool, user: UUID, name: str, *, live: bool = True, **wanted: Any) -> tuple[UUID, UUID]:
    """A function with one version of these settings, without anything that could run."""
    function, version = uuid4(), uuid4()
    await pool.execute("INSERT INTO functions (id, user_id, name) VALUES ($1, $2, $3)", function, user, name)
    known = {"runtime": "python", "handler": "main:handler", "timeout_s": 5, "memory_mb": 128, "cpus": 1}
    await pool.execute(
        "INSERT INTO versions (id, function_id, number, artifact_sha256, artifact_bytes, settings, status)"
        " VALUES ($1, $2, 1, 'x', 1, $3, 'active')",
        version,
        function,
        orjson.dumps(known | wanted).decode(),
    )
    if live:
        await pool.execute(
            "INSERT INTO aliases (function_id, name, version_id) VALUES ($1, 'live', $2)", function, version
        )
    return function, version


async def only(deliveries: Deliveries, user: UUID) -> Delivery:
    (found,) = await deliveries.list(user, before=HIGHEST_ID, limit=10)
    return found


async def test_callback_is_written_once_with_the_end_and_tells_it(
    pool: Pool, jobs: Jobs, deliveries: Deliveries, receiver: Receiver, user: UUID
) -> None:
    job = message(user)
    await accept(pool, [job], callback_url=receiver.url)
    await jobs.settle([record(job, status=JobStatus.QUEUED, outcome="lost", epoch="1-1")])
    assert await deliveries.list(user, before=HIGHEST_ID, limit=10) == []
    for _ in range(3):  # the stream is read at least once
        await jobs.settle([record(job, epoch="1-2", result=b'{"a":[1]}')])
    found = await only(deliveries, user)
    assert (found.status, found.attempts, found.event) == (DeliveryStatus.PENDING, 0, "job.succeeded")

    async with Callbacks(jobs, deliveries, settings()) as sender:
        assert await sender.run_once() == Counter({DeliveryStatus.DELIVERED: 1})
        assert await sender.run_once() == Counter()
    (got,) = receiver.received
    secret = await deliveries.secret(user)
    assert got.id == str(found.id)
    assert got.is_signed_with(secret.secret)
    assert got.headers["content-type"] == "application/json"
    told = got.json
    assert told["type"] == "job.succeeded"
    assert told["data"]["id"] == str(job.id)
    assert (told["data"]["result"], told["data"]["result_omitted"]) == ({"a": [1]}, False)
    after = await only(deliveries, user)
    assert (after.status, after.last_status, after.attempts) == (DeliveryStatus.DELIVERED, 204, 1)
    assert after.delivered_at is not None


async def test_every_way_to_end_is_told(pool: Pool, jobs: Jobs, deliveries: Deliveries, user: UUID) -> None:
    url = "https://receiver.example/"
    failed = await ended_job(pool, user, url, status=JobStatus.FAILED)
    cancelled, expired, scheduled = (message(user) for _ in range(3))
    await accept(pool, [cancelled, expired], callback_url=url)
    await accept(pool, [scheduled], run_at=datetime.now(UTC), callback_url=url)
    assert await jobs.cancel(cancelled.id)
    assert not await jobs.cancel(cancelled.id)
    assert await jobs.expire(expired.id)
    assert await jobs.cancel(scheduled.id)
    once = message(user)
    await accept_once(pool, once, key="k", fingerprint=b"f", keep_s=60, callback_url=url)
    await jobs.settle([record(once)])
    found = await deliveries.list(user, before=HIGHEST_ID, limit=10)
    assert {each.job_id: each.event for each in found} == {
        failed.id: "job.failed",
        cancelled.id: "job.cancelled",
        expired.id: "job.failed",
        scheduled.id: "job.cancelled",
        once.id: "job.succeeded",
    }
    assert len(found) == 5


async def test_url_of_a_function_holds_for_calls_that_are_waited_for_and_a_jobs_own_goes_before_it(
    pool: Pool, jobs: Jobs, deliveries: Deliveries, user: UUID
) -> None:
    function, version = await deployed(pool, user, "f", callback_url="https://function.example/")
    waited = message(user, function=function, version_id=version)  # meets Postgres with its end
    own = message(user, function=function, version_id=version)
    await accept(pool, [own], callback_url="https://job.example/")
    await jobs.settle([record(waited), record(own)])
    found = await deliveries.list(user, before=HIGHEST_ID, limit=10)
    assert {each.job_id: each.url for each in found} == {
        waited.id: "https://function.example/",
        own.id: "https://job.example/",
    }
    quiet = await ended_job(pool, user, None)
    assert await deliveries.list(user, before=HIGHEST_ID, limit=10, job=quiet.id) == []


@pytest.mark.parametrize(
    "target",
    [
        "/hook?sig=a%2Bb%2Fc%3D%3D&t=1%3A2",
        "/a%2Fb/%7Euser/%41?x=%20+&y=%C3%A4&z=%zz",
        "/hook?a=b=c&&a=;/?:@!$'()*,~",
        "/a/../b/./c//d?",
        "?sig=%2F",
        '/{id}/<x>|^`?"q"',
    ],
)
async def test_callback_goes_to_its_url_as_it_was_given_to_the_byte(
    pool: Pool, jobs: Jobs, deliveries: Deliveries, receiver: Receiver, user: UUID, target: str
) -> None:
    await ended_job(pool, user, f"http://127.0.0.1:{receiver.port}{target}")
    async with Callbacks(jobs, deliveries, settings()) as sender:
        assert await sender.run_once() == Counter({DeliveryStatus.DELIVERED: 1})
    (got,) = receiver.received
    assert got.target.removeprefix("/" if target.startswith("?") else "") == target.removesuffix("?")


async def test_failing_receiver_is_tried_again_with_the_same_id_and_body_until_it_takes_it(
    pool: Pool, jobs: Jobs, deliveries: Deliveries, receiver: Receiver, user: UUID
) -> None:
    await ended_job(pool, user, receiver.url)
    receiver.status = 500
    async with Callbacks(jobs, deliveries, settings()) as sender:
        while len(receiver.received) < 3:
            await sender.run_once()
        pending = await only(deliveries, user)
        assert (pending.status, pending.last_status) == (DeliveryStatus.PENDING, 500)
        receiver.status = 200
        while not (await sender.run_once())[DeliveryStatus.DELIVERED]:
            pass
    assert len({got.id for got in receiver.received}) == 1
    assert len({got.body for got in receiver.received}) == 1
    secret = (await deliveries.secret(user)).secret
    assert all(got.is_signed_with(secret) for got in receiver.received)
    assert (await only(deliveries, user)).attempts == len(receiver.received)


async def test_callback_is_dead_after_its_attempts_or_at_410_and_can_be_sent_again(
    pool: Pool, jobs: Jobs, deliveries: Deliveries, receiver: Receiver, user: UUID
) -> None:
    await ended_job(pool, user, receiver.url)
    receiver.status = 503
    async with Callbacks(jobs, deliveries, settings(CALLBACK_MAX_ATTEMPTS="3")) as sender:
        while not (await sender.run_once())[DeliveryStatus.DEAD]:
            pass
        assert len(receiver.received) == 3
        assert await sender.run_once() == Counter()
        dead = await only(deliveries, user)
        assert (dead.status, dead.attempts, dead.last_error) == (DeliveryStatus.DEAD, 3, "It was answered with 503.")
        receiver.status = 410
        again = await deliveries.redeliver(user, dead.id)
        assert again is not None
        assert again.id == dead.id
        assert await sender.run_once() == Counter({DeliveryStatus.DEAD: 1})
        receiver.status = 200
        assert await deliveries.redeliver(uuid4(), dead.id) is None
        await deliveries.redeliver(user, dead.id)
        assert await sender.run_once() == Counter({DeliveryStatus.DELIVERED: 1})
    assert {got.id for got in receiver.received} == {str(dead.id)}


async def test_f25_attempts_reach_over_about_a_day_and_soon_past_ten_minutes(
    pool: Pool, jobs: Jobs, deliveries: Deliveries, receiver: Receiver, user: UUID
) -> None:
    await ended_job(pool, user, receiver.url)
    receiver.status = 500
    waits: list[float] = []
    async with Callbacks(jobs, deliveries, load({"CALLBACK_ALLOW": "127.0.0.1"})) as sender:
        while (await sender.run_once())[DeliveryStatus.PENDING]:
            found = await only(deliveries, user)
            assert found.attempted_at is not None
            waits.append((found.next_at - found.attempted_at).total_seconds())
            await pool.execute("UPDATE deliveries SET next_at = now()")
    assert len(waits) == 13
    assert waits[0] < 7
    assert 16 * 3600 < sum(waits) < 32 * 3600
    assert sum(waits[:6]) > 600
    # The ninth is the first that is cut to the longest, half of which may be less than the eighth.
    assert all(later > earlier for earlier, later in pairwise(waits[:8]))
    assert (await only(deliveries, user)).status is DeliveryStatus.DEAD


async def test_two_senders_never_take_the_same_callback_and_one_that_died_leaves_it_to_the_next(
    pool: Pool, deliveries: Deliveries, user: UUID
) -> None:
    for _ in range(6):
        await ended_job(pool, user, "https://receiver.example/")
    claims = await asyncio.gather(*(deliveries.claim(most=4, most_per_user=8, hold_s=30, sending={}) for _ in range(4)))
    taken = [each.id for claim in claims for each in claim]
    assert len(taken) == len(set(taken))
    rest = await deliveries.claim(most=10, most_per_user=10, hold_s=0, sending={})
    assert len(taken) + len(rest) == 6
    await pool.execute("UPDATE deliveries SET next_at = now()")  # the time of the claims is over
    again = await deliveries.claim(most=10, most_per_user=10, hold_s=30, sending={})
    assert len(again) == 6
    late = next(each for claim in claims for each in claim)
    assert not await deliveries.end(late, DeliveryStatus.DEAD)  # the attempt of one that came back too late
    assert await deliveries.end(again[0], DeliveryStatus.DELIVERED)


async def test_user_with_many_callbacks_leaves_room_for_others(pool: Pool, deliveries: Deliveries, user: UUID) -> None:
    other = await new_user(pool)
    for _ in range(20):
        await ended_job(pool, user, "https://receiver.example/")
    await ended_job(pool, other, "https://receiver.example/")
    first = await deliveries.claim(most=8, most_per_user=4, hold_s=30, sending={})
    assert Counter(each.user_id for each in first) == Counter({user: 4, other: 1})
    assert await deliveries.claim(most=8, most_per_user=4, hold_s=30, sending={user: 4, other: 1}) == []


async def test_large_result_is_left_out_and_said_to_be(
    pool: Pool, jobs: Jobs, deliveries: Deliveries, receiver: Receiver, user: UUID
) -> None:
    await ended_job(pool, user, receiver.url, result=b'"' + b"x" * 2000 + b'"')
    async with Callbacks(jobs, deliveries, settings(CALLBACK_MAX_RESULT_BYTES="1000")) as sender:
        await sender.run_once()
    data = receiver.received[0].json["data"]
    assert (data["result"], data["result_omitted"]) == (None, True)


async def test_sealed_result_is_told_in_the_clear_and_never_as_it_stands(
    pool: Pool, deliveries: Deliveries, receiver: Receiver, user: UUID
) -> None:
    keyring = Keyring.parse(new_key())
    for kept in (b'{"n":1}', REFERENCE + b"\x00result"):
        job = message(user)
        await accept(pool, [job], callback_url=receiver.url)
        await Jobs(pool).settle([record(job, result=keyring.seal(kept, job.id, Part.RESULT))])
        async with Callbacks(Jobs(pool, keyring=keyring), deliveries, settings()) as sender:
            await sender.run_once()
    await deliveries.redeliver(user, (await deliveries.list(user, before=HIGHEST_ID, limit=2))[1].id)
    async with Callbacks(Jobs(pool, keyring=Keyring()), deliveries, settings()) as sender:
        await sender.run_once()
    told = [got.json["data"] for got in receiver.received]
    assert [(data["result"], data["result_omitted"], data["missing"]) for data in told] == [
        ({"n": 1}, False, None),
        (None, True, "large"),
        (None, True, "unreadable"),
    ]


async def test_callback_whose_secret_cannot_be_read_is_dead_after_its_tries(
    pool: Pool, jobs: Jobs, receiver: Receiver, user: UUID
) -> None:
    await Deliveries(pool, Keyring.parse(new_key())).secret(user)  # sealed with a key that is gone afterwards
    await ended_job(pool, user, receiver.url)
    deliveries = Deliveries(pool, Keyring.parse(new_key()))
    async with asyncio.timeout(20), Callbacks(jobs, deliveries, settings(CALLBACK_MAX_ATTEMPTS="3")) as sender:
        while (found := await only(deliveries, user)).status is DeliveryStatus.PENDING:
            await sender.run_once()
    assert (found.status, found.attempts, receiver.received) == (DeliveryStatus.DEAD, 3, [])
    assert found.last_error == (
        "Its signing secret is sealed with a key that the server does not have; make another secret."
    )
    await deliveries.rotate_secret(user, overlap_s=0)
    await deliveries.redeliver(user, found.id)
    async with Callbacks(jobs, deliveries, settings()) as sender:
        assert await sender.run_once() == Counter({DeliveryStatus.DELIVERED: 1})


async def test_s5_rotated_secret_signs_along_until_its_time_is_over(
    pool: Pool, jobs: Jobs, deliveries: Deliveries, receiver: Receiver, user: UUID
) -> None:
    first = (await deliveries.secret(user)).secret
    second = (await deliveries.rotate_secret(user, overlap_s=60)).secret
    assert first != second
    await ended_job(pool, user, receiver.url)
    async with Callbacks(jobs, deliveries, settings()) as sender:
        await sender.run_once()
    (got,) = receiver.received
    assert got.is_signed_with(first)
    assert got.is_signed_with(second)
    third = await deliveries.rotate_secret(user, overlap_s=0)
    assert third.signing == (third.secret,)


async def outcome(pool: Pool, url: str, resolver: AbstractResolver | None = None, **changes: str) -> Delivery:
    """What became of one attempt to call ``url``."""
    user = await new_user(pool)
    await ended_job(pool, user, url)
    deliveries = Deliveries(pool)
    async with Callbacks(Jobs(pool), deliveries, load(changes), resolver=resolver) as sender:
        await sender.run_once()
    return await only(deliveries, user)


async def test_s1_literal_address_is_judged_again_when_it_is_connected_to(pool: Pool, receiver: Receiver) -> None:
    for host in ("127.0.0.1", "[::ffff:127.0.0.1]", "[::1]", "0.0.0.0", "127.1", "localhost"):
        found = await outcome(pool, f"http://{host}:{receiver.port}/")
        assert found.status is DeliveryStatus.PENDING
        assert found.last_error is not None, host
        assert found.last_status is None
    assert receiver.received == []


async def test_s1_name_that_leads_inward_is_not_connected_to(pool: Pool, receiver: Receiver) -> None:
    # Whatever hosts file or DNS says of it: the machine's own name is its own address.
    class Inward(AbstractResolver):
        async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
            return [_answer(host, "127.0.0.1", port), _answer(host, "::1", port)]

        async def close(self) -> None:
            pass

    found = await outcome(pool, f"http://receiver.example:{receiver.port}/", Inward())
    assert found.last_error == "The address of its host is not a public one."
    assert receiver.received == []


def _answer(host: str, address: str, port: int) -> ResolveResult:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=socket.AI_NUMERICHOST)


class FlipFlop(asyncio.DatagramProtocol):
    """A DNS server that answers with a public address and a private one in turn."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.answered: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data)
        response = dns.message.make_response(query)
        address = self.addresses[len(self.answered) % len(self.addresses)]
        self.answered.append(address)
        response.answer.append(dns.rrset.from_text(query.question[0].name, 0, "IN", "A", address))
        self.transport.sendto(response.to_wire(), addr)


class Asking(AbstractResolver):
    """Asks one DNS server, every time anew."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
            asked.setblocking(False)
            await loop.sock_connect(asked, ("127.0.0.1", self._port))
            await loop.sock_sendall(asked, dns.message.make_query(host, dns.rdatatype.A).to_wire())
            response = dns.message.from_wire(await loop.sock_recv(asked, 4096))
        return [_answer(host, record.address, port) for rrset in response.answer for record in rrset]

    async def close(self) -> None:
        pass


async def test_s2_rebinding_name_is_connected_to_at_vetted_addresses_only(pool: Pool) -> None:
    """The name leads to one receiver that may be called and to one that may not, turn and turn about."""
    async with Receiver() as inward:
        permitted = Receiver(port=inward.port)
        flip = FlipFlop("127.0.0.9", "127.0.0.1")
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: flip, ("127.0.0.1", 0))
        second = web.AppRunner(_application(permitted), shutdown_timeout=0.1)
        await second.setup()
        await web.TCPSite(second, "127.0.0.9", inward.port).start()
        try:
            user = await new_user(pool)
            await ended_job(pool, user, f"http://rebinding.example:{inward.port}/")
            port = transport.get_extra_info("sockname")[1]
            wanted = settings(CALLBACK_ALLOW="127.0.0.9/32")
            deliveries = Deliveries(pool)
            async with Callbacks(Jobs(pool), deliveries, wanted, resolver=Asking(port)) as sender:
                for turn in range(50):
                    await sender.run_once()
                    found = await only(deliveries, user)
                    if turn % 2:
                        assert found.last_error == "The address of its host is not a public one."
                    else:
                        assert found.status is DeliveryStatus.DELIVERED
                    await deliveries.redeliver(user, found.id)
            assert inward.received == []
            assert len(permitted.received) == 25
            assert len(flip.answered) == 50
        finally:
            transport.close()
            await second.cleanup()


def _application(receiver: Receiver) -> web.Application:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", receiver._take)
    return app


async def test_s3_redirect_is_a_failure_and_is_not_followed(pool: Pool, receiver: Receiver) -> None:
    for status in (301, 302, 303, 307, 308):

        async def away(request: web.Request, status: int = status) -> web.StreamResponse:
            return web.Response(status=status, headers={"Location": "/elsewhere"})

        receiver.reply = away
        before = len(receiver.received)
        found = await outcome(pool, receiver.url, CALLBACK_ALLOW="127.0.0.0/8")
        assert (found.status, found.last_status) == (DeliveryStatus.PENDING, status)
        assert len(receiver.received) == before + 1


async def test_s4_slow_answer_is_given_up_in_time(pool: Pool, receiver: Receiver) -> None:
    released = asyncio.Event()

    async def never(request: web.Request) -> web.StreamResponse:
        await released.wait()
        return web.Response()

    async def dripping(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while not released.is_set():
            try:
                await response.write(b"x")
            except ConnectionError:
                break
            await asyncio.sleep(0.05)
        return response

    loop = asyncio.get_running_loop()
    for reply in (never, dripping):
        receiver.reply = reply
        before = loop.time()
        found = await outcome(pool, receiver.url, CALLBACK_ALLOW="127.0.0.0/8", CALLBACK_TIMEOUT_SECONDS="0.5")
        assert loop.time() - before < 10
        assert found.last_error == "There was no whole answer within 0.5 s."
    released.set()


async def test_s4_no_more_of_a_huge_answer_is_read_than_the_limit(pool: Pool, receiver: Receiver) -> None:
    sent = 0
    cut = asyncio.Event()

    async def flood(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 65536)
                sent += 65536
        except (ConnectionError, asyncio.CancelledError):
            cut.set()
            raise

    receiver.reply = flood
    found = await outcome(pool, receiver.url, CALLBACK_ALLOW="127.0.0.0/8")
    assert found.status is DeliveryStatus.DELIVERED  # it said so with its status
    async with asyncio.timeout(5):
        await cut.wait()
    assert sent < 16 * 2**20  # what the kernel's buffers took of it
    with pytest.raises(Misconfigured, match="less than or equal to 15"):
        load({"CALLBACK_TIMEOUT_SECONDS": "16"})


async def test_name_without_an_address_and_a_port_where_nobody_listens_are_said_so(pool: Pool) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    found = await outcome(pool, f"http://127.0.0.1:{port}/", CALLBACK_ALLOW="127.0.0.0/8")
    assert found.last_error == "Nothing at its address accepted the connection."
    checked_url("https://nowhere.invalid/", ())
    found = await outcome(pool, "http://nowhere.invalid/")
    assert found.last_error == "Its host has no address."


async def test_retention_of_a_job_takes_its_deliveries_along(pool: Pool, deliveries: Deliveries, user: UUID) -> None:
    job = await ended_job(pool, user, "https://receiver.example/")
    await pool.execute("DELETE FROM jobs WHERE id = $1", job.id)
    assert await deliveries.list(user, before=HIGHEST_ID, limit=10) == []
    assert new_id() > job.id
