"""What the command does when the network or the server misbehaves: answers come from a script, over real HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass
class Reply:
    """``status`` 0 hangs up without an answer; ``gate`` holds the answer back until it is set."""

    status: int
    body: object = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    gate: threading.Event | None = None


@dataclass
class Asked:
    method: str
    path: str
    query: str
    token: str | None
    body: bytes


class Script:
    """A server whose answers a test lays out a path; the last one of a path is given again and again."""

    def __init__(self) -> None:
        self.replies: dict[str, list[Reply]] = {}
        self.asked: list[Asked] = []
        self.arrived = threading.Event()
        script = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                path, _, query = self.path.partition("?")
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                script.asked.append(Asked(self.command, path, query, self.headers.get("Authorization"), body))
                script.arrived.set()
                replies = script.replies[f"{self.command} {path}"]
                reply = replies.pop(0) if len(replies) > 1 else replies[0]
                if reply.gate is not None:
                    reply.gate.wait(30)
                if reply.status == 0:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.send_response(reply.status)
                    for name, value in {**reply.headers, "Content-Length": str(len(content))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)

            do_GET = do_POST = do_DELETE = answer  # noqa: N815 - names that http.server looks for

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def on(self, call: str, *replies: Reply) -> None:
        self.replies[call] = list(replies)

    def count(self, call: str) -> int:
        return sum(f"{each.method} {each.path}" == call for each in self.asked)


@pytest.fixture
def script() -> Iterator[Script]:
    script = Script()
    thread = threading.Thread(target=script.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield script
    script.server.shutdown()
    script.server.server_close()
    thread.join()


def variables(tmp_path: Path, url: str, **more: str) -> dict[str, str]:
    own = {"API_URL": url, "CONTAINERPUB_CONFIG_DIR": str(tmp_path / "config"), "HOME": str(tmp_path)}
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TERM": "xterm", **own, **more}


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def containerpub(script: Script, tmp_path: Path) -> Command:
    def call(*args: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "cli", *args],
            cwd=tmp_path,
            env=variables(tmp_path, script.url, **more),
            input=stdin,
            text=True,
            capture_output=True,
            timeout=60,
        )

    return call


def store(tmp_path: Path, url: str) -> None:
    (tmp_path / "config").mkdir(mode=0o700)
    stored = {"api_url": url, "access_token": "old", "refresh_token": "once", "email": "a@example.org"}
    (tmp_path / "config" / "config.json").write_text(json.dumps(stored))


def in_terminal(
    args: Sequence[str], env: dict[str, str], cwd: Path, answers: Sequence[tuple[bytes, bytes]] = ()
) -> tuple[int, bytes]:
    """Run the command on a terminal of its own, answering each prompt once it shows; status and all that was shown."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.execve(sys.executable, [sys.executable, "-m", "cli", *args], env)
    shown, waiting = b"", list(answers)
    try:
        while True:
            ready, _, _ = select.select([terminal], [], [], 60)
            assert ready, f"nothing more came after {shown!r}"
            try:
                chunk = os.read(terminal, 65536)
            except OSError:  # how Linux says that the other side is closed
                break
            if not chunk:
                break
            shown += chunk
            if waiting and waiting[0][0] in shown:
                os.write(terminal, waiting.pop(0)[1])
    finally:
        os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown


TOKENS = {"access_token": "new", "refresh_token": "twice", "token_type": "Bearer", "expires_in": 900}
HEALTHY = Reply(200, {"status": "ok", "version": "0.1.0", "engine": "process", "notice": None})
REFUSED = Reply(401, {"code": "unauthenticated", "detail": "The token ran out."})
ME = {"id": "1", "email": "a@example.org", "username": "ann", "created_at": "2025-01-01T00:00:00Z"}
LOGS = "GET /api/functions/f/logs"


