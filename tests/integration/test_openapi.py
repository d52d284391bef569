"""The OpenAPI document says what the API does: every route, every answer of a success in its declared shape."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import BaseModel

from api.app import OPERATIONS, build_app
from api.models import Problem
from api.openapi import HEADERS
from api.operation import Operation
from shared.jobs import JobStatus, Reason
from shared.settings import load
from tests.client import Answer, Client
from tests.deployment import Platform

CODE = """
def handler(event, context):
    print("said")
    context.logger.warning("warned")
    if event["body"] == "fail":
        raise ValueError("no")
    return {"got": event["body"]}
"""


@pytest.fixture
async def client(shared_platform: Platform) -> AsyncIterator[Client]:
    async with shared_platform.client() as client:
        yield await client.register()


@pytest.fixture
async def document(client: Client) -> dict[str, Any]:
    answer = await client.call("GET", "/api/openapi.json", token="")
    assert answer.status == 200
    served: dict[str, Any] = answer.json
    return served


async def test_document_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    errors = [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()]
    assert errors == []


async def test_document_lists_every_route_of_the_application(document: dict[str, Any]) -> None:
    routes = {
        (route.method, route.resource.canonical)
        for route in build_app(load({})).router.routes()
        if route.resource is not None
    }
    described = {
        (method.upper(), path)
        for path, item in document["paths"].items()
        for method in item
        if method in ("get", "post", "put", "patch", "delete")
    }
    assert described == routes


async def test_document_says_what_streams_headers_and_enumerations_are(document: dict[str, Any]) -> None:
    events = document["paths"]["/api/jobs/{job}/events"]["get"]["responses"]["200"]
    assert list(events["content"]) == ["text/event-stream"]
    answers = document["paths"]["/api/functions/{function}/invoke"]["post"]["responses"]
    assert {"Location", "Idempotent-Replayed", "RateLimit-Remaining"} <= set(answers["202"]["headers"])
    assert {"Retry-After", "RateLimit-Reset"} <= set(answers["default"]["headers"])
    schemas = document["components"]["schemas"]
    assert schemas["JobStatus"]["enum"] == list(JobStatus)
    assert schemas["Reason"]["enum"] == list(Reason)
    assert "handed_back" in schemas["InvocationView"]["properties"]["outcome"]["enum"]
    (status,) = (one for one in document["paths"]["/api/jobs"]["get"]["parameters"] if one["name"] == "status")
    assert status["schema"]["enum"] == list(JobStatus)


async def test_document_says_which_calls_need_a_token_and_what_every_call_may_answer(document: dict[str, Any]) -> None:
    for operation in OPERATIONS:
        item = document["paths"][operation.path][operation.method.lower()]
        assert item["security"] == ([] if operation.scope is None else [{"bearer": [operation.scope]}])
        assert {str(status) for status in operation.responses} <= set(item["responses"])
        assert "application/problem+json" in item["responses"]["default"]["content"]
        assert item["summary"]
    ids = [operation.handler.__name__ for operation in OPERATIONS]
    assert len(ids) == len(set(ids))


def keys(value: Any) -> Any:
    """The structure of a document: its members' names, all the way down."""
    if isinstance(value, dict):
        return {name: keys(item) for name, item in value.items()}
    if isinstance(value, list):
        return [keys(item) for item in value]
    return None


