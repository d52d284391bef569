"""A caller of the API, as tests need one."""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any, Self
from uuid import uuid4

import aiohttp


def pack(files: dict[str, str | bytes]) -> bytes:
    """A tar.gz of ``files``, name to content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


class Answer:
    """A response that was read to its end."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def __repr__(self) -> str:
        return f"<{self.status} {self.body[:400]!r}>"


class Client:
    """One account's view of the API at ``url``. Use as an async context manager."""

    def __init__(self, url: str, *, connections: int = 100) -> None:
        self.url = url
        self.token: str | None = None
        self.refresh_token: str | None = None
        self.email = ""
        self._connections = connections
        self.http: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self.http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections),
            timeout=aiohttp.ClientTimeout(total=90),
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.http.close()

    async def call(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        data: Any = None,
        headers: dict[str, str] | None = None,
        token: str | None = None,
    ) -> Answer:
        sent = dict(headers or {})
        bearer = token if token is not None else self.token
        if bearer:
            sent.setdefault("Authorization", f"Bearer {bearer}")
        async with self.http.request(method, self.url + path, json=json, data=data, headers=sent) as response:
            return Answer(response.status, response.headers, await response.read())

    async def register(self, name: str | None = None, *, password: str = "correct horse battery") -> Self:
        name = name or f"user-{uuid4().hex[:10]}"
        self.email = f"{name}@example.com"
        answer = await self.call(
            "POST", "/api/auth/register", json={"email": self.email, "username": name, "password": password}
        )
        assert answer.status == 201, answer
        self.token = answer.json["access_token"]
        self.refresh_token = answer.json["refresh_token"]
        return self

    async def deploy(
        self,
        name: str,
        files: dict[str, str | bytes] | None = None,
        *,
        archive: bytes | None = None,
        settings: dict[str, Any] | None = None,
        prefer: str | None = "wait=60",
    ) -> Answer:
        form = aiohttp.FormData()
        form.add_field("name", name)
        if settings is not None:
            form.add_field("settings", json.dumps(settings))
        form.add_field("archive", archive if archive is not None else pack(files or {}), filename="function.tar.gz")
        return await self.call("POST", "/api/functions/deploy", data=form, headers={"Prefer": prefer} if prefer else {})

    async def invoke(self, name: str, body: Any = None, *, prefer: str | None = None) -> Answer:
        return await self.call(
            "POST",
            f"/api/functions/{name}/invoke",
            json={"body": body},
            headers={"Prefer": prefer} if prefer else {},
        )

    async def job(self, job_id: str, *, wait: float | None = None) -> Any:
        query = f"?wait={wait}" if wait is not None else ""
        answer = await self.call("GET", f"/api/jobs/{job_id}{query}")
        assert answer.status == 200, answer
        return answer.json
