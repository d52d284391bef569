"""What the command makes of its arguments before it speaks to any server."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cli.app import main
from cli.client import parse_retry_after, retry_delay_s
from cli.commands.deploy import LogTail
from cli.commands.invoke import pairs, read_body
from cli.commands.logs import in_order
from cli.environment import Environment
from cli.errors import ExitStatus, UsageError
from cli.output import Output
from cli.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@dataclass
class Ended:
    status: ExitStatus
    out: str
    err: str


def environment(tmp_path: Path, stdin: io.StringIO, *, terminal: bool = False) -> Environment:
    def no_password(prompt: str) -> str:
        raise EOFError

    return Environment(
        stdin=stdin,
        stdout=io.StringIO(),
        stderr=Terminal() if terminal else io.StringIO(),
        variables={"CONTAINERPUB_CONFIG_DIR": str(tmp_path / "config"), "API_URL": "http://127.0.0.1:9"},
        cwd=tmp_path,
        read_password=no_password,
    )


Call = Callable[..., Ended]


@pytest.fixture
def containerpub(tmp_path: Path) -> Call:
    def call(*args: str, stdin: str = "") -> Ended:
        env = environment(tmp_path, io.StringIO(stdin))
        status = main(args, env)
        assert isinstance(env.stdout, io.StringIO)
        assert isinstance(env.stderr, io.StringIO)
        return Ended(status, env.stdout.getvalue(), env.stderr.getvalue())

    return call


def test_help_goes_to_stdout_and_lists_the_commands(containerpub: Call) -> None:
    ended = containerpub("--help")
    assert ended.status is ExitStatus.OK
    assert ended.err == ""
    for name in ("register", "login", "logout", "me", "init", "deploy", "list", "invoke", "job", "jobs", "logs", "up"):
        assert f"  {name} " in ended.out


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("nonsense",),
        ("list", "--nonsense"),
        ("invoke",),
        ("job", "x", "--wait", "soon"),
        ("job", "x", "--wait", "-1"),
        ("jobs", "--limit", "0"),
        ("invoke", "f", "--body", "{"),
        ("invoke", "f", "--body", "NaN"),
        ("invoke", "f", "--body", "[" * 100_000),
        ("invoke", "f", "--body", "@missing.json"),
        ("invoke", "f", "--query", "novalue"),
        ("invoke", "f", "--async", "--wait", "1"),
        ("invoke", "f", "--delay", "-1"),
        ("invoke", "f", "--delay", "soon"),
        ("invoke", "f", "--delay", "1", "--run-at", "2030-01-31T09:00:00Z"),
        ("invoke", "f", "--priority", "highest"),
        ("delete", "f"),
        ("login",),
        ("login", "--email", "a@example.org"),
        ("login", "--email", "a@example.org", "--password-stdin"),
        ("deploy", "nowhere"),
        ("init", "x", "--runtime", "cobol"),
        ("up", "--engine", "vmware"),
        ("up", "--workers", "0"),
    ],
    ids=lambda args: " ".join(args)[:40],
)
def test_a_wrong_command_line_ends_with_2_and_says_what_to_do(containerpub: Call, args: tuple[str, ...]) -> None:
    ended = containerpub(*args)
    assert ended.status is ExitStatus.USAGE
    assert ended.out == ""
    assert ended.err.startswith(("Error: ", "Usage: "))


@pytest.mark.parametrize(
    "args", [("--json", "list", "--nonsense"), ("list", "--nonsense", "--json"), ("--json", "delete", "f")]
)
def test_with_json_a_mistake_is_one_document_on_stdout(containerpub: Call, args: tuple[str, ...]) -> None:
    ended = containerpub(*args)
    assert ended.status is ExitStatus.USAGE
    assert json.loads(ended.out)["error"]["exit_status"] == 2


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_cannot_lead_to_another_path(containerpub: Call, name: str) -> None:
    assert containerpub("logs", name).status is ExitStatus.USAGE


def test_nobody_logged_in_ends_with_3_and_names_the_command(containerpub: Call) -> None:
    ended = containerpub("list")
    assert ended.status is ExitStatus.NOT_ALLOWED
    assert "containerpub login" in ended.err


def test_a_password_is_never_taken_from_the_command_line(containerpub: Call) -> None:
    for command in ("login", "register"):
        assert containerpub(command, "--password", "x").status is ExitStatus.USAGE


def test_a_body_comes_from_the_argument_a_file_or_stdin(tmp_path: Path) -> None:
    (tmp_path / "event.json").write_text('{"from": "file"}')
    piped = environment(tmp_path, io.StringIO('{"from": "stdin"}'))
    assert read_body(piped, '{"from": "argument"}') == {"from": "argument"}
    assert read_body(piped, "@event.json") == {"from": "file"}
    assert read_body(piped, None) == {"from": "stdin"}
    assert read_body(environment(tmp_path, io.StringIO("1")), "@-") == 1
    assert read_body(environment(tmp_path, io.StringIO("")), None) is None
    assert read_body(environment(tmp_path, Terminal("not read")), None) is None


def test_pairs_split_at_their_first_separator() -> None:
    assert pairs(["a=b=c", "d="], "--query", "=") == {"a": "b=c", "d": ""}
    assert pairs(["X-A: b:c", "X-B=d"], "--header", ":=") == {"X-A": "b:c", "X-B": "d"}
    with pytest.raises(UsageError, match="twice"):
        pairs(["a=1", "a=2"], "--query", "=")


def test_markup_from_a_function_is_only_text_in_a_table(tmp_path: Path) -> None:
    env = environment(tmp_path, io.StringIO())
    Output(env, as_json=False).table(["NAME"], [["[red]x[/red] :smile: \x1b[31m [link=http://x]y[/link]"]])
    assert isinstance(env.stdout, io.StringIO)
    assert env.stdout.getvalue() == "NAME\n[red]x[/red] :smile: \\x1b[31m [link=http://x]y[/link]\n"


def test_a_document_obeys_nothing_and_keeps_its_value(tmp_path: Path) -> None:
    env = environment(tmp_path, io.StringIO())
    value = {"message": "\x1b[2J\x7f\x9b\u202e\ud800 é"}
    Output(env, as_json=True).document(value)
    assert isinstance(env.stdout, io.StringIO)
    assert env.stdout.getvalue().isascii()
    assert "\x7f" not in env.stdout.getvalue()
    assert json.loads(env.stdout.getvalue()) == value


def test_a_growing_build_log_is_shown_once_and_by_whole_lines(tmp_path: Path) -> None:
    env = environment(tmp_path, io.StringIO())
    assert isinstance(env.stderr, io.StringIO)
    with Progress(Output(env, as_json=False)) as progress:
        tail = LogTail(progress)
        seen = []
        for text, final in (
            ("one\ntw", False),
            ("one\ntwo\n", False),
            ("one\ntwo\nend", False),
            ("one\ntwo\nend", True),
        ):
            tail.update(text, final=final)
            seen.append(env.stderr.getvalue())
    assert seen == ["  one\n", "  one\n  two\n", "  one\n  two\n", "  one\n  two\n  end\n"]


def test_logs_are_oldest_first_whichever_way_they_are_listed() -> None:
    old, new = {"at": "2025-01-01T00:00:00Z"}, {"at": "2025-01-01T00:00:01Z"}
    assert in_order([new, old]) == [old, new]
    assert in_order([old, new]) == [old, new]


def test_retries_are_further_apart_each_time_and_never_sooner_than_asked() -> None:
    for retries in range(3):
        shortest, longest = (retry_delay_s(retries, jitter=jitter) for jitter in (0.0, 0.999))
        assert shortest < longest <= retry_delay_s(retries + 1, jitter=0.0)
    assert retry_delay_s(0, jitter=0.5, retry_after_s=7.0) == 7.0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("5", 5.0),
        ("soon", None),
        ("-1", None),
        ("Wed, 01 Jan 2025 00:00:09 GMT", 9.0),
        ("Tue, 31 Dec 2024 00:00:00 GMT", 0.0),
    ],
)
def test_retry_after_is_a_number_or_a_date(value: str | None, expected: float | None) -> None:
    assert parse_retry_after(value, now=datetime(2025, 1, 1, tzinfo=UTC)) == expected