def test_a_get_is_repeated_until_the_server_is_back(script: Script, containerpub: Command) -> None:
    script.on("GET /api/auth/me", Reply(0), Reply(503, headers={"Retry-After": "0"}), Reply(504), Reply(200, ME))
    ended = containerpub("me", "--json", AUTH_TOKEN="t")
    assert (ended.returncode, json.loads(ended.stdout), ended.stderr) == (0, ME, "")
    assert script.count("GET /api/auth/me") == 4


def test_a_get_is_given_up_after_four_tries(script: Script, containerpub: Command) -> None:
    script.on("GET /api/auth/me", Reply(503, {"code": "dependency_down", "detail": "Postgres is away."}))
    ended = containerpub("me", AUTH_TOKEN="t")
    assert ended.returncode == 6
    assert "Postgres is away." in ended.stderr
    assert script.count("GET /api/auth/me") == 4


def test_a_wait_longer_than_a_person_would_is_not_waited_for(script: Script, containerpub: Command) -> None:
    script.on("GET /api/auth/me", Reply(503, {"code": "dependency_down"}, {"Retry-After": "3600"}))
    ended = containerpub("me", AUTH_TOKEN="t")
    assert ended.returncode == 6
    assert "3600 s" in ended.stderr
    assert script.count("GET /api/auth/me") == 1


@pytest.mark.parametrize("reply", [Reply(0), Reply(503), Reply(502, b"<html>")], ids=["hangs up", "503", "html"])
def test_an_invoke_is_never_sent_twice(script: Script, containerpub: Command, reply: Reply) -> None:
    script.on("POST /api/functions/f/invoke", reply)
    assert containerpub("invoke", "f", AUTH_TOKEN="t").returncode == 6
    assert script.count("POST /api/functions/f/invoke") == 1


def test_a_server_that_is_not_there_ends_with_6_and_says_how_to_start_one(containerpub: Command) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        ended = containerpub("me", AUTH_TOKEN="t", API_URL=f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert ended.returncode == 6
    assert "containerpub up" in ended.stderr


@pytest.mark.parametrize(
    "reply",
    [Reply(200, b"<html>"), Reply(200, b"[]"), Reply(200, b"\xff"), Reply(302, headers={"Location": "http://other/"})],
    ids=["html", "list", "bytes", "redirect"],
)
def test_what_is_no_containerpub_server_ends_with_6(script: Script, containerpub: Command, reply: Reply) -> None:
    script.on("GET /api/auth/me", reply)
    ended = containerpub("me", "--json", AUTH_TOKEN="t")
    assert ended.returncode == 6
    assert json.loads(ended.stdout)["error"]["code"] == "unreachable"
    assert script.asked[-1].path == "/api/auth/me"


def test_a_token_that_ran_out_is_renewed_and_kept(script: Script, containerpub: Command, tmp_path: Path) -> None:
    store(tmp_path, script.url)
    script.on("GET /api/auth/me", REFUSED, Reply(200, ME))
    script.on("POST /api/auth/refresh", Reply(200, TOKENS))
    assert containerpub("me").returncode == 0
    assert [each.token for each in script.asked] == ["Bearer old", None, "Bearer new"]
    assert json.loads(script.asked[1].body) == {"refresh_token": "once"}
    kept = json.loads((tmp_path / "config" / "config.json").read_text())
    assert (kept["access_token"], kept["refresh_token"], kept["email"]) == ("new", "twice", "a@example.org")


def test_a6_commands_at_the_same_time_use_a_refresh_token_once(script: Script, tmp_path: Path) -> None:
    store(tmp_path, script.url)
    gate = threading.Event()
    script.on("GET /api/auth/me", *[Reply(401, REFUSED.body, gate=gate)] * 4, Reply(200, ME))
    script.on("POST /api/auth/refresh", Reply(200, TOKENS))
    command = [sys.executable, "-m", "cli", "me"]
    env = variables(tmp_path, script.url)
    running = [subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL) for _ in range(4)]
    try:
        while script.count("GET /api/auth/me") < 4:
            assert script.arrived.wait(60)
            script.arrived.clear()
        gate.set()
        assert [each.wait(60) for each in running] == [0, 0, 0, 0]
    finally:
        gate.set()
        for each in running:
            each.kill()
            each.wait()
    assert script.count("POST /api/auth/refresh") == 1


