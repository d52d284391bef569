"""Nobody reads, changes or names what is somebody else's: every operation with a path, tried by a stranger."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest

from api.app import OPERATIONS
from api.operation import Operation
from shared.ids import new_id
from tests.client import Client
from tests.deployment import Platform

SECRET = "marker-of-the-owner"
CODE = f"def handler(event, context):\n    print('{SECRET}')\n    return '{SECRET}'\n"

FILLED = {
    # operation: what its path parameters are filled with, by their names
    "read_job": ("job",),
    "read_events": ("job",),
    "cancel_job": ("job",),
    "redrive_job": ("job",),
    "list_job_deliveries": ("job",),
    "redeliver": ("delivery",),
    "read_function": ("function",),
    "delete_function": ("function",),
    "stop_function": ("function",),
    "start_function": ("function",),
    "list_versions": ("function",),
    "read_version": ("function", "number"),
    "invoke": ("function",),
    "invoke_batch": ("function",),
    "list_logs": ("function",),
    "list_invocations": ("function",),
}
BODIES: dict[str, dict[str, Any]] = {"invoke_batch": {"items": [{}]}}
"""Of those that look at their body first."""
LISTS = {"list_functions", "list_jobs", "cancel_jobs", "redrive_jobs", "list_deliveries"}
OWN = {"read_webhook_secret", "rotate_webhook_secret"}
"""Of the caller's alone, whoever that is."""
NOBODYS = {"register", "login", "refresh", "logout", "me", "deploy", "health", "ready", "openapi", "metrics"}
"""Operations that name nothing of anybody's. A deploy's name is the caller's own: see the test of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """What the owner has."""

    function_id: str
    function_name: str
    job_id: str
    open_job_id: str
    delivery_id: str


def name_of(operation: Operation) -> str:
    return operation.handler.__name__


WITH_PATH = [operation for operation in OPERATIONS if "{" in operation.path]


@pytest.fixture
async def owner(shared_platform: Platform) -> AsyncIterator[Client]:
    async with shared_platform.client() as client:
        yield await client.register()


@pytest.fixture
async def stranger(shared_platform: Platform) -> AsyncIterator[Client]:
    async with shared_platform.client() as client:
        yield await client.register()


@pytest.fixture
async def owned(owner: Client) -> Owned:
    deployed = (await owner.deploy("private", {"main.py": CODE})).json
    invoke = "/api/functions/private/invoke?callback_url=https://receiver.invalid/"
    finished = (await owner.call("POST", invoke, json={})).json["job_id"]
    assert (await owner.job(finished, wait=10))["result"] == SECRET
    await owner.deploy("slow", {"main.py": "def handler(e, c):\n    import time\n    time.sleep(3)\n"})
    running = (await owner.invoke("slow", prefer="respond-async")).json["job_id"]
    (delivery,) = (await owner.call("GET", "/api/deliveries")).json["items"]
    return Owned(
        function_id=deployed["function_id"],
        function_name="private",
        job_id=finished,
        open_job_id=running,
        delivery_id=delivery["id"],
    )


def test_a12_every_operation_is_in_the_table() -> None:
    names = {name_of(operation) for operation in OPERATIONS}
    assert names == set(FILLED) | LISTS | OWN | NOBODYS
    for operation in WITH_PATH:
        assert tuple(re.findall(r"{([a-z_]+)}", operation.path)) == FILLED[name_of(operation)], operation.path


async def test_a12_stranger_gets_the_same_404_as_for_what_does_not_exist(
    owner: Client, stranger: Client, owned: Owned
) -> None:
    tried = 0
    for operation in WITH_PATH:
        foreign: dict[str, list[str]] = {
            "function": [owned.function_id, owned.function_id.upper(), owned.function_name],
            "job": [owned.job_id, owned.open_job_id, owned.job_id.replace("-", "")],
            "number": ["1"],
            "delivery": [owned.delivery_id, owned.delivery_id.upper(), owned.delivery_id.replace("-", "")],
        }
        first, *others = FILLED[name_of(operation)]
        for value in foreign[first]:
            filled = {first: value, **{name: foreign[name][0] for name in others}}
            path = operation.path.format(**filled)
            body: dict[str, Any] | None = BODIES.get(name_of(operation), {}) if operation.method == "POST" else None
            answer = await stranger.call(operation.method, path, json=body)
            absent = {first: str(new_id()) if _is_uuid(value) else "absent", **dict.fromkeys(others, "1")}
            nothing = await stranger.call(operation.method, operation.path.format(**absent), json=body)
            assert answer.status == nothing.status == 404, (operation.method, path, answer)
            assert answer.json["code"] == nothing.json["code"]
            assert SECRET not in answer.body.decode()
            tried += 1
    assert tried == 3 * len(WITH_PATH)
    # And all of it still stands.
    assert (await owner.call("GET", f"/api/functions/{owned.function_id}")).status == 200
    assert (await owner.job(owned.open_job_id, wait=15))["status"] == "succeeded"


def _is_uuid(text: str) -> bool:
    try:
        return bool(UUID(text))
    except ValueError:
        return False


async def test_a12_every_operation_but_the_public_ones_needs_a_token(stranger: Client, owned: Owned) -> None:
    for operation in OPERATIONS:
        path = operation.path.format(function=owned.function_id, job=owned.job_id, number=1, delivery=owned.delivery_id)
        answer = await stranger.call(operation.method, path, token="", json={} if operation.method != "GET" else None)
        if operation.public:
            assert answer.status != 401 or name_of(operation) in ("login", "refresh"), path
        else:
            assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer"), path


async def test_a12_lists_show_only_one_s_own(owner: Client, stranger: Client, owned: Owned) -> None:
    await stranger.deploy("mine", {"main.py": CODE.replace(SECRET, "mine")})
    mine = (await stranger.invoke("mine", prefer="respond-async")).json["job_id"]
    await stranger.job(mine, wait=10)
    lists = (
        "functions",
        "jobs",
        "jobs?status=succeeded",
        "jobs?status=running",
        "deliveries",
        "deliveries?status=pending",
    )
    for path in (f"/api/{each}" for each in lists):
        body = (await stranger.call("GET", path)).body.decode()
        for foreign in (owned.function_id, owned.job_id, owned.open_job_id, owned.delivery_id, SECRET):
            assert foreign not in body, path
    for reference in (owned.function_id, owned.function_name):
        assert (await stranger.call("GET", f"/api/jobs?function={reference}")).status == 404
    for path in ("logs", "invocations"):
        answer = await stranger.call("GET", f"/api/functions/mine/{path}?job_id={owned.job_id}")
        assert answer.json["items"] == []
    assert {item["name"] for item in (await stranger.call("GET", "/api/functions")).json["items"]} == {"mine"}
    secrets = [(await each.call("GET", "/api/webhook-secret")).json["secret"] for each in (owner, stranger, owner)]
    assert secrets[0] == secrets[2] != secrets[1]


async def test_a12_cursor_of_somebody_else_s_list_opens_nothing(owner: Client, stranger: Client, owned: Owned) -> None:
    page = (await owner.call("GET", "/api/jobs?limit=1")).json
    assert page["next"]
    assert (await stranger.call("GET", f"/api/jobs?cursor={page['next']}")).json["items"] == []
    page = (await owner.call("GET", "/api/functions?limit=1")).json
    assert (await stranger.call("GET", f"/api/functions?cursor={page['next']}")).json["items"] == []


async def test_a12_same_function_name_of_two_users_is_two_functions(
    owner: Client, stranger: Client, owned: Owned
) -> None:
    theirs = await stranger.deploy(owned.function_name, {"main.py": CODE.replace(SECRET, "theirs")})
    assert (theirs.status, theirs.json["version"]) == (201, 1)
    assert theirs.json["function_id"] != owned.function_id
    assert (await stranger.invoke(owned.function_name)).json["result"] == "theirs"
    assert (await owner.invoke(owned.function_name)).json["result"] == SECRET
    assert (await stranger.call("DELETE", f"/api/functions/{owned.function_name}")).status == 202
    assert (await owner.invoke(owned.function_name)).json["result"] == SECRET
