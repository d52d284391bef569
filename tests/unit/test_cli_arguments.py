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
from cli.environment import Environment
from cli.errors import ExitStatus, UsageError
from cli.event import encoded, pairs, read_body
from cli.job_ids import short_ids
from cli.job_state import job_fields, span, state_of
from cli.output import Output
from cli.progress import Progress
from cli.project import Project


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


def test_a_server_that_is_not_there_is_told_of_before_a_login_is(containerpub: Call) -> None:
    ended = containerpub("list")
    assert ended.status is ExitStatus.UNAVAILABLE
    assert "cannot be reached: nothing listens there" in ended.err
    assert "login" not in ended.err


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


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("1e400", ["1e400", "more than a number of 64 bits can be"]),
        ("-1e400", ["-1e400"]),
        ('{"a": [1, 2e999]}', ["2e999"]),
        ("NaN", ["NaN"]),
        ("Infinity", ["Infinity"]),
        ('"\\ud83d"', ["half of a pair"]),
        ('{"\\udc00": 1}', ["half of a pair"]),
    ],
)
def test_a_body_that_no_server_takes_is_refused_before_it_is_sent(tmp_path: Path, text: str, names: list[str]) -> None:
    with pytest.raises(UsageError) as refused:
        read_body(environment(tmp_path, io.StringIO()), text)
    assert [name for name in names if name not in refused.value.message] == []


def test_numbers_and_letters_that_there_are_are_sent(tmp_path: Path) -> None:
    env = environment(tmp_path, io.StringIO())
    assert read_body(env, "[1e308, 1e-400, 123456789012345678901234567890]") == [
        1e308,
        0.0,
        123456789012345678901234567890,
    ]
    assert read_body(env, '"\\ud83d\\ude00"') == "😀"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_is_read_whatever_an_editor_puts_before_it(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "event.json").write_bytes('{"name": "größe"}\r\n'.encode(encoding))
    assert read_body(environment(tmp_path, io.StringIO()), "@event.json") == {"name": "größe"}


def test_a_file_in_another_encoding_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "event.json").write_bytes('{"name": "größe"}'.encode("latin-1"))
    with pytest.raises(UsageError, match=r"it is not UTF-8.*Save it as UTF-8") as refused:
        read_body(environment(tmp_path, io.StringIO()), "@event.json")
    assert "--body-file" in str(refused.value.hint)


def test_piped_text_may_begin_with_a_mark(tmp_path: Path) -> None:
    assert read_body(environment(tmp_path, io.StringIO("\ufeff1")), "@-") == 1


def test_the_bytes_of_a_file_are_sent_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"\xff\x00\x01")
    assert encoded(environment(tmp_path, io.StringIO()), "image") == "/wAB"
    with pytest.raises(UsageError, match="nothing cannot be read: No such file"):
        encoded(environment(tmp_path, io.StringIO()), "nothing")


def test_pairs_split_at_their_first_separator() -> None:
    assert pairs(["a=b=c", "d="], "--query", "=") == {"a": "b=c", "d": ""}
    assert pairs(["X-A: b:c", "X-B=d"], "--header", ":=") == {"X-A": "b:c", "X-B": "d"}
    assert pairs(["a=1", "b=x", "a=2", "a=3"], "--query", "=") == {"a": ["1", "2", "3"], "b": "x"}


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


PROJECT = {
    "containerpub.toml": 'name = "f"\nhandler = "dist/main:handler"\n',
    "dist/main.js": "",
    "venv/pyvenv.cfg": "",
    ".env.local": "",
}


def test_a_dry_run_lists_what_would_be_uploaded_and_what_is_left_out(containerpub: Call, tmp_path: Path) -> None:
    for name, content in PROJECT.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    ended = containerpub("deploy", "--dry-run")
    assert ended.status is ExitStatus.OK, ended.err
    assert ended.out.splitlines() == ["containerpub.toml", "dist/main.js"]
    assert ended.err.splitlines() == [
        "left out: .env.local (.env.*, by default)",
        "left out: venv/ (venv/, by default)",
    ]
    found = json.loads(containerpub("deploy", "--dry-run", "--json").out)
    assert [each["name"] for each in found["files"]] == ["containerpub.toml", "dist/main.js"]
    assert [each["name"] for each in found["left_out"]] == [".env.local", "venv/"]


@pytest.mark.parametrize("handler", ["dist/main:handler", "./dist/main:handler", "dist.main:handler"])
def test_a_handler_that_is_left_out_is_told_of_before_anything_is_sent(tmp_path: Path, handler: str) -> None:
    project = Project(folder=tmp_path, name="f", settings={"handler": handler})
    with pytest.raises(UsageError, match="is in dist/, which is not deployed") as refused:
        project.check_handler_is_in([("dist/", "dist/, .gitignore")])
    assert refused.value.hint == "Put the line !dist/ into .containerpubignore."
    with pytest.raises(UsageError):
        project.check_handler_is_in([("dist/main.js", "*.js, .gitignore")])
    project.check_handler_is_in([("dist.old/", ""), ("dis", ""), ("main.js", ""), ("lib/", "")])


def test_ids_are_shortened_to_what_tells_them_apart() -> None:
    ids = ["01a22839-b723-753c-b69b-b03d162b12ec", "01a22839-b75b-7cb3-9b06-90bd64d34287"]
    assert short_ids(ids) == ["01a22839-b723", "01a22839-b75b"]
    same = [ids[0], "01a22839-b723-753d-b69b-b03d162b12ec"]
    assert short_ids(same) == ["01a22839-b723-753c", "01a22839-b723-753d"]
    assert short_ids([ids[0], ids[0]]) == ["01a22839-b723"] * 2
    assert short_ids([]) == []


@pytest.mark.parametrize(
    ("milliseconds", "shown"),
    [
        (0.4, "0 ms"),
        (999, "999 ms"),
        (1000, "1.0 s"),
        (59_900, "59.9 s"),
        (61_000, "1 min 1 s"),
        (3_720_000, "1 h 2 min"),
    ],
)
def test_durations_are_told_in_their_unit(milliseconds: float, shown: str) -> None:
    assert span(milliseconds) == shown


def test_a_job_shows_what_one_looks_for() -> None:
    job = {
        "id": "01a22839-b723-753c-b69b-b03d162b12ec",
        "function": "resize",
        "function_id": "f",
        "kind": "invoke",
        "status": "running",
        "priority": "normal",
        "created_at": "2026-11-29T16:53:20.805123+00:00",
        "timings": {"queue_ms": 3.2, "run_ms": None, "total_ms": None},
        "progress": {"attempt": 1, "fraction": 0.4, "message": "resized"},
    }
    assert state_of(job) == ["invoke", "running", "2026-11-29 16:53:20Z", None, "40% resized"]
    later = job | {"status": "scheduled", "run_at": "2026-11-29T17:00:00+00:00", "progress": None}
    assert state_of(later)[-1] == "due 2026-11-29 17:00:00Z"
    failed = job | {"status": "failed", "reason": "timeout", "progress": None, "timings": {"run_ms": 5003.0}}
    assert state_of(failed)[-2:] == ["5.0 s", "timeout"]
    fields = dict(job_fields(later))
    assert (fields["function"], fields["run_at"], fields["priority"]) == ("resize", "2026-11-29 17:00:00Z", None)
    assert dict(job_fields(job))["progress"] == "40% resized"
    assert dict(job_fields(job))["timings"] == "queue 3 ms"
