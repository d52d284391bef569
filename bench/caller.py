"""One account of the platform: deploys functions, calls them, and makes the request bytes for the load generator."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from typing import Any, Self
from uuid import uuid4

import aiohttp

from bench.figure import WrongAnswer

_TIMEOUT = aiohttp.ClientTimeout(total=120)


class Caller:
    """Registers itself on entry. Use as an async context manager."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._token = ""
        self._http: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(f"http://127.0.0.1:{self._port}", timeout=_TIMEOUT)
        try:
            name = f"bench-{uuid4().hex[:10]}"
            account = {"email": f"{name}@example.com", "username": name, "password": uuid4().hex}
            self._token = (await self.call("POST", "/api/auth/register", 201, json=account))["access_token"]
        except BaseException:
            await self._http.close()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._http.close()

    @property
    def headers(self) -> dict[str, str]:
        """Who it is, for clients of their own."""
        return {"Authorization": f"Bearer {self._token}"}

    async def call(self, method: str, path: str, status: int, **arguments: Any) -> Any:
        """The JSON of an answer that must have ``status``; raises :class:`WrongAnswer`."""
        got, answer = await self.ask(method, path, **arguments)
        if got != status:
            raise WrongAnswer(f"{method} {path}: {got} instead of {status}: {str(answer)[:500]}")
        return answer

    async def ask(self, method: str, path: str, **arguments: Any) -> tuple[int, Any]:
        """Status and JSON of whatever is answered."""
        headers = arguments.pop("headers", {})
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        async with self._http.request(method, path, headers=headers, **arguments) as response:
            return response.status, json.loads(await response.read())

    async def deploy(self, name: str, code: str | Mapping[str, str], **settings: object) -> Any:
        """Deploy a ``main.py``, or files by their names, and wait until it is active."""
        form = aiohttp.FormData()
        form.add_field("name", name)
        form.add_field("settings", json.dumps(settings))
        form.add_field(
            "archive", _pack({"main.py": code} if isinstance(code, str) else code), filename="function.tar.gz"
        )
        return await self.call("POST", "/api/functions/deploy", 201, data=form, headers={"Prefer": "wait=100"})

    async def invoke(self, name: str, body: object, expect: object) -> None:
        """Call a function and wait for its result, which must be ``expect``."""
        answer = await self.call("POST", f"/api/functions/{name}/invoke", 200, json={"body": body})
        if answer.get("result") != expect:
            raise WrongAnswer(f"{name} answered {answer} instead of {expect!r}")

    async def outcome(self, name: str, body: object) -> Any:
        """Call a function and wait for how it ended, be it well or badly."""
        return await self.call("POST", f"/api/functions/{name}/invoke", 200, json={"body": body})

    async def sandboxes(self, state: str) -> float:
        """How many sandboxes of all workers are in ``state``, as ``/metrics`` says."""
        async with self._http.get("/metrics") as response:
            text = await response.text()
        lines = [line for line in text.splitlines() if line.startswith("containerpub_sandboxes{")]
        return sum(float(line.rpartition(" ")[2]) for line in lines if f'state="{state}"' in line)

    def request(self, name: str, body: object, *, prefer: str = "") -> str:
        """The bytes of an invoke, as text."""
        content = json.dumps({"body": body})
        return (
            f"POST /api/functions/{name}/invoke HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
            f"Authorization: Bearer {self._token}\r\nContent-Type: application/json\r\n"
            + (f"Prefer: {prefer}\r\n" if prefer else "")
            + f"Content-Length: {len(content.encode())}\r\n\r\n{content}"
        )


def _pack(files: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content.encode())
            member.mode = 0o755 if content.startswith("#!") else 0o644
            archive.addfile(member, io.BytesIO(content.encode()))
    return buffer.getvalue()
