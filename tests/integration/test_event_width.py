"""An event is as wide as what runtimes take, however it is sent: bytes, repeated names, a query as text."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.client import Answer, Client
from tests.deployment import Platform

ECHO = "def handler(event, context):\n    return event\n"
WEB = """
import json

def app(environ, start_response):
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "application/json")])
    told = {name: environ.get(name) for name in ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "CONTENT_TYPE")}
    told |= {"HTTP_X_A": environ.get("HTTP_X_A"), "body": list(body)}
    return [json.dumps(told).encode()]
"""
BYTES = b"\xff\x00\x01"
EVENT = {
    "method": "POST",
    "path": "/up",
    "headers": {"content-type": "application/octet-stream", "x-a": ["1", "2"]},
    "body_base64": base64.b64encode(BYTES).decode(),
}
QUERIES: list[Any] = [
    "a=1&a=2&b=%20",
    {"a": ["1", "2"], "b": " "},
    [["a", "1"], ["a", "2"], ["b", " "]],
]


@pytest.fixture(scope="module")
def names() -> dict[str, str]:
    return {"echo": "event-echo", "web": "event-web"}


@pytest.fixture
async def client(shared_platform: Platform, names: dict[str, str]) -> AsyncIterator[Client]:
    async with shared_platform.client() as client:
        await client.register()
        web = {"runtime": "python-flask", "handler": "app:app"}
        answers = await asyncio.gather(
            client.deploy(names["echo"], {"main.py": ECHO}),
            client.deploy(names["web"], {"app.py": WEB}, settings=web),
        )
        assert [answer.status for answer in answers] == [201, 201], answers
        yield client


async def call(client: Client, name: str, event: dict[str, Any], *, headers: dict[str, str] | None = None) -> Answer:
    return await client.call("POST", f"/api/functions/{name}/invoke", json=event, headers=headers)


async def in_a_batch(client: Client, name: str, event: dict[str, Any]) -> Any:
    answer = await client.call("POST", f"/api/functions/{name}/invoke-batch", json={"items": [event]})
    assert answer.status == 202, answer
    return (await client.job(answer.json["items"][0]["job_id"], wait=30))["result"]


async def accepted(client: Client, name: str, event: dict[str, Any]) -> Any:
    answer = await call(client, name, event, headers={"Prefer": "respond-async"})
    assert answer.status == 202, answer
    return (await client.job(answer.json["job_id"], wait=30))["result"]


async def waited_for(client: Client, name: str, event: dict[str, Any]) -> Any:
    answer = await call(client, name, event)
    assert answer.status == 200, answer
    return answer.json["result"]


@pytest.mark.parametrize("way", [waited_for, accepted, in_a_batch])
async def test_bytes_and_repeated_names_reach_a_web_function(client: Client, names: dict[str, str], way: Any) -> None:
    result = await way(client, names["web"], EVENT | {"query": QUERIES[1]})
    told = result["body"] if isinstance(result["body"], dict) else json.loads(result["body"])
    assert bytes(told["body"]) == BYTES
    assert (told["REQUEST_METHOD"], told["PATH_INFO"]) == ("POST", "/up")
    assert told["CONTENT_TYPE"] == "application/octet-stream"
    assert told["HTTP_X_A"] in ("1,2", "1, 2")
    assert told["QUERY_STRING"] in ("a=1&a=2&b=+", "a=1&a=2&b=%20")


@pytest.mark.parametrize("way", [waited_for, accepted, in_a_batch])
@pytest.mark.parametrize("query", QUERIES, ids=["text", "object", "pairs"])
async def test_a_handler_gets_the_event_as_it_was_sent(
    client: Client, names: dict[str, str], way: Any, query: Any
) -> None:
    event = EVENT | {"query": query}
    assert await way(client, names["echo"], event) == event | {"body": None}


async def test_what_was_called_is_on_record_and_can_be_repeated(client: Client) -> None:
    fails = "def handler(event, context):\n    raise ValueError(event['body_base64'])\n"
    assert (await client.deploy("fails", {"main.py": fails})).status == 201
    event = EVENT | {"query": "a=1&a=2"}
    failed = await call(client, "fails", event)
    assert failed.json["error"]["message"].endswith(str(EVENT["body_base64"]))
    job = failed.json["job_id"]
    await client.job(job, wait=10)
    (record,) = (await client.call("GET", f"/api/functions/fails/invocations?job_id={job}")).json["items"]
    assert record["request"]["query"] == "a=1&a=2"
    assert record["request"]["content_type"] == "application/octet-stream"
    again = await client.call("POST", f"/api/jobs/{job}/redrive")
    assert (await client.job(again.json["job_id"], wait=30))["error"] == failed.json["error"]


async def test_an_item_that_is_no_event_is_refused_alone_and_named(client: Client, names: dict[str, str]) -> None:
    items = [{"body_base64": "/wAB"}, {"body_base64": "nope!"}, {"query": 7}]
    answer = await client.call("POST", f"/api/functions/{names['echo']}/invoke-batch", json={"items": items})
    assert answer.status == 202
    first, *others = answer.json["items"]
    assert first["job_id"]
    assert [other["error"]["field"] for other in others] == ["body_base64", "query"]
