"""Authenticates callers: passwords, access tokens and sessions.

An access token is a JWT that names a session; a session can be revoked, and a revoked one is refused within a second.
A refresh token is ``<session>.<random>``; Postgres has only its SHA-256.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import bcrypt
import jwt

from api.password_hashing import PasswordHashing
from api.single_flight import SingleFlight
from shared.errors import Invalid, TooMany, Unauthenticated, Unavailable
from shared.ids import new_id
from shared.postgres.users import User, Users
from shared.queue.connection import redis_errors
from shared.queue.queue import Queue
from shared.scopes import ALL_SCOPES, Scope
from shared.settings import Settings

ISSUER = "containerpub"
AUDIENCE = "containerpub-api"
MAX_PASSWORD_BYTES = 72  # bcrypt reads no more
REMEMBER_S = 1.0
_REMEMBER_MOST = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """An authenticated user, the session that the token names, and what the token may be used for."""

    user: User
    session: UUID
    scopes: frozenset[Scope] = ALL_SCOPES


class Accounts:
    """:param settings: for the key, the lives of tokens and the cost of hashes."""

    def __init__(self, users: Users, queue: Queue, settings: Settings) -> None:
        self._users = users
        self._queue = queue
        self._settings = settings
        self._key = settings.jwt_secret.get_secret_value().encode()
        self._hashing = PasswordHashing()
        self._dummy_hash = bcrypt.hashpw(secrets.token_bytes(16).hex().encode(), bcrypt.gensalt(settings.bcrypt_cost))
        self._known: dict[str, tuple[float, Caller]] = {}
        self._asked: SingleFlight[Caller] = SingleFlight()

    def close(self) -> None:
        self._hashing.close()

    async def register(self, *, email: str, username: str, password: str, address: str) -> dict[str, Any]:
        """:returns: tokens. :raises Invalid: for a password that bcrypt would cut.
        :raises TooMany: if too many hashes are to be made.
        """
        data = password.encode()
        if len(data) > MAX_PASSWORD_BYTES:
            raise Invalid(
                f"The password may have at most {MAX_PASSWORD_BYTES} bytes.", code="password_too_long", field="password"
            )
        if b"\0" in data:
            raise Invalid("The password may not contain a NUL character.", code="invalid_password", field="password")
        salt = bcrypt.gensalt(self._settings.bcrypt_cost)
        hashed = await self._hashing.run(address, bcrypt.hashpw, data, salt)
        user = await self._users.register(
            email=email, username=username, password_hash=hashed.decode(), max_users=self._settings.max_users
        )
        return await self._open_session(user)

    async def login(self, *, email: str, password: str, address: str) -> dict[str, Any]:
        """:raises Unauthenticated: the same for an unknown account and a wrong password, after the same work."""
        await self._limit_logins(email, address)
        found = await self._users.credentials(email)
        data = password.encode()
        fits = len(data) <= MAX_PASSWORD_BYTES and b"\0" not in data
        hashed = self._dummy_hash if found is None else found[1].encode()
        matches = await self._hashing.run(address, bcrypt.checkpw, data if fits else b"", hashed)
        if found is None or not fits or not matches:
            raise Unauthenticated("The e-mail address or the password is wrong.", code="wrong_credentials")
        return await self._open_session(found[0])

    async def refresh(self, token: str) -> dict[str, Any]:
        """Exchange a refresh token; a replayed one ends its session."""
        name, _, random = token.partition(".")
        try:
            session = UUID(name)
        except ValueError:
            raise _log_in_again() from None
        following = secrets.token_urlsafe(32)
        life_s = self._settings.refresh_token_seconds
        user = await self._users.rotate_session(session, _sha256(random), _sha256(following), life_s=life_s)
        if user is None:
            raise _log_in_again()
        return self._tokens(user, session, following)

    async def logout(self, caller: Caller) -> None:
        await self._users.revoke_session(caller.session)
        self._known = {token: entry for token, entry in self._known.items() if entry[1].session != caller.session}

    async def authenticate(self, authorization: str | None) -> Caller:
        """The caller of a request, from its ``Authorization`` header. Remembered for one second.

        :raises Unauthenticated: without a valid token of a session that stands.
        """
        if authorization is None:
            raise Unauthenticated("This call needs a token: log in and send Authorization: Bearer <token>.")
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated("The Authorization header must read: Bearer <token>.")
        now = time.monotonic()
        known = self._known.get(token)
        if known is not None and now < known[0]:
            return known[1]
        return await self._asked.ask(token, lambda: self._look_up(token, now))

    async def _look_up(self, token: str, now: float) -> Caller:
        claims = self._verify(token)
        session = UUID(claims["sid"])
        user = await self._users.of_session(session)
        if user is None or str(user.id) != claims["sub"]:
            raise Unauthenticated("This token was revoked; log in again.", code="token_revoked")
        caller = Caller(user=user, session=session)
        if len(self._known) >= _REMEMBER_MOST:
            self._known.clear()
        self._known[token] = (min(now + REMEMBER_S, now + claims["exp"] - time.time()), caller)
        return caller

    def _verify(self, token: str) -> dict[str, Any]:
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._key,
                algorithms=["HS256"],
                audience=AUDIENCE,
                issuer=ISSUER,
                options={"require": ["exp", "iat", "nbf", "sub", "sid", "jti", "aud", "iss"]},
            )
            UUID(claims["sid"])
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("This token has expired; log in again.", code="token_expired") from None
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError):
            raise Unauthenticated("This token is not valid; log in again.", code="invalid_token") from None
        return claims

    async def _open_session(self, user: User) -> dict[str, Any]:
        random = secrets.token_urlsafe(32)
        session = await self._users.open_session(user.id, _sha256(random), life_s=self._settings.refresh_token_seconds)
        return self._tokens(user, session, random)

    def _tokens(self, user: User, session: UUID, random: str) -> dict[str, Any]:
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": str(user.id),
            "user_id": str(user.id),
            "email": user.email,
            "sid": str(session),
            "jti": str(new_id()),
            "iat": now,
            "nbf": now,
            "exp": now + self._settings.access_token_seconds,
        }
        return {
            "access_token": jwt.encode(claims, self._key, algorithm="HS256"),
            "refresh_token": f"{session}.{random}",
            "token_type": "Bearer",
            "expires_in": self._settings.access_token_seconds,
        }

    async def _limit_logins(self, email: str, address: str) -> None:
        """Count by account and address together, so that no user can lock another one out."""
        bucket = hmac.new(self._key, f"{email.lower()}\n{address}".encode(), "sha256").hexdigest()[:32]
        key = f"cp:logins:{bucket}"
        try:
            with redis_errors():
                pipe = self._queue.redis.pipeline(transaction=True)
                pipe.set(key, 0, ex=60, nx=True)
                pipe.incr(key)
                pipe.ttl(key)
                _, count, left_s = await pipe.execute()
        except Unavailable:
            return  # logging in is worth more than the count
        if count > self._settings.login_attempts_per_minute:
            raise TooMany(
                "Too many log-ins for this account from this address; wait a little.",
                code="too_many_logins",
                retry_after_s=max(1, left_s),
            )


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _log_in_again() -> Unauthenticated:
    return Unauthenticated("This refresh token is not valid any more; log in again.", code="invalid_refresh_token")
