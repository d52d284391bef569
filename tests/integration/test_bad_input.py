"""Input that is broken, too large, too deep or beyond what stores hold: a clear 4xx, never a 500, nothing stuck."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from api.app import OPERATIONS
from api.call import SMALL_BYTES
from api.operation import Operation
from tests.client import Answer, Client
from tests.deployment import Platform

ECHO = """
def handler(event, context):
    print(event["body"])
    return event

def raises(event, context):
    raise ValueError(event["body"])

def returns(event, context):
    return eval(event["body"])

def prints(event, context):
    import sys
    print(eval(event["body"]))
    sys.stderr.write(eval(event["body"]))
    sys.stderr.flush()
    context.logger.warning("%s", eval(event["body"]))
"""


@pytest.fixture
async def client(shared_platform: Platform) -> AsyncIterator[Client]:
    async with shared_platform.client() as client:
        yield await client.register()


async def echo(client: Client, handler: str = "handler") -> str:
    """Deploy a function of that handler; its name."""
    name = f"f-{uuid4().hex[:8]}"
    assert (await client.deploy(name, {"main.py": ECHO}, settings={"handler": f"main:{handler}"})).status == 201
    return name


async def post(client: Client, path: str, data: bytes, headers: dict[str, str] | None = None) -> Answer:
    return await client.call("POST", path, data=data, headers={"Content-Type": "application/json", **(headers or {})})


BROKEN = {
    "nothing there": b" ",
    "not JSON": b"hello",
    "cut": b'{"body": ',
    "trailing comma": b'{"body": 1,}',
    "single quotes": b"{'body': 1}",
    "comment": b'{"body": 1} // no',
    "two documents": b'{"body": 1}{"body": 2}',
    "byte order mark": b'\xef\xbb\xbf{"body": 1}',
    "utf-16": '{"body": 1}'.encode("utf-16"),
    "not utf-8": b'{"body": "\xff\xfe"}',
    "overlong utf-8": b'{"body": "\xc0\x80"}',
    "surrogate as utf-8": b'{"body": "\xed\xa0\x80"}',
    "lone surrogate escape": b'{"body": "\\ud800"}',
    "lone low surrogate": b'{"body": "\\udc00x"}',
    "surrogate in a name": b'{"body": {"\\ud800": 1}}',
    "raw control character": b'{"body": "\x00"}',
    "NaN": b'{"body": NaN}',
    "Infinity": b'{"body": Infinity}',
    "-Infinity": b'{"body": -Infinity}',
    "1e999": b'{"body": 1e999}',
    "-1e999": b'{"body": [-1e999]}',
    "5,000 digits": b'{"body": ' + b"9" * 5000 + b"}",
    "-5,000 digits": b'{"body": -' + b"9" * 5000 + b"}",
    "5,000 digits and an exponent": b'{"body": ' + b"9" * 5000 + b"e10}",
    "leading zero": b'{"body": 01}',
    "100,000 levels of lists": b'{"body": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "100,000 levels of objects": b'{"body": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    "100,000 levels, never closed": b"[" * 100_000,
    "1,000 levels": b'{"body": ' + b"[" * 1000 + b"]" * 1000 + b"}",
    "65 levels": b'{"body": ' + b"[" * 64 + b"]" * 64 + b"}",
    "65 levels of objects": b'{"a":' * 65 + b"1" + b"}" * 65,
}


@pytest.mark.parametrize("case", BROKEN)
async def test_h3_h4_h5_broken_json_is_400(client: Client, case: str) -> None:
    for path in ("/api/functions/none/invoke", "/api/auth/login", "/api/auth/register", "/api/auth/refresh"):
        answer = await post(client, path, BROKEN[case])
        if "/auth/" in path and len(BROKEN[case]) > SMALL_BYTES:  # not looked at
            assert (answer.status, answer.json["code"]) == (413, "too_large"), (path, answer)
            continue
        assert answer.status == 400, (path, answer)
        assert answer.json["code"] in ("invalid_json", "json_too_deep")
        assert answer.headers["Content-Type"] == "application/problem+json"


async def test_h3_64_levels_and_long_numbers_pass_and_arrive_as_sent(client: Client) -> None:
    name = await echo(client)
    for text in (
        "[" * 63 + "]" * 63,
        "9" * 300,
        "-" + "9" * 25,
        "0." + "1" * 400,
        "1e-999",
        "-0.0",
        "1E+3",
        '{"a": 1, "b": [true, null, "\\u00e4"]}',
    ):
        answer = await post(client, f"/api/functions/{name}/invoke", f'{{"body": {text}}}'.encode())
        assert answer.status == 200, (text[:30], answer)
        assert answer.json["result"]["body"] == json.loads(text)


async def test_h5_nul_round_trips_in_every_part_of_an_event(client: Client) -> None:
    name = await echo(client)
    event = {
        "body": {"te\x00xt": "a\x00b", "list": ["\x00"]},
        "query": {"k\x00": "v\x00"},
        "headers": {"X-\x00": "\x00", "Y" * 5000: "z" * 5000},
        "method": "P\x00ST",
        "path": "/\x00",
    }
    for prefer in ({}, {"Prefer": "respond-async"}, {"Prefer": "wait=10"}):
        answer = await client.call("POST", f"/api/functions/{name}/invoke", json=event, headers=prefer)
        assert answer.status in (200, 202), answer
        job = await client.job(answer.json["job_id"], wait=10)
        assert (job["status"], job["result"]) == ("succeeded", event), prefer
    records = (await client.call("GET", f"/api/functions/{name}/invocations")).json["items"]
    assert [record["outcome"] for record in records] == ["succeeded"] * 3
    assert records[0]["request"]["query"]
    assert records[0]["request"]["headers"]


@pytest.mark.parametrize(
    "text", ["'a\\0b'", "'\\ud800'", "'\\x1b[31m'", "'\\r\\n'", "'\\U0010ffff\\ufffe'", "'\\x7f\\x80'"]
)
async def test_h5_hostile_text_in_logs_is_stored_and_readable(client: Client, text: str) -> None:
    name = await echo(client, "prints")
    answer = await client.invoke(name, text)
    assert answer.json["success"], answer
    assert (await client.job(answer.json["job_id"], wait=10))["status"] == "succeeded"
    logs = (await client.call("GET", f"/api/functions/{name}/logs")).json["items"]
    assert {line["stream"] for line in logs} == {"stdout", "stderr", "logger"}
    record = (await client.call("GET", f"/api/functions/{name}/invocations")).json["items"][0]
    assert record["logs"]["container"]["stdout"]


@pytest.mark.parametrize("text", ["a\x00b", "\x1b[31m", "\uffff", "x" * 100_000])
async def test_h5_hostile_text_in_an_error_is_stored_and_readable(client: Client, text: str) -> None:
    name = await echo(client, "raises")
    answer = await client.invoke(name, text)
    assert answer.json["reason"] == "handler_error"
    job = await client.job(answer.json["job_id"], wait=10)
    assert (job["status"], job["reason"]) == ("failed", "handler_error")
    assert job["error"]["message"] == answer.json["error"]["message"]
    record = (await client.call("GET", f"/api/functions/{name}/invocations")).json["items"][0]
    assert record["logs"]["errors"][0]["code"] == "handler_error"


@pytest.mark.parametrize(
    "expression",
    [
        "object()",
        "{1, 2}",
        "b'bytes'",
        "float('nan')",
        "float('inf')",
        "[-float('inf')]",
        "'\\ud800'",
        "{'\\udfff': 1}",
        "{(1, 2): 3}",
        "(lambda a: a.append(a) or a)([])",
        "__import__('functools').reduce(lambda a, _: [a], range(100000), 1)",
        "9**6000",
    ],
)
async def test_h4_h5_result_that_is_no_json_is_invalid_result(client: Client, expression: str) -> None:
    name = await echo(client, "returns")
    answer = await client.invoke(name, expression)
    assert (answer.status, answer.json["success"], answer.json["reason"]) == (200, False, "invalid_result"), answer
    job = await client.job(answer.json["job_id"], wait=10)
    assert (job["status"], job["reason"]) == ("failed", "invalid_result")
    assert (await client.invoke(name, "1 + 1")).json["result"] == 2


@pytest.mark.parametrize("expression", ["'\\0'", "{'\\0': ['\\0']}", "'\\U0001f600'", "None", "[]", "0", "''", "False"])
async def test_h5_unusual_result_is_the_result(client: Client, expression: str) -> None:
    name = await echo(client, "returns")
    answer = await client.invoke(name, expression)
    assert answer.json["result"] == eval(expression)
    assert (await client.job(answer.json["job_id"], wait=10))["result"] == eval(expression)


async def test_result_over_the_limit_is_result_too_large(client: Client) -> None:
    name = await echo(client, "returns")
    answer = await client.invoke(name, "'x' * 7_000_000")
    assert answer.json["reason"] == "result_too_large"
    assert (await client.invoke(name, "len('x' * 7_000_000)")).json["result"] == 7_000_000


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        (b'{"bdoy": 1}', "invalid_field", "bdoy"),
        (b'{"body": 1, "extra": 1}', "invalid_field", "extra"),
        (b'{"name": "x", "age": 7}', "invalid_field", "name"),
        (b'{"query": 7}', "invalid_field", "query"),
        (b'{"query": [["a"]]}', "invalid_field", "query"),
        (b'{"query": [[1, "a"]]}', "invalid_field", "query"),
        (b'{"headers": "x"}', "invalid_field", "headers"),
        (b'{"headers": ["a: b"]}', "invalid_field", "headers"),
        (b'{"body_base64": 7}', "invalid_field", "body_base64"),
        (b'{"body_base64": "/wA"}', "invalid_field", "body_base64"),
        (b'{"body_base64": "_wAB"}', "invalid_field", "body_base64"),
        (b'{"body_base64": "/w\\nAB"}', "invalid_field", "body_base64"),
        (b'{"body": 1, "body_base64": "/wAB"}', "invalid_field", "body_base64"),
        (b'{"method": 7}', "invalid_field", "method"),
        (b'{"path": ["/"]}', "invalid_field", "path"),
        (b"[]", "invalid_body", None),
        (b"7", "invalid_body", None),
        (b'"text"', "invalid_body", None),
        (b"null", "invalid_body", None),
    ],
)
async def test_event_of_a_wrong_shape_is_422_with_the_field(
    client: Client, body: bytes, code: str, field: str | None
) -> None:
    answer = await post(client, "/api/functions/none/invoke", body)
    assert (answer.status, answer.json["code"], answer.json.get("field")) == (422, code, field)


async def test_a_payload_that_is_not_wrapped_is_told_where_it_belongs(client: Client) -> None:
    answer = await post(client, "/api/functions/none/invoke", b'{"name": "x"}')
    assert "there are: body, body_base64, query, headers, method, path" in answer.json["detail"]
    assert 'stands in body: {"body": …}' in answer.json["detail"]


async def test_body_over_the_limit_is_413_however_its_length_is_told(client: Client) -> None:
    big = b'{"body": "' + b"x" * 6_000_001 + b'"}'

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(big), 500_000):
            yield big[start : start + 500_000]

    for path in ("/api/functions/none/invoke", "/api/auth/login"):
        for data in (io.BytesIO(big), chunks()):
            answer = await client.call("POST", path, data=data)
            assert (answer.status, answer.json["code"]) == (413, "too_large")


async def test_body_at_the_limit_is_served(client: Client) -> None:
    name = await echo(client, "handler")
    body = b'{"body":"' + b"x" * (5_900_000) + b'"}'
    answer = await client.call("POST", f"/api/functions/{name}/invoke", data=io.BytesIO(body))
    assert answer.status == 200
    assert len(answer.json["result"]["body"]) == 5_900_000


def cursor(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


NO_CURSORS = [
    "",
    "x",
    "%00",
    "!!!!",
    "ä",
    "A" * 5000,
    *(
        cursor(value)
        for value in (
            None,
            -7,
            {},
            [],
            "a\x00b",
            [1, 2, 3],
            ["x", "y", 1],
            ["0001-01-01T00:00:00+14:00", "0" * 32, 1],
            ["0001-01-01T00:00:00+14:00", "0" * 32, 1, 1],
            ["2024-01-01T00:00:00Z", "0" * 32, 2**63],
            ["2024-01-01T00:00:00Z", "0" * 32, 1, 2**40],
            ["2024-01-01T00:00:00Z", "0" * 32, -1, 1],
            ["2024-01-01T00:00:00Z", 7, 1, 1],
            ["2024-01-01T00:00:00Z", "0" * 32, 1.5],
            {"a": 1, "b": 2, "c": 3},
        )
    ),
]


@pytest.mark.parametrize(
    "path",
    [
        "/api/functions",
        "/api/jobs",
        "/api/functions/{}/versions",
        "/api/functions/{}/logs",
        "/api/functions/{}/invocations",
    ],
)
async def test_cursor_that_is_not_ours_is_400(client: Client, path: str) -> None:
    name = await echo(client)
    for value in NO_CURSORS:
        answer = await client.call("GET", f"{path.format(name)}?cursor={value}")
        assert (answer.status, answer.json["code"]) == (400, "invalid_cursor"), value


@pytest.mark.parametrize(
    "limit", ["0", "-1", "1001", "x", "", "1.5", "1e3", "%31%00", "٣", "9" * 5000, "0x10", "+5", "%205", "true"]
)
async def test_limit_out_of_range_is_400(client: Client, limit: str) -> None:
    for path in ("/api/functions", "/api/jobs"):
        answer = await client.call("GET", f"{path}?limit={limit}")
        assert (answer.status, answer.json["field"]) == (400, "limit")


@pytest.mark.parametrize("wait", ["x", "-1", "nan", "inf", "-inf", "1e999", "", "%00", "1,5"])
async def test_wait_that_is_no_number_of_seconds_is_400(client: Client, wait: str) -> None:
    name = await echo(client)
    job = (await client.invoke(name, prefer="respond-async")).json["job_id"]
    answer = await client.call("GET", f"/api/jobs/{job}?wait={wait}")
    assert (answer.status, answer.json["code"]) == (400, "invalid_parameter")


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.handler.__name__)
async def test_a_parameter_that_a_call_does_not_have_is_refused(client: Client, operation: Operation) -> None:
    path = re.sub(r"{[a-z_]+}", "x", operation.path)
    answer = await client.call(operation.method, f"{path}?state=failed")
    assert (answer.status, answer.json["code"], answer.json["field"]) == (400, "unknown_parameter", "state")


@pytest.mark.parametrize("prefer", ["wait=x", "wait=-1", "wait=nan", "wait=inf", "wait=", 'wait="x"', "wait"])
async def test_prefer_with_a_broken_wait_is_400(client: Client, prefer: str) -> None:
    answer = await client.invoke("none", prefer=prefer)
    assert (answer.status, answer.json["code"]) == (400, "invalid_parameter")


async def test_other_parameters_are_checked(client: Client) -> None:
    name = await echo(client)
    for path, field in (
        ("/api/jobs?status=lost", "status"),
        ("/api/jobs?status=%00", "status"),
        (f"/api/functions/{name}/logs?level=loud", "level"),
        (f"/api/functions/{name}/logs?job_id=7", "job_id"),
        (f"/api/functions/{name}/invocations?job_id=%00", "job_id"),
    ):
        answer = await client.call("GET", path)
        assert (answer.status, answer.json["field"]) == (400, field)
    for query in ("priority=low&priority=high", "delay=1&delay=1"):
        answer = await client.call("POST", f"/api/functions/{name}/invoke?{query}", json={})
        assert (answer.status, answer.json["code"]) == (400, "invalid_parameter")
        assert "given twice" in answer.json["detail"]
    for query in ("alias=5", "callback=x", "%00=1", "%ff=1"):
        answer = await client.call("POST", f"/api/functions/{name}/invoke?{query}", json={})
        assert (answer.status, answer.json["code"]) == (400, "unknown_parameter")


@pytest.mark.parametrize(
    "reference", ["%00", "a%00b", "%ff", "%ED%A0%80", "%2e%2e", "..%2f..", "'%20OR%201=1", "x" * 5000, "%E2%80%AE", "ä"]
)
async def test_names_of_nothing_in_a_path_are_404(client: Client, reference: str) -> None:
    for method, path in (
        ("GET", "/api/functions/{}"),
        ("GET", "/api/functions/{}/versions"),
        ("GET", "/api/functions/{}/versions/1"),
        ("GET", "/api/functions/{}/logs"),
        ("GET", "/api/functions/{}/invocations"),
        ("DELETE", "/api/functions/{}"),
        ("POST", "/api/functions/{}/invoke"),
        ("GET", "/api/jobs/{}"),
        ("POST", "/api/jobs/{}/cancel"),
        ("GET", "/api/jobs?function={}"),
    ):
        answer = await client.call(method, path.format(reference), json={} if method == "POST" else None)
        assert answer.status == 404, (method, path, answer)
        assert answer.json["request_id"]


@pytest.mark.parametrize("number", ["0", "2", "-1", "x", "%00", "%ff", "9" * 30, "1.0", "١"])
async def test_versions_that_do_not_exist_are_404(client: Client, number: str) -> None:
    name = await echo(client)
    assert (await client.call("GET", f"/api/functions/{name}/versions/{number}")).status == 404


async def test_raw_bytes_in_a_path_are_404(client: Client, shared_platform: Platform) -> None:
    for path in (b"/api/functions/\xff\xfe", b"/api/functions/x/versions/\xed\xa0\x80", b"/\xff"):
        reader, writer = await asyncio.open_connection("127.0.0.1", shared_platform.port)
        auth = f"Authorization: Bearer {client.token}".encode()
        writer.write(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + auth + b"\r\n\r\n")
        reply = await asyncio.wait_for(reader.read(), 10)
        assert reply.split(b" ", 2)[1] in (b"404", b"400"), reply
        assert b"problem+json" in reply
        writer.close()
        await writer.wait_closed()


async def test_unknown_path_is_404_and_wrong_method_405_with_allow(client: Client) -> None:
    for path in ("/", "/api", "/api/nothing", "/api/functions/", "//api/health", "/api/health/../../etc/passwd"):
        answer = await client.call("GET", path)
        assert (answer.status, answer.json["code"]) == (404, "not_found"), path
        assert answer.headers["Content-Type"] == "application/problem+json"
    for method, path, allowed in (
        ("PUT", "/api/functions", "GET"),
        ("POST", "/api/health", "GET"),
        ("DELETE", "/api/auth/login", "POST"),
        ("PROPFIND", "/api/jobs", "GET"),
        ("PATCH", "/api/functions/x", "DELETE,GET"),
    ):
        answer = await client.call(method, path)
        assert (answer.status, answer.json["code"]) == (405, "method_not_allowed"), (method, path)
        assert answer.headers["Allow"] == allowed
        assert answer.headers["Content-Type"] == "application/problem+json"


async def test_nothing_of_all_this_was_an_error_of_ours(shared_platform: Platform) -> None:
    log = shared_platform.log("api").read_text(errors="replace")
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:3000]
    assert "status=500" not in log
