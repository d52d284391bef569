"""The command against a running API: every test is an account of its own."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PASSWORD = "correct horse battery staple"
CODE = """
import sys


def handler(event, context):
    body = event["body"]
    if body == "fail":
        raise ValueError("asked to \\x1b[31mfail")
    print("hello \\x1b[2J\\x9b31m\\u202e[red]log[/red]")
    return {"got": body, "method": event["method"], "query": event["query"]}
"""

Done = subprocess.CompletedProcess[str]
Command = Callable[..., Done]


def variables(tmp_path: Path, api_url: str) -> dict[str, str]:
    own = {"API_URL": api_url, "CONTAINERPUB_CONFIG_DIR": str(tmp_path / "config"), "HOME": str(tmp_path)}
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TERM": "xterm", **own}


@pytest.fixture
def containerpub(api_url: str, tmp_path: Path) -> Command:
    def call(*args: str, stdin: str = "") -> Done:
        return subprocess.run(
            [sys.executable, "-m", "cli", *args],
            cwd=tmp_path,
            env=variables(tmp_path, api_url),
            input=stdin,
            text=True,
            capture_output=True,
            timeout=100,
        )

    return call


@pytest.fixture
def email() -> str:
    return f"user-{uuid.uuid4().hex[:12]}@example.org"


@pytest.fixture
def account(containerpub: Command, email: str) -> Command:
    name = email.partition("@")[0]
    done = containerpub("register", "--email", email, "--username", name, "--password-stdin", stdin=PASSWORD)
    assert done.returncode == 0, done.stderr
    return containerpub


@pytest.fixture
def greeter(account: Command, tmp_path: Path) -> Command:
    """An account with the function ``greeter`` deployed."""
    write_project(tmp_path, CODE)
    done = account("deploy", "greeter")
    assert done.returncode == 0, done.stderr
    assert "greeter version 1 is live." in done.stdout
    return account


def write_project(tmp_path: Path, code: str) -> None:
    (tmp_path / "greeter").mkdir(exist_ok=True)
    (tmp_path / "greeter" / "containerpub.toml").write_text('runtime = "python"\nhandler = "main:handler"\n')
    (tmp_path / "greeter" / "main.py").write_text(code)


def test_an_account_registers_leaves_and_comes_back(account: Command, email: str, tmp_path: Path) -> None:
    assert json.loads(account("me", "--json").stdout)["email"] == email
    assert (tmp_path / "config" / "config.json").stat().st_mode & 0o777 == 0o600
    assert account("logout").returncode == 0
    assert account("me").returncode == 3
    assert account("login", "--email", email, "--password-stdin", stdin="wrong " + PASSWORD).returncode == 3
    assert account("login", "--email", email, "--password-stdin", stdin=PASSWORD + "\n").returncode == 0
    assert account("me").returncode == 0


def test_an_access_token_that_is_not_accepted_is_renewed(account: Command, tmp_path: Path) -> None:
    file = tmp_path / "config" / "config.json"
    stored = json.loads(file.read_text())
    file.write_text(json.dumps({**stored, "access_token": "not a token"}))
    assert account("me").returncode == 0
    assert json.loads(file.read_text())["refresh_token"] != stored["refresh_token"]


def test_the_template_of_init_deploys_and_answers(account: Command) -> None:
    made = account("init", "fresh", "--runtime", "python", "--name", "fresh", "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["name"] == "fresh"
    assert account("init", "fresh").returncode == 2
    done = account("deploy", "fresh")
    assert done.returncode == 0, done.stderr
    assert account("invoke", "fresh").returncode == 0


def test_warnings_of_the_analysis_are_shown_by_the_command_and_kept_with_the_version(
    account: Command, tmp_path: Path
) -> None:
    write_project(tmp_path, "def handler(event, context): return 1\n")
    (tmp_path / "greeter" / "old.py").write_text("print 1\n")
    warning = "warning: old.py:1: Missing parentheses"
    shown = account("deploy", "greeter")
    assert shown.returncode == 0, shown.stderr
    assert warning in shown.stdout + shown.stderr
    write_project(tmp_path, "def handler(event, context): return 2\n")
    kept = account("deploy", "greeter", "--json")
    assert warning in json.loads(kept.stdout)["build_log"]


def test_a_function_is_deployed_invoked_listed_and_deleted(greeter: Command) -> None:
    done = greeter("invoke", "greeter", "--body", '{"a": "é"}', "--query", "q=1", "--method", "PUT")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"got": {"a": "é"}, "method": "PUT", "query": {"q": "1"}}
    assert json.loads(greeter("invoke", "greeter", "--json", stdin="[1]").stdout)["result"]["got"] == [1]
    items = json.loads(greeter("list", "--json").stdout)["items"]
    assert [(item["name"], item["live_version"]) for item in items] == [("greeter", 1)]
    assert greeter("stop", "greeter").stdout == "Stopped greeter.\n"
    assert greeter("invoke", "greeter").returncode != 0
    assert json.loads(greeter("start", "greeter", "--json").stdout)["status"] == "active"
    assert greeter("delete", "greeter").returncode == 2
    assert greeter("delete", "greeter", "--yes").returncode == 0
    assert greeter("invoke", "greeter").returncode == 4
    assert json.loads(greeter("list", "--json").stdout) == {"items": []}


def test_a_job_is_followed_to_its_end(greeter: Command) -> None:
    for body, status in (('"ok"', 0), ('"fail"', 1)):
        done = greeter("invoke", "greeter", "--body", body, "--async", "--json")
        job = json.loads(done.stdout)["job_id"]
        followed = greeter("job", job, "--follow", "--json")
        assert followed.returncode == status, followed.stderr
        assert json.loads(followed.stdout)["id"] == job
        assert "\x1b" not in followed.stderr
        if not status:
            assert "#1 stdout/info  hello \\x1b[2J" in followed.stderr
    assert greeter("job", job, "--follow", "--wait", "1").returncode == 2
    assert greeter("job", str(uuid.uuid4()), "--follow").returncode == 4


def test_deploying_the_same_again_says_so(greeter: Command) -> None:
    again = greeter("deploy", "greeter")
    assert again.returncode == 0, again.stderr
    assert "unchanged" in again.stdout


def test_a_function_that_fails_ends_with_1_and_shows_why(greeter: Command) -> None:
    done = greeter("invoke", "greeter", "--body", '"fail"')
    assert done.returncode == 1
    assert done.stdout == ""
    assert "ValueError: asked to \\x1b[31mfail" in done.stderr
    assert "handler_error" in done.stderr
    document = json.loads(greeter("invoke", "greeter", "--body", '"fail"', "--json").stdout)
    assert document["success"] is False


def test_a_deploy_that_does_not_build_ends_with_1_and_the_old_version_serves(greeter: Command, tmp_path: Path) -> None:
    write_project(tmp_path, "def handler(event, context:\n")
    done = greeter("deploy", "greeter", "--json")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert document["status"] == "failed"
    assert document["reason"] in ("analysis_rejected", "build_failed")
    assert greeter("invoke", "greeter", "--body", "1").returncode == 0


def test_an_asynchronous_job_is_awaited_listed_and_final(greeter: Command) -> None:
    job_id = greeter("invoke", "greeter", "--body", "7", "--async").stdout.strip()
    job = json.loads(greeter("job", job_id, "--wait", "30", "--json").stdout)
    assert (job["status"], job["result"]["got"]) == ("succeeded", 7)
    listed = json.loads(greeter("jobs", "--function", "greeter", "--status", "succeeded", "--json").stdout)["items"]
    assert job_id in [each["id"] for each in listed]
    assert greeter("cancel", job_id).returncode == 5


def test_a_body_that_is_too_large_is_told_the_limit_and_where_it_goes(greeter: Command, tmp_path: Path) -> None:
    (tmp_path / "large.json").write_text('"' + "x" * 7_000_000 + '"')
    for option in (("--body", f"@{tmp_path / 'large.json'}"), ("--body-file", str(tmp_path / "large.json"))):
        refused = greeter("invoke", "greeter", *option)
        assert refused.returncode == 5, refused
        assert "at most 6000000 bytes" in refused.stderr
        assert "a store that the function can read" in refused.stderr


def test_a_job_of_the_list_is_named_by_what_the_list_shows(greeter: Command) -> None:
    job_id = greeter("invoke", "greeter", "--body", "7", "--async").stdout.strip()
    assert greeter("job", job_id, "--wait", "30").returncode == 0
    head, newest, *_ = greeter("jobs").stdout.splitlines()
    assert head.split() == ["JOB", "FUNCTION", "KIND", "STATUS", "CREATED", "TOOK", "MORE"]
    short, function, kind, status, *_ = newest.split()
    assert (function, kind, status) == ("greeter", "invoke", "succeeded")
    assert len(short) < 36
    shown = greeter("job", short)
    assert shown.returncode == 0, shown
    assert job_id in shown.stdout
    assert "function     greeter" in shown.stdout
    assert greeter("job", job_id[:4]).returncode == 2, "all ids of some weeks begin so"
    assert greeter("job", "0000-0000").returncode == 4


def test_a_job_is_asked_for_later_and_by_a_time(greeter: Command) -> None:
    def asked_for(*options: str) -> dict[str, Any]:
        done = greeter("invoke", "greeter", "--body", "7", *options)
        assert done.returncode == 0, done.stderr
        job: dict[str, Any] = json.loads(greeter("job", done.stdout.strip(), "--json").stdout)
        return job

    later = asked_for("--delay", "60.5", "--priority", "high")
    wait = datetime.fromisoformat(later["run_at"]) - datetime.fromisoformat(later["created_at"])
    assert (later["status"], later["priority"], round(wait.total_seconds(), 1)) == ("scheduled", "high", 60.5)
    soon = (datetime.now(UTC) + timedelta(days=1)).replace(microsecond=0)
    due = asked_for("--run-at", soon.isoformat())
    assert (due["status"], datetime.fromisoformat(due["run_at"])) == ("scheduled", soon)
    assert datetime.fromisoformat(asked_for("--expires-at", soon.isoformat())["expires_at"]) == soon
    now = greeter("invoke", "greeter", "--body", "7", "--priority", "low")
    assert json.loads(now.stdout)["got"] == 7, "which is waited for as ever"
    assert greeter("invoke", "greeter", "--run-at", "tomorrow").returncode == 5


def test_callbacks_are_asked_for_listed_and_sent_again(greeter: Command) -> None:
    url = "https://receiver.invalid/hook"
    job_id = greeter("invoke", "greeter", "--body", "7", "--callback-url", url).stdout.strip()
    assert json.loads(greeter("job", job_id, "--wait", "30", "--json").stdout)["callback_url"] == url
    (delivery,) = json.loads(greeter("deliveries", "--job", job_id, "--json").stdout)["items"]
    assert (delivery["event"], delivery["status"], delivery["url"]) == ("job.succeeded", "pending", url)
    assert delivery["id"] in greeter("deliveries", "--status", "pending").stdout
    assert json.loads(greeter("redeliver", delivery["id"], "--json").stdout)["id"] == delivery["id"]
    assert greeter("redeliver", job_id).returncode == 4
    refused = greeter("invoke", "greeter", "--body", "7", "--callback-url", "http://127.0.0.1/")
    assert (refused.returncode, refused.stdout) == (5, "")
    assert refused.stderr.count("callback_url: ") == 1
    secret = greeter("webhook-secret").stdout
    assert secret.startswith("whsec_")
    assert greeter("webhook-secret", "--rotate").stdout != secret != greeter("webhook-secret").stdout


def test_failed_jobs_are_repeated_and_open_ones_cancelled_by_filter(greeter: Command) -> None:
    def failed() -> list[str]:
        listed = greeter("jobs", "--function", "greeter", "--reason", "handler_error", "--json")
        return [each["id"] for each in json.loads(listed.stdout)["items"]]

    job_id = greeter("invoke", "greeter", "--body", '"fail"', "--async").stdout.strip()
    assert greeter("job", job_id, "--wait", "30").returncode == 1
    assert job_id in failed()
    (new,) = json.loads(greeter("redrive", job_id, "--json").stdout)["items"]
    assert new["redrive_of"] == job_id
    assert greeter("job", new["job_id"], "--wait", "30").returncode == 1
    repeated = json.loads(greeter("redrive", "--function", "greeter", "--json").stdout)["items"]
    assert new["job_id"] in [each["redrive_of"] for each in repeated]
    assert greeter("cancel", "--function", "greeter", "--status", "scheduled").stdout == "0 jobs were cancelled.\n"
    assert greeter("redrive").returncode == 2
    assert greeter("cancel", job_id, "--status", "queued").returncode == 2


def test_what_is_not_there_ends_with_4(account: Command) -> None:
    assert account("invoke", "nothing").returncode == 4
    assert account("logs", "nothing").returncode == 4
    assert account("job", str(uuid.uuid4())).returncode == 4


def test_a_value_that_the_server_rejects_ends_with_5_and_names_its_field(account: Command, tmp_path: Path) -> None:
    write_project(tmp_path, CODE)
    with (tmp_path / "greeter" / "containerpub.toml").open("a") as file:
        file.write("memory_mb = 999999999\n")
    done = account("deploy", "greeter", "--json")
    assert done.returncode == 5, done.stderr
    assert "memory_mb" in json.loads(done.stdout)["error"]["field"]


def test_h10_escape_sequences_in_logs_are_inert_on_a_terminal(greeter: Command, api_url: str, tmp_path: Path) -> None:
    job_id = greeter("invoke", "greeter", "--body", "1", "--async").stdout.strip()
    assert greeter("job", job_id, "--wait", "30").returncode == 0
    pid, terminal = pty.fork()
    if pid == 0:
        command = [sys.executable, "-m", "cli", "logs", "greeter", "--job", job_id]
        os.execve(sys.executable, command, variables(tmp_path, api_url))
    shown = b""
    while True:
        assert select.select([terminal], [], [], 60)[0]
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        shown += chunk
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, shown
    assert "\\x1b[2J\\x9b31m\\u202e[red]log[/red]" in shown.decode()
    assert shown.decode().replace("\r\n", "").isprintable()
