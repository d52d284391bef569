"""The tree of errors, its statuses, and the page that tells clients of every code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import orjson
import pytest

from api.middleware import problem
from shared import errors
from shared.errors import HTTP_STATUS, ContainerPubError, Invalid, TooMany, http_status
from shared.jobs import PLATFORM_REASONS, Reason
from shared.postgres.pool import _CONSTRAINTS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "errors.md"
TREE = {name: cls for name, cls in vars(errors).items() if isinstance(cls, type) and issubclass(cls, ContainerPubError)}
START_UP = {"misconfigured", "folder_in_use", "error"}
"""Codes that no request is ever answered with."""


def codes_in_source() -> Iterator[tuple[str, int]]:
    """Every code that a request may be answered with, and its status, as the source has them."""
    for folder in ("api", "shared"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    yield from _codes_of_call(node)
    for cls, code, _, _ in _CONSTRAINTS.values():
        yield code, HTTP_STATUS[cls]
    for kind in TREE.values():
        yield kind.default_code, HTTP_STATUS[kind]
    for reason in PLATFORM_REASONS:
        yield reason.value, 503
    for reason in (Reason.ANALYSIS_REJECTED, Reason.BUILD_FAILED, Reason.ARCHIVE_REJECTED):
        yield reason.value, 422
    yield "cancelled", 422  # a deploy that was waited for
    for code, status in (("not_found", 404), ("method_not_allowed", 405), ("too_large", 413)):
        yield code, status  # aiohttp's own answers, as api/middleware.py renames them


def _codes_of_call(node: ast.Call) -> Iterator[tuple[str, int]]:
    name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
    if name == "rejected" and isinstance(node.args[0], ast.Constant):
        yield str(node.args[0].value), 422
    for keyword in node.keywords:
        if name in TREE and keyword.arg == "code" and isinstance(keyword.value, ast.Constant):
            status = {"malformed_request": 400}.get(str(keyword.value.value), HTTP_STATUS[TREE[name]])
            yield str(keyword.value.value), status


def codes_on_page() -> dict[str, set[int]]:
    rows = re.findall(r"^\| `([a-z_]+)` \| ([0-9, ]+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    assert all(meaning.strip() for _, _, meaning in rows)
    assert len({code for code, _, _ in rows}) == len(rows)
    return {code: {int(status) for status in statuses.split(",")} for code, statuses, _ in rows}


def test_page_has_every_code_with_its_statuses_and_no_other() -> None:
    found: dict[str, set[int]] = {}
    for code, status in codes_in_source():
        if code not in START_UP:
            found.setdefault(code, set()).add(status)
    assert codes_on_page() == found


@pytest.mark.parametrize("cls", TREE.values(), ids=TREE)
def test_every_error_has_a_status_and_a_code(cls: type[ContainerPubError]) -> None:
    assert cls in HTTP_STATUS
    assert 400 <= HTTPStatus(HTTP_STATUS[cls]) < 600
    assert re.fullmatch(r"[a-z][a-z_]*", cls.default_code)
    assert http_status(cls("x")) == HTTP_STATUS[cls]


def test_table_has_no_class_that_is_not_in_the_tree() -> None:
    assert set(HTTP_STATUS) == set(TREE.values())


def test_class_without_a_row_takes_its_parent_s_status() -> None:
    class Special(Invalid):
        pass

    assert http_status(Special("x")) == 422


def test_docstring_draws_every_class() -> None:
    for name in TREE:
        assert name in (errors.__doc__ or "")


def test_problem_document_has_what_clients_rely_on() -> None:
    error = TooMany("Slow down.", code="too_many_logins", field="email", retry_after_s=1.2, extra={"limit": 10})
    response = problem(error, "request-1")
    assert response.status == 429
    assert response.content_type == "application/problem+json"
    assert response.headers["Retry-After"] == "2"
    assert isinstance(response.body, bytes)
    assert orjson.loads(response.body) == {
        "type": "about:blank",
        "title": "Too Many Requests",
        "status": 429,
        "code": "too_many_logins",
        "detail": "Slow down.",
        "request_id": "request-1",
        "field": "email",
        "limit": 10,
    }


def test_problem_document_holds_any_text() -> None:
    response = problem(Invalid("bad \udcff\ud800\x00 bytes", field="\udc80"), "r")
    assert isinstance(response.body, bytes)
    document = orjson.loads(response.body)
    assert document["detail"] == "bad \\udcff\\ud800\x00 bytes"
    assert document["field"] == "\\udc80"
