"""Calls on behalf of an account, with its token, which is renewed when the server no longer accepts it.

The session renews a refused token once with the refresh token. If the server refuses that too, the session asks a
person at a terminal to log in, and makes the call again. A refresh token works once, and a second use ends the whole
login. So commands that run at the same time take turns, and the second one finds the first one's new token.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Self
from urllib.parse import quote, urlsplit

from cli.client import Answer, Client, Request
from cli.config import Config, ConfigFile, Target, resolve
from cli.errors import ApiError, NotLoggedIn, Unreachable, UsageError
from cli.output import Output

_LOCK_PATIENCE_S = 30.0
_LOCK_PAUSE_S = 0.05


class Session:
    """Open one a command with :meth:`open`; ``call`` is what commands use."""

    def __init__(self, client: Client, output: Output, file: ConfigFile, target: Target) -> None:
        self.client = client
        self.output = output
        self.file = file
        self.target = target

    @classmethod
    @asynccontextmanager
    async def open(cls, output: Output) -> AsyncIterator[Self]:
        file = ConfigFile(output.env.variables)
        target = resolve(file.load(), output.env.variables)
        async with Client(target.api_url) as client:
            yield cls(client, output, file, target)

    async def call(self, request: Request, *, may_ask: bool = True) -> Answer:
        """Send ``request`` as the account that is logged in.

        :param may_ask: whether a person may be asked to log in.
        :raises NotLoggedIn: no token, or none that the server accepts.
        """
        if self.target.access_token is None:
            await self._log_in_again(None, may_ask=may_ask)
        try:
            return await self.client.send(request, token=self.target.access_token)
        except ApiError as error:
            if error.http_status != 401:
                raise
            if not await self._refreshed(self.target.access_token):
                await self._log_in_again(error, may_ask=may_ask)
        try:
            return await self.client.send(request, token=self.target.access_token)
        except ApiError as error:
            if error.http_status == 401:
                raise self._refusal(error) from error
            raise

    async def log_in(self, email: str, password: str) -> Answer:
        """Trade a password for tokens and store them. :class:`ApiError` when they are not accepted."""
        self._warn_if_readable_on_the_way()
        body = {"email": email, "password": password}
        answer = await self.client.send(Request(method="POST", path="/api/auth/login", body=body), token=None)
        self.keep(answer, email)
        return answer

    async def register(self, email: str, username: str, password: str) -> Answer:
        """Make an account, and store its tokens."""
        self._warn_if_readable_on_the_way()
        body = {"email": email, "username": username, "password": password}
        answer = await self.client.send(Request(method="POST", path="/api/auth/register", body=body), token=None)
        self.keep(answer, email)
        return answer

    def keep(self, answer: Answer, email: str | None) -> None:
        access, refresh = answer.document.get("access_token"), answer.document.get("refresh_token")
        if not isinstance(access, str) or not isinstance(refresh, str):
            raise Unreachable("The server's answer holds no tokens.", hint="Check API_URL.")
        self.file.save(
            Config(api_url=self.client.api_url, access_token=access, refresh_token=refresh, email=email),
        )
        self.target = replace(self.target, access_token=access, refresh_token=refresh, email=email)

    async def forget(self) -> None:
        """Remove the tokens from the file; which server and account they were for stays."""
        async with self._turn():
            self.file.save(replace(self.file.load(), access_token=None, refresh_token=None))
        self.target = replace(self.target, access_token=None, refresh_token=None)

    async def _refreshed(self, refused: str | None) -> bool:
        if self.target.from_environment:
            return False
        async with self._turn():
            self.target = resolve(self.file.load(), self.output.env.variables)
            if self.target.access_token is not None and self.target.access_token != refused:
                return True  # another command renewed it while this one waited for its turn
            if self.target.refresh_token is None:
                return False
            body = {"refresh_token": self.target.refresh_token}
            try:
                answer = await self.client.send(Request(method="POST", path="/api/auth/refresh", body=body), token=None)
            except ApiError as error:
                if error.http_status in (400, 401, 403, 422):
                    return False
                raise
            self.keep(answer, self.target.email)
            return True

    async def _log_in_again(self, error: ApiError | None, *, may_ask: bool) -> None:
        env = self.output.env
        if error is None:
            await self.client.check_server()
        if self.target.from_environment or not may_ask or not env.interactive:
            raise self._refusal(error) from error
        self.output.note("The login ran out." if error is not None else "This needs a login.")
        try:
            email = self.target.email or env.ask("Email: ")
            password = env.read_password(f"Password of {email}: ")
        except EOFError as end:
            raise self._refusal(error) from end
        try:
            await self.log_in(email, password)
        except ApiError as refusal:
            raise NotLoggedIn(refusal.message, hint=refusal.hint, code=refusal.code) from refusal

    def _refusal(self, error: ApiError | None) -> NotLoggedIn:
        if self.target.from_environment:
            return NotLoggedIn("The server does not accept AUTH_TOKEN.", hint="Set a valid one, or unset it.")
        if error is not None:
            return NotLoggedIn(f"The login ran out: {error.message}", hint="Run `containerpub login`.")
        return NotLoggedIn(f"Nobody is logged in at {self.client.api_url}.", hint="Run `containerpub login`.")

    def _warn_if_readable_on_the_way(self) -> None:
        parts = urlsplit(self.client.api_url)
        if parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            self.output.note("Warning: the password is sent unencrypted; use an https URL outside your own network.")

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        with self.file.lock_file() as lock:
            if sys.platform != "win32":  # where the platform has no such lock, commands are one after another anyway
                import fcntl

                until = time.monotonic() + _LOCK_PATIENCE_S
                while True:
                    try:
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError as error:
                        if time.monotonic() > until:
                            raise UsageError(f"{lock.name} is held by another command.") from error
                        await asyncio.sleep(_LOCK_PAUSE_S)
            yield  # closing the file gives the lock back


def function_path(name: str, *rest: str) -> str:
    """The path of a function, by name or id, or of something below it."""
    return "/".join(("/api/functions", *(_segment(part) for part in (name, *rest))))


def job_path(job_id: str, *rest: str) -> str:
    return "/".join(("/api/jobs", *(_segment(part) for part in (job_id, *rest))))


def delivery_path(delivery_id: str, *rest: str) -> str:
    return "/".join(("/api/deliveries", *(_segment(part) for part in (delivery_id, *rest))))


def _segment(part: str) -> str:
    if part in ("", ".", ".."):
        raise UsageError(f"{part!r} is not a name or an id.")
    return quote(part, safe="")


async def pages(session: Session, path: str, params: dict[str, str], *, limit: int | None) -> list[dict[str, Any]]:
    """The first ``limit`` items of a list, or all of them, however many pages that takes."""
    items: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        wanted = min(1000, limit - len(items)) if limit is not None else 1000
        found, cursor = await page(session, path, {**params, "limit": str(wanted)}, cursor)
        items.extend(found)
        if cursor is None or (limit is not None and len(items) >= limit):
            return items[:limit]


async def page(
    session: Session, path: str, params: dict[str, str], cursor: str | None
) -> tuple[list[dict[str, Any]], str | None]:
    """The items behind ``cursor``, and the next cursor if there are more."""
    asked = {**params, **({"cursor": cursor} if cursor else {})}
    document = (await session.call(Request(method="GET", path=path, params=asked))).document
    items = document.get("items")
    if not isinstance(items, list):
        raise Unreachable("The server's answer holds no list.", hint="Check API_URL.")
    following = document.get("next")
    known = [item for item in items if isinstance(item, dict)]
    return known, following if isinstance(following, str) and following != cursor else None
