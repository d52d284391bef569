"""A reader of Server-Sent Events, as the standard says that they are read."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from tests.client import Client


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    name: str
    id: str
    data: Any


class EventStream:
    """Iterate over it; :attr:`last_id` is what a client comes back with."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.last_id = ""
        self._cut = self._lines()  # one for all iterations: it has read ahead

    async def __aiter__(self) -> AsyncIterator[Event]:
        name, data = "", ""
        async for line in self._cut:
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                name = value
            elif field == "data":
                data += value
            elif field == "id":
                self.last_id = value
            elif not line and data:
                yield Event(name=name, id=self.last_id, data=json.loads(data))
                name, data = "", ""

    async def _lines(self) -> AsyncIterator[str]:
        """However long they are: aiohttp bounds those that it cuts."""
        parts = []
        async for chunk in self.response.content.iter_any():
            head, ended, tail = chunk.rpartition(b"\n")
            if not ended:
                parts.append(chunk)
                continue
            for line in b"".join((*parts, head)).split(b"\n"):
                yield line.decode()
            parts = [tail]

    async def until(self, name: str, **members: Any) -> list[Event]:
        """What comes until an event of this name whose data has these members, which is the last."""
        found = []
        async for event in self:
            found.append(event)
            if event.name == name and members.items() <= event.data.items():
                return found
        raise AssertionError(f"the stream ended without {name} {members}: {found}")

    async def rest(self) -> list[Event]:
        return [event async for event in self]


@asynccontextmanager
async def events_of(client: Client, job: str, *, last_id: str = "") -> AsyncIterator[EventStream]:
    headers = {"Authorization": f"Bearer {client.token}"} | ({"Last-Event-ID": last_id} if last_id else {})
    async with client.http.get(f"{client.url}/api/jobs/{job}/events", headers=headers) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        yield EventStream(response)


def text(events: list[Event], stream: str = "stdout") -> str:
    """All that was told of a stream."""
    return "".join(event.data["message"] for event in events if event.name == "log" and event.data["stream"] == stream)


def states(events: list[Event]) -> list[str]:
    return [event.data["status"] for event in events if event.name == "state"]
