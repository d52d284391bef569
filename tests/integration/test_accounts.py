"""Accounts under attack: forged and stale tokens, replay, guessing, enumeration, races."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import asyncpg
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.client import Answer, Client
from tests.deployment import Platform
from tests.integration.conftest import StartApi

PASSWORD = "correct horse battery"
NO_LIMIT = {"LOGIN_ATTEMPTS_PER_MINUTE": "100000"}
HEADER = {"alg": "HS256", "typ": "JWT"}


@pytest.fixture
async def client(shared_platform: Platform) -> AsyncIterator[Client]:
    async with shared_platform.client() as client:
        yield await client.register()


@pytest.fixture
def key(shared_platform: Platform) -> bytes:
    return shared_platform.env["JWT_SECRET"].encode()


def claims_of(token: str | None) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token or "", options={"verify_signature": False})
    return claims


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(header: dict[str, Any], claims: Any, key: bytes, digest: Any = hashlib.sha256) -> str:
    """A token whose signature is right for ``key``, whatever the header says."""
    text = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}"
    return f"{text}.{b64(hmac.new(key, text.encode(), digest).digest())}"


async def me(client: Client, token: str) -> Answer:
    return await client.call("GET", "/api/auth/me", token=token)


async def log_in(client: Client, email: str, password: str = PASSWORD) -> Answer:
    return await client.call("POST", "/api/auth/login", json={"email": email, "password": password}, token="")


async def refused_within(client: Client, token: str, limit_s: float) -> None:
    """The token is refused, and stays refused, ``limit_s`` from now at the latest."""
    deadline = time.monotonic() + limit_s
    asked = 0.0
    while (answer := await me(client, token)).status == 200:
        # Its answer may have taken a while: what counts is when the call was made.
        assert asked < deadline, "still accepted"
        asked = time.monotonic()
    assert answer.status == 401
    assert (await me(client, token)).status == 401


def forgeries(claims: dict[str, Any], key: bytes) -> dict[str, str]:
    rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    own = b"a key of the attacker's, 32 bytes"
    jwk = {"kty": "oct", "k": b64(own)}
    payload = b64(json.dumps(claims).encode())
    unsigned = {name: f"{b64(json.dumps({'alg': name}).encode())}.{payload}." for name in ("none", "None", "nOnE", "")}
    return {
        **{f"alg {name!r}": token for name, token in unsigned.items()},
        "none with the signature of a true one": signed({"alg": "none"}, claims, key),
        "no alg": signed({"typ": "JWT"}, claims, key),
        "RS256": jwt.encode(claims, rsa_key, algorithm="RS256"),
        "RS256, but HMAC": signed({"alg": "RS256"}, claims, key),
        "HS512 with the key": signed({"alg": "HS512"}, claims, key, hashlib.sha512),
        "another key": signed(HEADER, claims, own),
        "empty key": signed(HEADER, claims, b""),
        "jwk": signed({**HEADER, "jwk": jwk}, claims, own),
        "jku": signed({**HEADER, "jku": "http://127.0.0.1:1/keys"}, claims, own),
        "x5u": signed({**HEADER, "x5u": "http://127.0.0.1:1/cert"}, claims, own),
        "kid traversal": signed({**HEADER, "kid": "../../../../dev/null"}, claims, b""),
        "kid SQL": signed({**HEADER, "kid": "x' UNION SELECT 'k"}, claims, b"k"),
        "crit": signed({**HEADER, "crit": ["mfa"], "mfa": True}, claims, key),
        "crit of a standard claim": signed({**HEADER, "crit": ["exp"]}, claims, key),
        "b64 false": signed({**HEADER, "b64": False, "crit": ["b64"]}, claims, key),
        "claims are a list": signed(HEADER, [claims], key),
        "claims are null": signed(HEADER, None, key),
        "two parts": signed(HEADER, claims, key).rpartition(".")[0],
        "five parts": "a.b.c.d.e",
        "dots": "..",
        "not base64": "!.!.!",
        "signature cut": signed(HEADER, claims, key)[:-4],
        "payload changed": signed(HEADER, claims, key).replace(payload[:8], b64(b'{"a":1')[:8], 1),
    }


async def test_a1_forged_tokens_are_refused(client: Client, key: bytes) -> None:
    claims = claims_of(client.token)
    assert (await me(client, signed(HEADER, claims, key))).status == 200, "the forger's tools are blunt"
    for name, token in forgeries(claims, key).items():
        answer = await me(client, token)
        assert answer.status == 401, name
        assert answer.json["code"] in ("invalid_token", "unauthenticated"), name
        assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_a1_malformed_authorization_headers_are_refused(client: Client) -> None:
    for header in (
        "Bearer",
        "Bearer ",
        f"Basic {client.token}",
        f"{client.token}",
        "Bearer  x",
        "Bearer ä",
        "Bearer 🔑",
    ):
        answer = await client.call("GET", "/api/auth/me", headers={"Authorization": header})
        assert answer.status == 401, header
    assert (await client.call("GET", "/api/auth/me", token="")).status == 401


@pytest.mark.parametrize("missing", ["exp", "iat", "nbf", "sub", "sid", "jti", "aud", "iss"])
async def test_a2_token_without_a_claim_is_refused(client: Client, key: bytes, missing: str) -> None:
    claims = claims_of(client.token)
    del claims[missing]
    assert (await me(client, signed(HEADER, claims, key))).status == 401


@pytest.mark.parametrize(
    "changed",
    [
        {"aud": "another-api"},
        {"aud": []},
        {"iss": "somebody-else"},
        {"iss": ["containerpub"]},
        {"sid": "not-a-uuid"},
        {"sid": 7},
        {"sid": None},
        {"sub": 7},
        {"sub": str(UUID(int=7))},
        {"exp": "tomorrow"},
        {"exp": None},
        {"nbf": "now"},
    ],
    ids=str,
)
async def test_a2_token_with_a_wrong_claim_is_refused(client: Client, key: bytes, changed: dict[str, Any]) -> None:
    assert (await me(client, signed(HEADER, claims_of(client.token) | changed, key))).status == 401


async def test_a2_token_that_names_somebody_elses_session_is_refused(shared_platform: Platform, key: bytes) -> None:
    async with shared_platform.client() as one, shared_platform.client() as other:
        await one.register()
        await other.register()
        claims = claims_of(one.token) | {"sid": claims_of(other.token)["sid"]}
        assert (await me(one, signed(HEADER, claims, key))).status == 401


async def test_a3_expired_and_early_tokens_are_refused_without_leeway(client: Client, key: bytes) -> None:
    claims, now = claims_of(client.token), int(time.time())

    async def status(**changed: int) -> int:
        return (await me(client, signed(HEADER, claims | changed, key))).status

    assert await status(exp=now + 30) == 200
    assert await status(exp=now) == 401
    assert await status(exp=now - 1) == 401
    assert await status(exp=now - 365 * 86400) == 401
    assert await status(nbf=now) == 200
    assert await status(nbf=now + 30) == 401
    assert await status(iat=now + 3600) == 401
    expired = await me(client, signed(HEADER, claims | {"exp": now - 1}, key))
    assert expired.json["code"] == "token_expired"


async def test_a3_remembered_token_still_expires_on_time(client: Client, key: bytes) -> None:
    exp = int(time.time()) + 2
    token = signed(HEADER, claims_of(client.token) | {"exp": exp}, key)
    while (answer := await me(client, token)).status == 200:
        assert time.time() < exp + 0.5
    assert answer.json["code"] == "token_expired"


async def test_a5_token_is_refused_after_logout(client: Client) -> None:
    token = client.token or ""
    assert (await client.call("POST", "/api/auth/logout")).status == 204
    await refused_within(client, token, 1.0)
    refreshed = await client.call("POST", "/api/auth/refresh", json={"refresh_token": client.refresh_token}, token="")
    assert refreshed.status == 401


async def test_a5_another_process_refuses_a_token_within_a_second_of_its_logout(start_api: StartApi) -> None:
    one = await start_api({})
    other = await start_api({"JWT_SECRET": one.env["JWT_SECRET"]})
    async with one.client() as here, other.client() as there:
        await here.register()
        token = here.token or ""
        assert (await me(there, token)).status == 200  # it remembers it now
        assert (await here.call("POST", "/api/auth/logout")).status == 204
        await refused_within(there, token, 1.0)


async def test_a5_token_is_refused_after_the_account_is_gone(client: Client, shared_platform: Platform) -> None:
    connection = await asyncpg.connect(shared_platform.env["DATABASE_URL"])
    await connection.execute("DELETE FROM users WHERE email = $1", client.email)
    await connection.close()
    await refused_within(client, client.token or "", 1.0)


async def test_logout_ends_one_session_and_leaves_the_account_s_others(client: Client) -> None:
    other = (await log_in(client, client.email)).json["access_token"]
    await client.call("POST", "/api/auth/logout")
    assert (await me(client, other)).status == 200


async def refresh(client: Client, token: str | None) -> Answer:
    return await client.call("POST", "/api/auth/refresh", json={"refresh_token": token}, token="")


async def test_a6_refresh_rotates_the_token(client: Client) -> None:
    renewed = await refresh(client, client.refresh_token)
    assert renewed.status == 200
    assert renewed.json["refresh_token"] != client.refresh_token
    assert (await me(client, renewed.json["access_token"])).status == 200
    assert (await refresh(client, renewed.json["refresh_token"])).status == 200


async def test_a6_refresh_replay_revokes_the_session(client: Client) -> None:
    renewed = (await refresh(client, client.refresh_token)).json
    assert (await refresh(client, client.refresh_token)).status == 401
    assert (await refresh(client, renewed["refresh_token"])).status == 401, "the thief's line must end too"
    await refused_within(client, renewed["access_token"], 1.0)


async def test_a6_one_refresh_token_used_at_once_gives_one_session_at_most(client: Client) -> None:
    answers = await asyncio.gather(*(refresh(client, client.refresh_token) for _ in range(10)))
    good = [answer.json["refresh_token"] for answer in answers if answer.status == 200]
    assert len(good) == 1
    assert {answer.status for answer in answers} == {200, 401}
    assert (await refresh(client, good[0])).status == 401


@pytest.mark.parametrize("token", ["x", "x.y", f"{UUID(int=7)}.x", f"{UUID(int=7)}.", "\u0000.\u0000", "." * 1000])
async def test_a6_refresh_tokens_of_nobody_are_refused(client: Client, token: str) -> None:
    assert (await refresh(client, token)).status in (401, 422)


@pytest.mark.parametrize("password", ["x" * 73, "ä" * 37, "x" * 71 + "ä", "🔑" * 19], ids=len)
async def test_a7_password_longer_than_bcrypt_reads_is_422_at_register_and_401_at_login(
    client: Client, password: str
) -> None:
    name = f"u-{uuid4().hex[:10]}"
    answer = await client.call(
        "POST",
        "/api/auth/register",
        json={"email": f"{name}@example.com", "username": name, "password": password},
    )
    assert answer.status == 422, answer
    assert answer.json["field"] == "password"
    assert (await log_in(client, client.email, password)).status == 401


async def test_a7_a_longer_password_with_the_same_first_72_bytes_does_not_log_in(shared_platform: Platform) -> None:
    async with shared_platform.client() as client:
        await client.register(password="p" * 72)
        assert (await log_in(client, client.email, "p" * 72)).status == 200
        assert (await log_in(client, client.email, "p" * 73)).status == 401
        assert (await log_in(client, client.email, "p" * 72 + "\u0000")).status == 401


async def test_a7_password_with_nul_is_refused(client: Client) -> None:
    name = f"u-{uuid4().hex[:10]}"
    body = {"email": f"{name}@example.com", "username": name, "password": "secret\u0000 and more"}
    assert (await client.call("POST", "/api/auth/register", json=body)).status == 422
    assert (await log_in(client, client.email, f"{PASSWORD}\u0000")).status == 401


@pytest.mark.alone
async def test_a8_unknown_account_and_wrong_password_look_and_take_the_same(start_api: StartApi) -> None:
    alone = await start_api({"BCRYPT_COST": "9", **NO_LIMIT})
    async with alone.client() as client:
        await client.register()
        took: dict[str, list[float]] = {client.email: [], f"nobody-{uuid4().hex[:9]}@example.com": []}
        bodies = set()
        for _ in range(60):
            for email, times in took.items():
                started = time.perf_counter()
                answer = await log_in(client, email, "not the password")
                times.append(time.perf_counter() - started)
                assert answer.status == 401
                bodies.add(json.dumps({k: v for k, v in answer.json.items() if k != "request_id"}, sort_keys=True))
        assert len(bodies) == 1
        known, unknown = (statistics.median(times) for times in took.values())
        # Without the dummy hash the two are a factor of ten apart.
        assert abs(known - unknown) / max(known, unknown) < 0.10, (known, unknown)


async def test_a9_guessing_is_bounded_and_locks_nobody_out(start_api: StartApi) -> None:
    alone = await start_api({})
    async with alone.client() as client, alone.client() as bystander:
        await client.register()
        await bystander.register()
        answers = await asyncio.gather(*(log_in(client, client.email, f"guess {n}") for n in range(100)))
        assert sorted(answer.status for answer in answers) == [401] * 10 + [429] * 90
        refused = next(answer for answer in answers if answer.status == 429)
        assert refused.json["code"] == "too_many_logins"
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert (await log_in(client, client.email)).status == 429, "the right password is guessed no faster"
        assert (await log_in(client, client.email.upper())).status == 429
        assert (await log_in(client, f" {client.email} ")).status == 429
        assert (await log_in(bystander, bystander.email)).status == 200, "another account from there"
        connector = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))
        async with aiohttp.ClientSession(connector=connector) as elsewhere:
            body = {"email": client.email, "password": PASSWORD}
            async with elsewhere.post(alone.url + "/api/auth/login", json=body) as response:
                assert response.status == 200, "the victim, from its own address"
        assert (await me(client, client.token or "")).status == 200, "a session that stands"


async def log_in_through(client: Client, forwarded: str, email: str, password: str = PASSWORD) -> Answer:
    """As a proxy passes it on that saw the request come from the last of ``forwarded``."""
    body = {"email": email, "password": password}
    return await client.call("POST", "/api/auth/login", json=body, headers={"X-Forwarded-For": forwarded}, token="")


async def test_behind_a_proxy_guesses_lock_nobody_out_and_no_client_chooses_its_address(start_api: StartApi) -> None:
    alone = await start_api({"TRUSTED_PROXIES": "127.0.0.0/8"})
    async with alone.client() as client:
        await client.register()
        guesses = [await log_in_through(client, f"10.9.9.{n}, 203.0.113.9", client.email, "guess") for n in range(12)]
        assert [answer.status for answer in guesses] == [401] * 10 + [429] * 2
        assert (await log_in_through(client, "198.51.100.7", client.email)).status == 200, "the victim"
        assert (await log_in_through(client, "203.0.113.9", client.email)).status == 429


async def test_without_trusted_proxies_the_header_is_the_clients_and_does_not_count(start_api: StartApi) -> None:
    alone = await start_api({})
    async with alone.client() as client:
        await client.register()
        guesses = [await log_in_through(client, f"203.0.113.{n}", client.email, "guess") for n in range(12)]
        assert [answer.status for answer in guesses] == [401] * 10 + [429] * 2
    assert "a proxy forwards requests and is not in TRUSTED_PROXIES" in alone.logs()


@pytest.mark.alone
async def test_a_flood_of_log_ins_is_bounded_and_delays_other_addresses_by_a_hash(start_api: StartApi) -> None:
    alone = await start_api({"BCRYPT_COST": "12", "TRUSTED_PROXIES": "127.0.0.0/8"})
    async with alone.client() as client, alone.client() as flooder:
        await client.register()
        started = time.perf_counter()
        assert (await log_in_through(client, "198.51.100.7", client.email)).status == 200
        quiet = time.perf_counter() - started
        flood = [
            asyncio.create_task(log_in_through(flooder, "203.0.113.9", f"nobody{n}@example.com")) for n in range(90)
        ]
        while sum(task.done() for task in flood) < 20:  # those that are one too many are answered at once
            await asyncio.sleep(0.01)
        started = time.perf_counter()
        assert (await log_in_through(client, "198.51.100.7", client.email)).status == 200
        beside = time.perf_counter() - started
        answers = await asyncio.gather(*flood)
        assert {answer.status for answer in answers} == {401, 429}
        assert {answer.json["code"] for answer in answers if answer.status == 429} == {"too_many_logins"}
        assert beside < 5 * quiet + 1, (quiet, beside)  # in their order it would be thirty times as long


@pytest.mark.alone
async def test_a10_password_hashing_does_not_hold_up_others(start_api: StartApi) -> None:
    alone = await start_api({"BCRYPT_COST": "12", **NO_LIMIT})
    async with alone.client() as client, alone.client() as watcher:
        await client.register()
        logins = asyncio.gather(*(log_in(client, client.email) for _ in range(50)))
        took = []
        while not logins.done():
            started = time.perf_counter()
            assert (await watcher.call("GET", "/api/health")).status == 200
            took.append(time.perf_counter() - started)
        assert {answer.status for answer in await logins} == {200}
        took.sort()
        assert len(took) > 100
        assert took[int(len(took) * 0.99)] < 0.05, took[-10:]


async def test_a11_database_and_logs_hold_no_secret(client: Client, shared_platform: Platform) -> None:
    tokens = (await log_in(client, client.email)).json
    await me(client, tokens["access_token"])
    renewed = (await refresh(client, tokens["refresh_token"])).json
    secrets = [PASSWORD, *(pair[name] for pair in (tokens, renewed) for name in ("access_token", "refresh_token"))]
    secrets += [token.partition(".")[2] for token in (tokens["refresh_token"], renewed["refresh_token"])]
    connection = await asyncpg.connect(shared_platform.env["DATABASE_URL"])
    rows = [
        str(dict(row)) for table in ("users", "sessions") for row in await connection.fetch(f"SELECT * FROM {table}")
    ]
    await connection.close()
    logs = "".join(path.read_text() for path in shared_platform.folder.glob("*.log"))
    assert client.email in "".join(rows)
    for secret in secrets:
        assert secret not in "".join(rows)
        assert secret not in logs


async def test_a13_members_that_would_make_more_of_a_user_are_refused(client: Client) -> None:
    for extra in ("role", "is_admin", "id", "__proto__", "created_at"):
        name = f"u-{uuid4().hex[:10]}"
        body = {"email": f"{name}@example.com", "username": name, "password": PASSWORD, extra: "admin"}
        answer = await client.call("POST", "/api/auth/register", json=body)
        assert answer.status == 422
        assert answer.json["field"] == extra


async def test_a13_one_address_registered_at_once_is_one_account(client: Client) -> None:
    name = uuid4().hex[:10]

    async def attempt(number: int) -> Answer:
        email = f"race-{name}@example.com" if number % 2 else f"Race-{name.upper()}@example.com"
        body = {"email": email, "username": f"race-{name}-{number}", "password": PASSWORD}
        return await client.call("POST", "/api/auth/register", json=body)

    answers = await asyncio.gather(*(attempt(number) for number in range(20)))
    assert sorted(answer.status for answer in answers) == [201] + [409] * 19
    assert {answer.json["code"] for answer in answers if answer.status == 409} == {"email_taken"}


async def test_a13_one_user_name_registered_at_once_is_one_account(client: Client) -> None:
    name = f"race-{uuid4().hex[:10]}"

    async def attempt(number: int) -> Answer:
        body = {"email": f"{name}-{number}@example.com", "username": name, "password": PASSWORD}
        return await client.call("POST", "/api/auth/register", json=body)

    answers = await asyncio.gather(*(attempt(number) for number in range(20)))
    assert sorted(answer.status for answer in answers) == [201] + [409] * 19
    assert {answer.json["field"] for answer in answers if answer.status == 409} == {"username"}


async def test_a13_no_race_gets_past_the_limit_of_accounts(start_api: StartApi) -> None:
    alone = await start_api({"MAX_USERS": "3"})
    async with alone.client() as client:

        async def attempt(number: int) -> Answer:
            body = {"email": f"u{number}@example.com", "username": f"u{number}", "password": PASSWORD}
            return await client.call("POST", "/api/auth/register", json=body)

        answers = await asyncio.gather(*(attempt(number) for number in range(20)))
        assert sorted(answer.status for answer in answers) == [201] * 3 + [403] * 17
        assert {answer.json["code"] for answer in answers if answer.status == 403} == {"registration_closed"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("email", "nobody"),
        ("email", "a@b\u0000.com"),
        ("email", f"{'x' * 250}@example.com"),
        ("email", 7),
        ("username", "A"),
        ("username", "Upper"),
        ("username", "-dash"),
        ("username", "two words"),
        ("username", "line\n"),
        ("username", "x" * 40),
        ("username", "\u0000\u0000"),
        ("username", "ｆｕｌｌ"),
        ("password", "short"),
        ("password", None),
    ],
)
async def test_register_names_the_field_at_fault(client: Client, field: str, value: object) -> None:
    body = {"email": "good@example.com", "username": "good-name", "password": PASSWORD, field: value}
    answer = await client.call("POST", "/api/auth/register", json=body)
    assert answer.status == 422, answer
    assert answer.json["field"] == field
    assert str(value) not in answer.json["detail"] or value is None or value == "A"
