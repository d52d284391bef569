"""The container engine's API as the rest of this folder calls it.

Every call is bounded in time, and every failure of the engine is an :class:`EngineUnavailable`. No other module uses
aiodocker's private parts: a request with a body or an answer that streams goes through :meth:`EngineClient.request`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import aiohttp
from aiodocker import Docker, DockerError

from worker.engine.docker.containers import Containers
from worker.errors import EngineUnavailable


class Absent(EngineUnavailable):
    """The engine does not have the object of a call, or one that it depends on."""


@asynccontextmanager
async def engine_call(doing: str, timeout_s: float, *ignored: int) -> AsyncIterator[None]:
    """Bounds requests to the engine in time and turns their failures into :class:`EngineUnavailable`.

    HTTP statuses in ``ignored`` are no failures: the body ends there. A 404 is an :class:`Absent`.
    """
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except DockerError as error:
        if error.status not in ignored:
            kind = Absent if error.status == 404 else EngineUnavailable
            raise kind(f"{doing}: {error.message}") from error
    except TimeoutError as error:
        raise EngineUnavailable(f"{doing}: the container engine did not answer within {timeout_s:g} s") from error
    except (aiohttp.ClientError, OSError) as error:
        raise EngineUnavailable(f"{doing}: the container engine does not answer ({error})") from error


class EngineClient:
    """One engine. Methods raise :class:`EngineUnavailable` unless they say otherwise.

    :param timeout_s: of every call that is not given a time of its own.
    """

    def __init__(self, docker: Docker, timeout_s: float) -> None:
        self.docker = docker
        self.timeout_s = timeout_s
        self.containers = Containers(docker, self.call, self.request)

    def call(self, doing: str, *ignored: int, timeout_s: float | None = None) -> AbstractAsyncContextManager[None]:
        """Bounds what is awaited within it; see :func:`engine_call`."""
        return engine_call(doing, self.timeout_s if timeout_s is None else timeout_s, *ignored)

    def request(
        self,
        path: str,
        method: str = "GET",
        *,
        params: Mapping[str, str] | None = None,
        body: AsyncIterator[bytes] | None = None,
        versioned: bool = True,
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """A request whose answer is read as it comes, to be used within :meth:`call`, which bounds it.

        :param body: a tar, which is sent as it is made.
        """
        headers = None if body is None else {"Content-Type": "application/x-tar"}
        return self.docker._query(
            path, method, params=params, data=body, headers=headers, timeout=None, versioned_api=versioned
        )

    async def version(self, *, timeout_s: float | None = None) -> Mapping[str, Any]:
        """What the engine says of its version and its components."""
        async with self.call("asking the engine for its version", timeout_s=timeout_s):
            version: Mapping[str, Any] = await self.docker.version()
        return version

    async def info(self) -> Mapping[str, Any]:
        """What the engine says of itself and its machine."""
        async with self.call("asking the engine about itself"):
            info: Mapping[str, Any] = await self.docker.system.info()
        return info

    async def speaks_libpod(self) -> bool:
        """Whether the engine offers libpod's own API beside Docker's, as Podman does."""
        async with self.call("asking the engine whether it answers"), self.request("_ping", versioned=False) as answer:
            return "Libpod-Api-Version" in answer.headers

    async def close(self) -> None:
        await self.docker.close()