def test_without_a_terminal_a_login_that_ran_out_ends_with_3(
    script: Script, containerpub: Command, tmp_path: Path
) -> None:
    store(tmp_path, script.url)
    script.on("GET /api/auth/me", REFUSED)
    script.on("POST /api/auth/refresh", REFUSED)
    ended = containerpub("me")
    assert ended.returncode == 3
    assert "containerpub login" in ended.stderr
    assert script.count("POST /api/auth/login") == 0


def test_at_a_terminal_a_login_that_ran_out_is_made_again_and_so_is_the_call(script: Script, tmp_path: Path) -> None:
    store(tmp_path, script.url)
    script.on("GET /api/auth/me", REFUSED, Reply(200, ME))
    script.on("POST /api/auth/refresh", REFUSED)
    script.on("POST /api/auth/login", Reply(200, TOKENS))
    env = variables(tmp_path, script.url)
    status, shown = in_terminal(["me"], env, tmp_path, [(b"Password of a@example.org: ", b"correct horse\n")])
    assert status == 0, shown
    assert b"username    ann" in shown
    assert b"correct horse" not in shown
    assert json.loads(script.asked[2].body) == {"email": "a@example.org", "password": "correct horse"}


def test_tokens_of_one_server_are_not_sent_to_another(script: Script, containerpub: Command, tmp_path: Path) -> None:
    store(tmp_path, "http://one.example")
    script.on("GET /api/health", HEALTHY)
    assert containerpub("me").returncode == 3
    assert [(asked.path, asked.token) for asked in script.asked] == [("/api/health", None)]


def test_nobody_logged_in_ends_with_3_and_names_the_command(script: Script, containerpub: Command) -> None:
    script.on("GET /api/health", HEALTHY)
    ended = containerpub("list")
    assert ended.returncode == 3
    assert "Nobody is logged in at http://127.0.0.1" in ended.stderr
    assert "containerpub login" in ended.stderr


STRANGERS = {
    "a page": Reply(200, b"<html>"),
    "json": Reply(200, {"status": "UP"}),
    "not found": Reply(404, b"<html>Not Found"),
    "not found in json": Reply(404, {"detail": "Not Found"}),
    "unauthorized": Reply(401, b"Unauthorized", {"WWW-Authenticate": "Basic"}),
    "forbidden": Reply(403, b""),
}


@pytest.mark.parametrize(
    ("who", "token"),
    # With a token, an object is taken for an answer: no call looks first who gives it.
    [(who, token) for who in STRANGERS for token in ("", "t") if not (token and who == "json")],
)
def test_a_strangers_server_is_named_as_such(script: Script, containerpub: Command, who: str, token: str) -> None:
    script.on("GET /api/health", STRANGERS[who])
    script.on("GET /api/auth/me", STRANGERS[who])
    ended = containerpub("me", **({"AUTH_TOKEN": token} if token else {}))
    assert ended.returncode == 6, ended
    assert "is no ContainerPub server" in ended.stderr
    assert "API_URL" in ended.stderr
    assert "login" not in ended.stderr
    assert "logged in" not in ended.stderr


@pytest.mark.parametrize("command", ["login", "register"])
def test_a_strangers_server_gets_one_password_at_most_and_is_named(
    script: Script, containerpub: Command, command: str
) -> None:
    script.on(f"POST /api/auth/{command}", Reply(404, b"<html>Not Found"))
    more = ["--username", "ann"] if command == "register" else []
    ended = containerpub(command, "--email", "a@example.org", *more, CONTAINERPUB_PASSWORD="correct horse")
    assert ended.returncode == 6
    assert "is no ContainerPub server" in ended.stderr


JOB = {"id": "01a22839-b723-753c-b69b-b03d162b12ec", "status": "succeeded", "result": 1, "function": "f"}


