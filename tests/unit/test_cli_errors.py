"""The exit statuses: complete, and documented as they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from cli.app import app
from cli.errors import EXIT_STATUS, ApiError, ExitStatus, exit_status
from shared.errors import HTTP_STATUS, ContainerPubError

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("error", HTTP_STATUS, ids=lambda error: error.__name__)
def test_every_error_of_the_server_has_an_exit_status(error: type[ContainerPubError]) -> None:
    assert error.default_code in EXIT_STATUS


@pytest.mark.parametrize(
    ("code", "http_status", "expected"),
    [
        ("unauthenticated", 401, ExitStatus.NOT_ALLOWED),
        ("a_code_of_tomorrow", 401, ExitStatus.NOT_ALLOWED),
        ("a_code_of_tomorrow", 404, ExitStatus.NOT_FOUND),
        ("a_code_of_tomorrow", 418, ExitStatus.REJECTED),
        ("a_code_of_tomorrow", 503, ExitStatus.UNAVAILABLE),
        ("queue_timeout", 503, ExitStatus.WAIT_RAN_OUT),
        ("worker_lost", 503, ExitStatus.UNAVAILABLE),
    ],
)
def test_the_code_goes_before_the_http_status(code: str, http_status: int, expected: ExitStatus) -> None:
    assert exit_status(code, http_status) is expected


def test_an_answer_that_is_no_problem_document_still_ends_with_a_status() -> None:
    error = ApiError(http_status=502, problem={})
    assert (error.code, error.status) == ("http_502", ExitStatus.UNAVAILABLE)
    assert ApiError(http_status=404, problem={"code": 5, "detail": ["x"]}).status is ExitStatus.NOT_FOUND


def test_the_document_of_an_error_keeps_what_the_server_added() -> None:
    problem = {"code": "invalid", "detail": "No.", "field": "timeout_s", "request_id": "r", "exit_status": 99}
    document = ApiError(http_status=422, problem=problem).document()
    assert document["field"] == "timeout_s"
    assert document["exit_status"] == 5


def test_the_page_lists_every_exit_status() -> None:
    table = dict(re.findall(r"^\| (\d+) \| `(\w+)` \|", PAGE, re.MULTILINE))
    assert {int(number): name for number, name in table.items()} == {int(each): each.name for each in ExitStatus}


def test_the_page_lists_which_code_leads_to_which_status() -> None:
    table = dict(re.findall(r"^\| `([a-z0-9_]+)` \| (\d+) \|", PAGE, re.MULTILINE))
    assert {code: int(status) for code, status in table.items()} == {c: int(s) for c, s in EXIT_STATUS.items()}


def test_the_page_describes_every_command_with_every_option() -> None:
    sections = dict(re.findall(r"^### `containerpub ([a-z-]+)[^`]*`\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert sections.keys() == commands.keys()
    for name, command in commands.items():
        options = {each for parameter in command.params for each in parameter.opts if each.startswith("--")}
        documented = set(re.findall(r"^\| `(--[a-z-]+)", sections[name], re.MULTILINE))
        assert documented == options - {"--json", "--help"}, name