class Witness:
    """Makes calls, and holds every answer to what its operation declares."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.seen: set[tuple[str, int]] = set()

    def check(self, method: str, path: str, answer: Answer) -> Answer:
        operation = next(one for one in OPERATIONS if one.method == method and _matches(one, path.partition("?")[0]))
        if answer.status >= 400 and answer.status not in operation.responses:
            self._is(Problem, answer, "application/problem+json", loose=True)
            assert answer.json["status"] == answer.status
            assert answer.json["request_id"] == answer.headers["X-Request-ID"]
            return answer
        assert answer.status in operation.responses, (method, path, answer)
        for name in {*HEADERS} & {*answer.headers} - {"X-Request-ID"}:
            assert name in operation.headers.get(answer.status, ()), (method, path, answer.status, name)
        if "Location" in operation.headers.get(answer.status, ()):
            assert answer.headers["Location"].startswith("/api/jobs/")
        model = operation.responses[answer.status]
        if isinstance(model, str):
            assert answer.headers["Content-Type"].partition(";")[0] == model
        elif model is not None:
            self._is(model, answer, "application/json")
        elif answer.status == 204:
            assert answer.body == b""
        self.seen.add((operation.handler.__name__, answer.status))
        return answer

    def _is(self, model: type[BaseModel], answer: Answer, content_type: str, *, loose: bool = False) -> None:
        assert answer.headers["Content-Type"].partition(";")[0] == content_type
        shown = model.model_validate_json(answer.body).model_dump(mode="json", exclude_unset=True)
        if not loose:
            assert keys(shown) == keys(answer.json), f"{model.__name__} leaves something out"

    async def call(self, method: str, path: str, **options: Any) -> Answer:
        return self.check(method, path, await self.client.call(method, path, **options))


def _matches(operation: Operation, path: str) -> bool:
    return re.fullmatch(re.sub(r"{[a-z_]+}", "[^/]+", operation.path), path) is not None


async def test_every_answer_has_the_shape_that_its_operation_declares(shared_platform: Platform) -> None:
    async with shared_platform.client() as client:
        witness = Witness(client)
        account = {"email": "smoke@example.com", "username": "smoke", "password": "correct horse battery"}
        client.token = (await witness.call("POST", "/api/auth/register", json=account)).json["access_token"]
        login = {"email": account["email"], "password": account["password"]}
        tokens = (await witness.call("POST", "/api/auth/login", json=login)).json
        await witness.call("POST", "/api/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
        await witness.call("GET", "/api/auth/me")

        deploy, url = "/api/functions/deploy", "/api/functions/f"
        for prefer in ("wait=60", None):
            witness.check("POST", deploy, await client.deploy("f", {"main.py": CODE}, prefer=prefer))
        queued = witness.check("POST", deploy, await client.deploy("f", {"main.py": CODE + "\n"}, prefer=None))
        await witness.call("GET", f"/api/jobs/{queued.json['job_id']}?wait=60")
        refused = witness.check("POST", deploy, await client.deploy("f", {"main.py": "def handler(:"}))
        assert refused.status == 422

        for _ in range(2):
            key = {"Idempotency-Key": "once"}
            await witness.call("POST", f"{url}/invoke", json={"body": 1}, headers=key)
            await witness.call("POST", f"{url}/invoke", json={"body": 1}, headers={**key, "Prefer": "respond-async"})
        for body in (1, "fail"):
            await witness.call("POST", f"{url}/invoke", json={"body": body})
            job = (
                await witness.call("POST", f"{url}/invoke", json={"body": body}, headers={"Prefer": "respond-async"})
            ).json["job_id"]
            await witness.call("GET", f"/api/jobs/{job}")
            await witness.call("GET", f"/api/jobs/{job}?wait=10")
            await witness.call("GET", f"/api/jobs/{job}/events")
            await witness.call("GET", f"/api/jobs/{job}/events", headers={"Last-Event-ID": "end"})
        items = {"items": [{"body": 1}, 2]}
        assert (await witness.call("POST", f"{url}/invoke-batch", json=items)).status == 202
        called = (
            await witness.call("POST", f"{url}/invoke?callback_url=https://receiver.invalid/", json={"body": 1})
        ).json["job_id"]
        await witness.call("GET", f"/api/jobs/{called}?wait=10")
        page = (await witness.call("GET", f"/api/jobs/{called}/deliveries?status=pending")).json
        await witness.call("POST", f"/api/deliveries/{page['items'][0]['id']}/redeliver")
        for path in (
            "/api/deliveries",
            "/api/deliveries?limit=1",
            "/api/webhook-secret",
            "/api/functions",
            "/api/functions?limit=1",
            url,
            f"{url}/versions",
            f"{url}/versions/1",
            f"{url}/versions/3",
            f"{url}/logs",
            f"{url}/logs?limit=1&level=warning",
            f"{url}/invocations",
            f"{url}/invocations?limit=1&job_id={job}",
            "/api/jobs",
            "/api/jobs?limit=2&status=succeeded&function=f",
            "/api/health",
            "/api/ready",
            "/api/openapi.json",
            "/metrics",
        ):
            await witness.call("GET", path)
        sleeper = "def handler(e, c):\n    import time\n    time.sleep(60)\n"
        await client.deploy("sleeper", {"main.py": sleeper}, settings={"timeout_s": 90, "rate_per_s": 100})
        at_once = {"Prefer": "respond-async"}
        limited = await witness.call("POST", "/api/functions/sleeper/invoke", json={}, headers=at_once)
        assert "RateLimit-Remaining" in limited.headers
        running = limited.json["job_id"]
        await witness.call("POST", f"/api/jobs/{running}/cancel")
        await witness.call("POST", "/api/jobs/cancel?status=queued")
        await witness.call("POST", f"/api/jobs/{job}/redrive")
        await witness.call("POST", "/api/jobs/redrive?function=f")
        assert (await witness.call("POST", f"/api/jobs/{job}/cancel")).status == 409
        await witness.call("POST", "/api/webhook-secret/rotate")
        await witness.call("POST", f"{url}/stop")
        await witness.call("POST", f"{url}/start")
        await witness.call("DELETE", url)
        await witness.call("POST", "/api/auth/logout")
        assert (await witness.call("GET", "/api/auth/me")).status == 401

        declared = {
            (operation.handler.__name__, status)
            for operation in OPERATIONS
            for status in operation.responses
            if status < 400
        }
        assert witness.seen == declared