def test_a_job_is_named_by_the_beginning_of_its_id(script: Script, containerpub: Command) -> None:
    script.on("GET /api/jobs", Reply(200, {"items": [JOB], "next": None}))
    script.on(f"GET /api/jobs/{JOB['id']}", Reply(200, JOB))
    ended = containerpub("job", "01a22839-b723", AUTH_TOKEN="t")
    assert ended.returncode == 0, ended
    assert str(JOB["id"]) in ended.stdout
    assert script.asked[0].query == "id=01a22839-b723&limit=2"


def test_an_ambiguous_beginning_of_an_id_is_told_of(script: Script, containerpub: Command) -> None:
    script.on("GET /api/jobs", Reply(200, {"items": [JOB, JOB], "next": None}))
    for command in ("job", "cancel", "redrive"):
        ended = containerpub(command, "01a2", AUTH_TOKEN="t")
        assert ended.returncode == 2
        assert "Several jobs have ids that begin with 01a2." in ended.stderr
    script.on("GET /api/jobs", Reply(200, {"items": [], "next": None}))
    ended = containerpub("job", "01a2", AUTH_TOKEN="t")
    assert ended.returncode == 4
    assert "no job whose id begins with 01a2" in ended.stderr


def test_a_limit_of_logs_counts_lines_and_marks_what_is_left_out(script: Script, containerpub: Command) -> None:
    many = "".join(f"line {n}\n" for n in range(5000))
    script.on(LOGS, Reply(200, {"items": [{**ENTRY, "message": "last\n"}, {**ENTRY, "message": many}], "next": None}))
    ended = containerpub("logs", "f", "--limit", "3", AUTH_TOKEN="t")
    assert [line.rpartition("  ")[2] for line in ended.stdout.splitlines()] == ["line 4998", "line 4999", "last"]
    assert "Older lines are left out" in ended.stderr
    ended = containerpub("logs", "f", "--limit", "5001", AUTH_TOKEN="t")
    assert len(ended.stdout.splitlines()) == 5001
    assert "left out" not in ended.stderr


def test_logs_mark_where_an_attempt_wrote_more_than_is_kept(script: Script, containerpub: Command) -> None:
    items = [{**ENTRY, "message": "b\n", "cut": True}, {**ENTRY, "message": "a\n", "cut": False}]
    script.on(LOGS, Reply(200, {"items": items, "next": None}))
    lines = containerpub("logs", "f", AUTH_TOKEN="t").stdout.splitlines()
    assert [line.rpartition("  ")[2] for line in lines] == ["a", "b", "… the attempt wrote more than is kept"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "The server cancels the call, since nobody waits for it."),
        (["--wait", "60"], "The server cancels the call, since nobody waits for it."),
        (["--idempotency-key", "k"], "The job goes on if it was accepted."),
        (["--async"], "The job goes on if it was accepted: see `containerpub jobs`."),
    ],
)
def test_an_interrupt_of_an_invoke_says_what_becomes_of_the_call(
    script: Script, tmp_path: Path, args: list[str], says: str
) -> None:
    gate = threading.Event()
    script.on("POST /api/functions/f/invoke", Reply(200, {"success": True}, gate=gate))
    env = variables(tmp_path, script.url, AUTH_TOKEN="t")
    command = [sys.executable, "-m", "cli", "invoke", "f", "--body", "1", *args]
    with subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as running:
        assert script.arrived.wait(60)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
        gate.set()
    assert running.returncode == 130
    assert says in err
    assert "Traceback" not in err


HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b31m\u202e[red]gone[/red]\r\b"
ENTRY = {"job_id": "j", "attempt": 1, "stream": "stdout", "level": "info", "at": "2025-01-01T00:00:00Z"}


def test_h10_logs_reach_a_terminal_escaped(script: Script, tmp_path: Path) -> None:
    script.on(LOGS, Reply(200, {"items": [{**ENTRY, "message": HOSTILE}], "next": None}))
    status, shown = in_terminal(["logs", "f"], variables(tmp_path, script.url, AUTH_TOKEN="t"), tmp_path)
    assert status == 0, shown
    text = shown.decode()
    assert text.replace("\r\n", "").isprintable()
    assert "\\x1b]0;title\\x07\\x1b[2J\\x9b31m\\u202e[red]gone[/red]\\r\\x08" in text


def test_h10_everything_else_that_is_shown_at_a_terminal_is_escaped_too(script: Script, tmp_path: Path) -> None:
    problem = {"code": "invalid", "detail": HOSTILE, "field": HOSTILE, "request_id": HOSTILE}
    item = {"id": HOSTILE, "name": HOSTILE, "status": HOSTILE, "runtime": HOSTILE}
    failed = {"success": False, "error": {"type": HOSTILE, "message": HOSTILE, "traceback": HOSTILE}, "reason": HOSTILE}
    script.on("GET /api/functions/e/logs", Reply(422, problem))
    script.on("GET /api/functions", Reply(200, {"items": [item], "next": None}))
    script.on("GET /api/jobs/j", Reply(200, {"id": HOSTILE, "status": "succeeded", "result": {HOSTILE: HOSTILE}}))
    script.on("POST /api/functions/f/invoke", Reply(200, failed))
    env = variables(tmp_path, script.url, AUTH_TOKEN="t")
    for args in (["logs", "e"], ["list"], ["job", "j"], ["job", "j", "--json"], ["invoke", "f", "--body", "1"]):
        _, shown = in_terminal(args, env, tmp_path)
        assert "title" in shown.decode()
        assert shown.decode().replace("\r\n", "").isprintable(), args


def test_h10_logs_reach_a_pipe_escaped_and_no_message_passes_for_another_entry(
    script: Script, containerpub: Command
) -> None:
    script.on(LOGS, Reply(200, {"items": [{**ENTRY, "message": f"{HOSTILE}\n2025 other #1 stdout/info  forged\n"}]}))
    ended = containerpub("logs", "f", AUTH_TOKEN="t")
    assert "\x1b" not in ended.stdout
    assert [line.split()[1] for line in ended.stdout.splitlines()] == ["j", "j"]
    exact = json.loads(containerpub("logs", "f", "--json", AUTH_TOKEN="t").stdout)
    assert exact["items"][0]["message"].startswith(HOSTILE)


def test_a_list_is_read_page_by_page_up_to_its_limit(script: Script, containerpub: Command) -> None:
    pages = [{"items": [{**ENTRY, "message": str(n)}] * 2, "next": f"c{n}"} for n in range(3)]
    script.on(LOGS, *(Reply(200, page) for page in pages))
    assert len(containerpub("logs", "f", "--limit", "5", AUTH_TOKEN="t").stdout.splitlines()) == 5
    assert script.count(LOGS) == 3


def test_an_interrupt_ends_with_130_and_says_that_the_deploy_goes_on(script: Script, tmp_path: Path) -> None:
    gate = threading.Event()
    script.on("GET /api/auth/me", Reply(200, ME))
    script.on("POST /api/functions/deploy", Reply(202, {"job_id": "j", "function_id": "f", "version": 1}))
    script.on("GET /api/jobs/j", Reply(200, {"id": "j", "status": "running"}, gate=gate))
    (tmp_path / "containerpub.toml").write_text('runtime = "python"\n')
    env = variables(tmp_path, script.url, AUTH_TOKEN="t")
    command = [sys.executable, "-m", "cli", "deploy"]
    with subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as running:
        while script.count("GET /api/jobs/j") == 0:
            assert script.arrived.wait(60)
            script.arrived.clear()
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
        gate.set()
    assert running.returncode == 130
    assert "containerpub job j" in err
    assert "Traceback" not in err


def test_a_reader_that_goes_away_ends_the_command_quietly(script: Script, tmp_path: Path) -> None:
    items = [{**ENTRY, "message": "x" * 1000}] * 1000
    script.on(LOGS, Reply(200, {"items": items, "next": None}))
    env = variables(tmp_path, script.url, AUTH_TOKEN="t")
    command = [sys.executable, "-m", "cli", "logs", "f", "--limit", "1000"]
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.readline()
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait(60) == 141
