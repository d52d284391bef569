"""The contracts ``web`` and ``command``, each with real builds and real sandboxes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import shutil
import tarfile
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
from aiodocker import Docker, DockerError
from engines import BASE_IMAGE, Subscriber, call, engine_config, new_layers, on_engine, short_dir, text

import runtimes as known
from shared.layers import VersionLayers
from tests.deployment import Platform
from worker.build.plan import BuildPlan
from worker.build.recipe import load_recipe
from worker.config import EngineConfig
from worker.engine.contract import Engine
from worker.engine.docker import DockerEngine
from worker.engine.process import ProcessEngine
from worker.sandbox.contract import CallOutcome, Sandbox, SandboxSpec

__all__ = ["engine_config", "short_dir"]
SOURCES = Path(__file__).with_name("contracts")
FLASK = Path(__file__).parents[2] / "examples" / "flask"


@dataclass(kw_only=True)
class Bench:
    engine: DockerEngine | ProcessEngine
    config: EngineConfig
    folder: Path
    versions: dict[str, VersionLayers] = field(default_factory=dict)
    started: list[Sandbox] = field(default_factory=list)

    async def start(self, runtime: str, handler: str, files: dict[str, bytes], **changes: Any) -> Sandbox:
        if runtime not in self.versions:
            plan = _plan(self.folder, runtime, handler, files)
            self.versions[runtime] = (await self.engine.build(plan, lambda _: None)).layers
        spec = SandboxSpec(
            version_id=uuid.uuid4(),
            function_id=uuid.uuid4(),
            user_id=uuid.uuid4(),
            function_name="tested",
            version=3,
            runtime=runtime,
            handler=handler,
            layers=self.versions[runtime],
            memory_mb=128,
            tmp_mb=32,
            cpus=1.0,
            timeout_ms=5000,
        )
        sandbox = await self.engine.start(replace(spec, **changes))
        self.started.append(sandbox)
        return sandbox

    async def app(self, name: str) -> Sandbox:
        return await self.start("python-flask", f"app:{name}", {"app.py": (SOURCES / "app.py").read_bytes()})

    async def command(self, **changes: Any) -> Sandbox:
        files = {"bin/main": (SOURCES / "main.py").read_bytes()}
        return await self.start("dart", "bin/main.dart", files, **changes)

    async def do(self, what: str, argument: object = None, **limits: Any) -> CallOutcome:
        """One call of the command, and nothing left of it."""
        sandbox = await self.command()
        outcome = await sandbox.call(call({"do": what, "with": argument}, **limits))
        assert not sandbox.reusable
        await sandbox.destroy()
        assert await self.left() == []
        return outcome

    async def left(self) -> list[str]:
        """Folders and containers of sandboxes that are still there."""
        left = [str(path) for path in self.config.socket_dir.glob("*/*") if path.is_dir()]
        if isinstance(self.engine, DockerEngine):
            label = f"containerpub.installation={self.config.installation}"
            found = await self.engine._client().docker.containers.list(
                all=1, filters=orjson.dumps({"label": [label]}).decode()
            )
            left += [container.id for container in found]
        return left


@pytest.fixture(params=["process", pytest.param("docker", marks=pytest.mark.docker)])
async def bench(request: pytest.FixtureRequest, engine_config: EngineConfig) -> AsyncIterator[Bench]:
    async for one in _bench_of(DockerEngine if request.param == "docker" else ProcessEngine, engine_config):
        yield one


@pytest.fixture
async def podman_bench(request: pytest.FixtureRequest, engine_config: EngineConfig) -> AsyncIterator[Bench]:
    async for one in _bench_of(DockerEngine, on_engine(request, "podman", engine_config)):
        yield one


async def _bench_of(new_engine: type[DockerEngine] | type[ProcessEngine], config: EngineConfig) -> AsyncIterator[Bench]:
    # Any image with what the tested program needs stands in for the SDK's.
    config = replace(config, base_images={"dart": BASE_IMAGE})
    engine = new_engine(config, new_layers())
    await engine.open()
    config.data_dir.mkdir(parents=True, exist_ok=True)
    bench = Bench(engine=engine, config=config, folder=config.data_dir)
    try:
        yield bench
    finally:
        try:
            for sandbox in bench.started:
                await sandbox.destroy()
        finally:
            await engine.close()


def _plan(folder: Path, runtime: str, handler: str, files: dict[str, bytes]) -> BuildPlan:
    path = folder / f"{uuid.uuid4().hex}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755 if name.startswith("bin/") else 0o644
            archive.addfile(entry, io.BytesIO(content))
    return BuildPlan(
        version_id=uuid.uuid4(),
        function_id=uuid.uuid4(),
        user_id=uuid.uuid4(),
        runtime=runtime,
        handler=handler,
        artifact=path,
        artifact_sha256="",
        timeout_s=100,
        memory_mb=512,
        max_unpacked_bytes=250 * 1024**2,
        max_log_bytes=256 * 1024,
    )


def _request(**event: Any) -> Any:
    whole = {"body": None, "query": {}, "headers": {}, "method": "GET", "path": "/", **event}
    return replace(call(), event=orjson.dumps(whole))


def _answer(outcome: CallOutcome) -> Any:
    assert outcome.reason is None, outcome
    assert outcome.is_response
    assert outcome.result is not None
    return orjson.loads(outcome.result)


async def test_a_wsgi_application_is_asked_what_the_event_says(bench: Bench) -> None:
    sandbox = await bench.app("wsgi")
    asked = _request(
        method="put",
        path="/a%2Fb/ü",
        query={"one": "1 &", "more": ["a", "b"]},
        headers={
            "X-Given": "ü",
            "Cookie": ["a=1", "b=2"],
            "Proxy": "evil",
            "X_Under": "1",
            "X-Bad": "a\r\nb",
            "Host": "h:81",
        },
        body={"name": "Ada"},
    )
    answer = _answer(await sandbox.call(asked))
    assert answer["status"] == 201
    assert answer["headers"] == {"Content-Type": "application/json"}
    told = orjson.loads(answer["body"])
    assert told["REQUEST_METHOD"] == "PUT"
    assert told["PATH_INFO"].encode("latin-1").decode() == "/a/b/ü"
    assert told["QUERY_STRING"] == "one=1+%26&more=a&more=b"
    assert told["HTTP_X_GIVEN"].encode("latin-1").decode() == "ü"
    assert told["HTTP_COOKIE"] == "a=1; b=2"
    assert (told["SERVER_NAME"], told["SERVER_PORT"]) == ("h", "81")
    assert not {"HTTP_PROXY", "HTTP_X_UNDER", "HTTP_X_BAD"} & told.keys()
    assert base64.b64decode(told["body"]) == b'{"name":"Ada"}'
    assert (told["CONTENT_TYPE"], told["CONTENT_LENGTH"]) == ("application/json", "14")
    assert told["job_id"] == str(asked.job_id)

    raw = bytes(range(256))
    told = orjson.loads(_answer(await sandbox.call(_request(body_base64=base64.b64encode(raw).decode())))["body"])
    assert base64.b64decode(told["body"]) == raw
    told = orjson.loads(_answer(await sandbox.call(_request(body="ü", query="a=1&b", path="x")))["body"])
    assert base64.b64decode(told["body"]).decode() == "ü"
    assert (told["QUERY_STRING"], told["PATH_INFO"]) == ("a=1&b", "/x")


async def test_an_asgi_application_is_asked_what_the_event_says(bench: Bench) -> None:
    sandbox = await bench.app("asgi")
    for name in ("Ada", "Grace"):
        asked = _request(method="POST", path="/a%20b", query={"q": "1"}, headers={"X-Given": "y"}, body=name)
        answer = _answer(await sandbox.call(asked))
        assert answer["headers"] == [["set-cookie", "a=1"], ["set-cookie", "b=2"]]
        told = orjson.loads(answer["body"])
        assert told["body"] == name
        assert told["same_loop"] is True
        assert (told["method"], told["path"], told["raw_path"], told["query"]) == ("POST", "/a b", "/a%20b", "q=1")
        assert ["x-given", "y"] in told["headers"]
        assert ["content-length", str(len(name))] in told["headers"]


async def test_answers_keep_repeated_headers_bytes_and_streams(bench: Bench) -> None:
    answer = _answer(await (await bench.app("cookies")).call(_request()))
    assert answer == {
        "status": 200,
        "headers": [["Set-Cookie", "a=1"], ["X-One", "1"], ["set-cookie", "b=2"]],
        "body": "",
    }
    answer = _answer(await (await bench.app("binary")).call(_request()))
    assert base64.b64decode(answer["body_base64"]) == b"GIF89a\xff\x00"
    assert "body" not in answer
    outcome = await (await bench.app("streamed")).call(_request())
    assert _answer(outcome)["body"] == "first zwölf last"
    assert text(outcome, "stdout") == "closed\n"


async def test_a_project_that_names_no_handler_has_its_runtimes_default(bench: Bench) -> None:
    wsgi = b"def app(environ, start):\n    start('200 OK', [])\n    return [b'web']\n"
    web = await (await bench.start("python-flask", "", {"app.py": wsgi, "other.py": b""})).call(_request())
    assert orjson.loads(web.result or b"")["body"] == "web"
    marked = b"from containerpub import function\n@function\ndef hello(event, context):\n    return 'marked'\n"
    assert (await (await bench.start("python", "", {"main.py": marked})).call(call())).result == b'"marked"'
    program = {"bin/main": (SOURCES / "main.py").read_bytes()}
    command = await (await bench.start("dart", "", program)).call(call({"do": "echo", "with": 5}))
    assert command.result == b"5", command


@pytest.mark.parametrize(
    "name",
    [
        *("asgi_status", "asgi_by_plain_def", "asgi_that_raises_at_once", "asgi_by_class", "asgi_by_method"),
        *("asgi_by_partial", "asgi_wrapped", "asgi_wrapped_coroutine", "asgi_with_defaults"),
        *("wsgi_status", "wsgi_wrapped", "wsgi_with_default", "wsgi_by_class"),
    ],
)
async def test_applications_of_every_shape_are_asked_in_their_way(bench: Bench, name: str) -> None:
    sandbox = await bench.app(name)
    answer = _answer(await sandbox.call(_request(path="/200")))
    assert (answer["status"], answer["body"]) == (200, "a body")
    assert answer["headers"] == {"content-length": "6", "x-a": "1"}


@pytest.mark.parametrize("name", ["asgi_status", "wsgi_status"])
async def test_answers_that_have_no_body_in_http_have_none(bench: Bench, name: str) -> None:
    sandbox = await bench.app(name)
    for method, path, body, length in (
        ("GET", "/200", "a body", "6"),
        ("HEAD", "/200", "", "6"),
        ("GET", "/204", "", None),
        ("GET", "/304", "", "6"),
        ("HEAD", "/404", "", "6"),
    ):
        answer = _answer(await sandbox.call(_request(method=method, path=path)))
        assert (answer["status"], answer["body"]) == (int(path[1:]), body)
        assert answer["headers"].get("content-length") == length
        assert answer["headers"]["x-a"] == "1"


async def test_an_application_may_spawn_processes(bench: Bench) -> None:
    assert _answer(await (await bench.app("wsgi_spawns")).call(_request()))["body"] == "42"


async def test_a_web_sandbox_serves_again(bench: Bench) -> None:
    sandbox = await bench.app("counted")
    assert [_answer(await sandbox.call(_request()))["body"] for _ in range(3)] == ["1", "2", "3"]
    assert sandbox.reusable


async def test_an_applications_own_500_is_an_answer_with_logs(bench: Bench) -> None:
    outcome = await (await bench.app("logs")).call(_request())
    assert _answer(outcome) == {"status": 500, "headers": {}, "body": "sorry"}
    assert text(outcome, "stderr") == "to the log\n"
    outcome = await (await bench.app("asgi_late")).call(_request())
    assert _answer(outcome) == {"status": 500, "headers": {}, "body": "sorry"}
    assert "ArithmeticError: for the log" in text(outcome, "stderr")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "no answer"),
        ("asgi_broken", "no answer"),
        ("silent", "the application did not call start_response"),
        ("odd_status", "status is a number from 200 to 599, not 101"),
        ("asgi_that_does_not_start", "no database"),
        ("missing", "the module 'app' has no function 'missing'"),
    ],
)
async def test_what_leaves_an_application_is_a_handler_error(bench: Bench, name: str, message: str) -> None:
    outcome = await (await bench.start("python-flask", "app:wsgi", {"app.py": (SOURCES / "app.py").read_bytes()})).call(
        _request()
    )
    assert outcome.reason is None
    outcome = await (await bench.app(name)).call(_request())
    assert outcome.reason == "handler_error"
    assert outcome.error is not None
    assert outcome.error["message"] == f"Function execution failed: {message}"
    assert "containerpub_web" not in outcome.error.get("traceback", "")
    assert "serve" not in outcome.error.get("traceback", "")


@pytest.mark.parametrize("name", ["endless", "asgi_endless"])
async def test_an_endless_answer_is_too_large(bench: Bench, name: str) -> None:
    outcome = await (await bench.app(name)).call(replace(_request(), max_result_bytes=200_000))
    assert outcome.reason == "result_too_large"


async def test_a_flask_application_is_built_and_answers(bench: Bench) -> None:
    files = {path.name: path.read_bytes() for path in FLASK.iterdir() if path.is_file()}
    sandbox = await bench.start("python-flask", "app:app", files)
    answer = _answer(await sandbox.call(_request(method="POST", path="/guests", body={"name": "Ada"})))
    assert answer["status"] == 201
    assert orjson.loads(answer["body"]) == {"welcome": "Ada"}
    cookies = [value for name, value in answer["headers"] if name == "Set-Cookie"]
    assert cookies == ["guest=Ada; Path=/", "seen=1; Path=/"]
    answer = _answer(await sandbox.call(_request(headers={"Cookie": "guest=Ada"}, query={"a": "1"})))
    assert orjson.loads(answer["body"]) == {"guest": "Ada", "query": {"a": "1"}}
    assert base64.b64decode(_answer(await sandbox.call(_request(path="/pixel.gif")))["body_base64"])[:3] == b"GIF"
    assert _answer(await sandbox.call(_request(method="DELETE")))["status"] == 405
    outcome = await sandbox.call(_request(path="/broken"))
    assert _answer(outcome)["status"] == 500
    assert "ZeroDivisionError: on purpose" in text(outcome, "stderr")


@pytest.mark.parametrize("value", [None, 1.0, 12345678901234567890123, "ü\0", [1, {"a": []}], {"error": "no"}])
async def test_the_body_of_a_commands_result_is_the_result(bench: Bench, value: object) -> None:
    sandbox = await bench.command()
    event = b'{"body": {"do": "echo", "with": ' + _json(value) + b"}}"
    outcome = await sandbox.call(replace(call(), event=event))
    assert outcome.reason is None, outcome
    assert outcome.result == _json(value)
    assert (outcome.exit_code, outcome.is_response) == (0, False)
    assert (text(outcome, "stdout"), text(outcome, "stderr")) == ("out\n", "err\n")
    assert outcome.run_ms > 0


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


async def test_a_command_is_told_its_call_and_its_settings(bench: Bench) -> None:
    sandbox = await bench.command(env=(("GREETING", 'two\n"lines" $x'), ("PLAIN", "a-b")))
    asked = call({"do": "tell"}, query={"q": "1"})
    outcome = await sandbox.call(asked)
    assert outcome.result is not None, outcome
    told = orjson.loads(outcome.result)
    assert told["request"] == orjson.loads(asked.event)
    environ = told["environ"]
    assert environ["FUNCTION_INPUT"] == asked.event.decode()
    assert environ["HTTP_BODY"] == '{"do":"tell"}'
    assert (environ["HTTP_QUERY"], environ["HTTP_METHOD"]) == ('{"q":"1"}', "POST")
    assert (environ["FUNCTION_TIMEOUT_MS"], environ["FUNCTION_MAX_MEMORY_MB"]) == ("5000", "128")
    assert environ["CONTAINERPUB_RESTRICTED"] == environ["DART_CLOUD_RESTRICTED"] == "true"
    assert environ["GREETING"] == 'two\n"lines" $x'
    assert not [name for name in environ if "ATTACH" in name]
    lines = told["settings"].splitlines()
    assert 'GREETING="two\\n\\"lines\\" \\$x"' in lines
    assert "PLAIN=a-b" in lines
    assert "FUNCTION_TIMEOUT_MS=5000" in lines
    assert not [line for line in lines if line.startswith("PATH=")]
    if isinstance(bench.engine, DockerEngine):
        assert environ["CONTAINERPUB_REQUEST_FILE"] == "/request.json"


async def test_a_command_is_followed_while_it_runs(bench: Bench) -> None:
    sandbox = await bench.command()
    looking = Subscriber()
    running = asyncio.create_task(sandbox.call(call({"do": "wait", "with": 1.5}, tail=looking.tail)))
    async with asyncio.timeout(4):
        await looking.heard.wait()
    assert not running.done()
    assert (await running).result == b'"waited"'
    assert "".join(entry.message for entry in looking.entries) == "began\nended\n"


async def test_what_a_killed_command_wrote_is_with_its_tail(bench: Bench) -> None:
    sandbox = await bench.command()
    looking = Subscriber()
    running = asyncio.create_task(sandbox.call(call({"do": "wait", "with": 60}, tail=looking.tail, max_log_bytes=4)))
    async with asyncio.timeout(4):
        await looking.heard.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await sandbox.destroy()
    assert b"".join(text for _, _, text in looking.tail.kept) == b"bega"
    assert looking.tail.truncated


async def test_variables_that_are_too_long_are_left_out(bench: Bench) -> None:
    sandbox = await bench.command()
    outcome = await sandbox.call(call({"do": "tell", "with": "x" * 70_000}, query={"q": "1"}))
    assert outcome.result is not None, outcome
    told = orjson.loads(outcome.result)
    assert len(told["request"]["body"]["with"]) == 70_000
    assert not {"FUNCTION_INPUT", "HTTP_BODY"} & told["environ"].keys()
    assert told["environ"]["HTTP_QUERY"] == '{"q":"1"}'


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("no such guest", {"type": "Error", "message": "Function execution failed: no such guest"}),
        (
            {"type": "NotFound", "message": "gone", "traceback": "at main"},
            {"type": "NotFound", "message": "Function execution failed: gone", "traceback": "at main"},
        ),
    ],
)
async def test_exit_code_1_gives_the_error_in_the_body(bench: Bench, error: object, expected: object) -> None:
    outcome = await bench.do("fail", error)
    assert (outcome.reason, outcome.exit_code) == ("handler_error", 1)
    assert outcome.error == expected


@pytest.mark.parametrize(("what", "argument", "code"), [("exit", 3, 3), ("exit", 1, 1), ("kill", None, 137)])
async def test_a_command_that_dies_has_crashed(bench: Bench, what: str, argument: object, code: int) -> None:
    outcome = await bench.do(what, argument)
    assert (outcome.reason, outcome.exit_code) == ("crashed", code)
    assert outcome.error is not None
    assert f"exit code {code} before" in outcome.error["message"]


@pytest.mark.parametrize(
    "content",
    ["", " ", "5", "[]", "{}", '{"result": 1}', '{"body": NaN}', '{"body": 1e999}', '{"body": 1', "[" * 100_000],
)
async def test_a_file_without_a_body_is_an_invalid_result(bench: Bench, content: str) -> None:
    outcome = await bench.do("write", content)
    assert outcome.reason == "invalid_result", outcome


async def test_a_result_over_the_limit_is_too_large(bench: Bench) -> None:
    assert (await bench.do("huge", 1000, max_result_bytes=1000)).reason == "result_too_large"
    assert (await bench.do("huge", 998, max_result_bytes=1000)).reason is None
    assert (await bench.do("huge", 20_000_000)).reason == "result_too_large"
    # Cut off by the file-size limit.
    assert (await bench.do("huge", 60_000_000)).reason == "result_too_large"


async def test_a_command_ends_at_its_timeout_with_all_it_started(bench: Bench) -> None:
    started = time.monotonic()
    outcome = await bench.do("sleep", timeout_ms=1500)
    assert (outcome.reason, outcome.exit_code, outcome.result) == ("timeout", -1, None)
    assert outcome.error is not None
    assert outcome.error["message"] == "Function execution timed out (1500ms)"
    assert 1490 <= outcome.run_ms < 2500
    assert time.monotonic() - started < 8


async def test_a_flood_of_output_is_cut_and_the_kill_stays_prompt(bench: Bench) -> None:
    before = psutil.Process().memory_info().rss
    outcome = await bench.do("flood", 0.3, max_log_bytes=10_000)
    assert (outcome.reason, outcome.result) == (None, b'"done"')
    assert outcome.logs_truncated
    assert sum(len(entry.message) for entry in outcome.logs) == 10_000
    sandbox = await bench.command()
    outcome = await sandbox.call(call({"do": "flood", "with": 60}, timeout_ms=1500))
    assert outcome.reason == "timeout"
    assert outcome.run_ms < 2500
    started = time.monotonic()
    await sandbox.destroy()
    assert time.monotonic() - started < 4
    assert await bench.left() == []
    assert psutil.Process().memory_info().rss - before < 32 * 1024**2


async def test_a_command_that_uses_too_much_memory_ends(bench: Bench) -> None:
    outcome = await bench.do("hoard", timeout_ms=20_000)
    if isinstance(bench.engine, DockerEngine):
        assert (outcome.reason, outcome.exit_code) == ("out_of_memory", 137)
    else:
        # Its own MemoryError, which nobody tells us of.
        assert (outcome.reason, outcome.exit_code) == ("crashed", 1)


async def test_in_a_container_the_result_stays_the_file_that_we_mounted(bench: Bench) -> None:
    if not isinstance(bench.engine, DockerEngine):
        for what, argument in (("link", "/etc/passwd"), ("pipe", None)):
            assert (await bench.do(what, argument)).reason == "invalid_result"
        return
    outcome = await bench.do("replace")
    assert outcome.result is not None, outcome
    busy, readonly = "Device or resource busy", "Read-only file system"
    unlink, link, elsewhere, rename, request = orjson.loads(outcome.result)
    assert unlink in (busy, readonly)
    assert link == readonly
    assert elsewhere == "done"
    assert rename in (busy, readonly, "Invalid cross-device link")
    assert request in (readonly, "Permission denied")


async def test_a_command_is_good_for_one_call_and_leaves_nothing(bench: Bench) -> None:
    sandbox = await bench.command()
    await sandbox.pause()
    await sandbox.unpause()
    assert sandbox.reusable
    await sandbox.destroy()
    await sandbox.destroy()
    assert await bench.left() == []
    used = await bench.command()
    await used.call(call({"do": "echo"}))
    with pytest.raises(RuntimeError):
        await used.call(call({"do": "echo"}))
    unused = await bench.command()
    assert unused.reusable
    engine: Engine = bench.engine
    await engine.sweep(frozenset())
    assert (await unused.call(call({"do": "echo", "with": 1}))).result == b"1"
    for one in (used, unused):
        await one.destroy()
    assert await bench.left() == []


@pytest.mark.docker
@pytest.mark.parametrize("bench", ["docker"], indirect=True)
@pytest.mark.parametrize("end", ["kill", "stop", "delete"])
async def test_f15_a_command_that_is_killed_from_outside_is_not_the_functions_fault(bench: Bench, end: str) -> None:
    assert isinstance(bench.engine, DockerEngine)
    sandbox = await bench.command(timeout_ms=30_000)
    running = asyncio.ensure_future(sandbox.call(call({"do": "sleep"}, timeout_ms=30_000)))
    container = bench.engine._client().docker.containers.container(f"containerpub-{sandbox.id}")
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(DockerError):
                if (await container.show())["State"]["Running"]:
                    break
            await asyncio.sleep(0.02)
    await (container.delete(force=True) if end == "delete" else getattr(container, end)())
    outcome = await running
    assert outcome.reason == "sandbox_start_failed", outcome
    assert outcome.ran
    await sandbox.destroy()
    assert await bench.left() == []


@pytest.mark.alone  # all installations share the image of a runtime
@pytest.mark.docker
@pytest.mark.parametrize("bench", ["docker"], indirect=True)
async def test_f26_a_command_whose_image_went_has_not_run(bench: Bench) -> None:
    sandbox = await bench.command()
    assert isinstance(bench.engine, DockerEngine)
    image = await bench.engine._parts.runtimes.of(load_recipe("dart"), bench.versions["dart"].foundation)
    await bench.engine._client().docker.images.delete(image.id, force=True)
    outcome = await sandbox.call(call({"do": "echo"}))
    assert (outcome.reason, outcome.ran) == ("sandbox_start_failed", False)
    await sandbox.destroy()
    assert await bench.left() == []


@pytest.mark.on_podman
async def test_podman_builds_and_runs_applications_and_commands(podman_bench: Bench) -> None:
    asked = _request(method="put", path="/a", body={"name": "Ada"})
    application = await podman_bench.app("wsgi")
    assert _answer(await application.call(asked))["status"] == 201
    await application.destroy()
    outcome = await podman_bench.do("echo", {"a": "ü"})
    assert orjson.loads(outcome.result or b"null") == {"a": "ü"}, outcome
    assert (text(outcome, "stdout"), text(outcome, "stderr")) == ("out\n", "err\n")
    crashed = await podman_bench.do("exit", 3)
    assert (crashed.reason, crashed.exit_code) == ("crashed", 3)
    started = time.monotonic()
    outcome = await podman_bench.do("flood", 60, timeout_ms=1000, max_log_bytes=10_000)
    assert (outcome.reason, outcome.logs_truncated) == ("timeout", True)
    assert time.monotonic() - started < 8


@pytest.mark.docker
async def test_commands_run_through_the_platform(database: str, redis_url: str, tmp_path: Path) -> None:
    files = {"bin/main": (SOURCES / "main.py").read_bytes()}
    archive = _plan(tmp_path, "dart", "", files).artifact.read_bytes()
    env = {"DOCKER_BASE_IMAGE": f"dart={BASE_IMAGE}"}
    async with Platform(database_url=database, redis_url=redis_url, engine="docker", env=env) as platform:
        async with platform.client() as client:
            await client.register()
            for name, timeout_s in (("command", 20), ("short", 3)):  # eight at a time take a while on two processors
                settings = {"runtime": "dart", "handler": "bin/main.dart", "timeout_s": timeout_s, "memory_mb": 64}
                deployed = await client.deploy(name, archive=archive, settings=settings)
                assert deployed.status == 201, deployed
            values = list(range(8))
            answers = await asyncio.gather(*(client.invoke("command", {"do": "echo", "with": one}) for one in values))
            assert [answer.json.get("result") for answer in answers] == values, answers
            failed = (await client.invoke("command", {"do": "fail", "with": "no"})).json
            assert (failed["success"], failed["reason"]) == (False, "handler_error")
            assert failed["error"]["message"] == "Function execution failed: no"
            late = (await client.invoke("short", {"do": "sleep"})).json
            assert (late["reason"], late["error"]["message"]) == ("timeout", "Function execution timed out (3000ms)")
        async with Docker() as docker:
            label = f"containerpub.installation={platform.installation}"
            await platform.stop()
            assert await docker.containers.list(all=True, filters={"label": [label]}) == []


@pytest.mark.docker
async def test_a_runtime_is_added_by_a_folder_alone(database: str, redis_url: str, tmp_path: Path) -> None:
    runtimes = Path(known.__file__).parent
    shutil.copytree(runtimes, tmp_path / "runtimes", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "runtimes" / "shell").mkdir()
    recipe = f'''name = "shell"
contract = "command"
base_image = "{BASE_IMAGE}"
command = ["/bin/sh", "/function/{{handler}}"]
files = []

[compile]
script = "compile.sh"
command = ["/bin/sh", "-c", "{{script}}", "compile"]
'''
    compiling = 'set -e; cd "$2"; cp "/function/$1.in" words; exec tar --format=ustar -cf - words'
    (tmp_path / "runtimes" / "shell" / "compile.sh").write_text(compiling)
    (tmp_path / "runtimes" / "shell" / "runtime.toml").write_text(recipe)
    script = 'printf \'{"body": "%s %s %s"}\' "$(id -u)" "$(cat /compiled/words)" "$HTTP_BODY" > /result.json'
    env = {"PYTHONPATH": f"{tmp_path}:{runtimes.parent}"}
    async with (
        Platform(database_url=database, redis_url=redis_url, engine="docker", env=env) as platform,
        platform.client() as client,
    ):
        await client.register()
        settings = {"runtime": "shell", "handler": "main.sh"}
        broken = await client.deploy("shell", {"main.sh": script}, settings=settings)
        assert broken.status == 422, broken
        assert "Compiling failed with exit code 1: cp: cannot stat" in broken.body.decode()
        files: dict[str, str | bytes] = {"main.sh": script, "main.sh.in": "is told"}
        deployed = await client.deploy("shell", files, settings=settings)
        assert deployed.status == 201, deployed
        user, _, rest = (await client.invoke("shell", 5)).json["result"].partition(" ")
        assert int(user) in range(61_184, 65_520)
        assert rest == "is told 5"


async def test_a_call_that_is_given_up_leaves_nothing(bench: Bench) -> None:
    for seconds in (0.0, 0.05, 0.5):
        sandbox = await bench.command()
        calling = asyncio.create_task(sandbox.call(call({"do": "flood", "with": 60}, timeout_ms=60_000)))
        await asyncio.wait((calling,), timeout=seconds)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert not sandbox.reusable
        await sandbox.destroy()
        assert await bench.left() == []


async def test_a_commands_container_is_as_hardened_as_every_other(bench: Bench) -> None:
    if not isinstance(bench.engine, DockerEngine):
        return
    sandbox = await bench.command()
    calling = asyncio.create_task(sandbox.call(call({"do": "sleep"}, timeout_ms=60_000)))
    container = bench.engine._client().docker.containers.container(f"containerpub-{sandbox.id}")
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(DockerError):
                shown = await container.show()
                if shown["State"]["Running"]:
                    break
            await asyncio.sleep(0.02)
    host = shown["HostConfig"]
    assert (host["NetworkMode"], host["CapDrop"], host["ReadonlyRootfs"]) == ("none", ["ALL"], True)
    assert (host["Memory"], host["MemorySwap"], host["PidsLimit"]) == (128 * 1024**2, 128 * 1024**2, 64)
    assert (host["Privileged"], host["LogConfig"]["Type"]) == (False, "none")
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert {one["Name"]: one["Hard"] for one in host["Ulimits"]}["fsize"] == 32 * 1024**2
    uid = int(shown["Config"]["User"].partition(":")[0])
    assert uid in bench.config.sandbox_users
    assert shown["Config"]["User"] == f"{uid}:{uid}"
    mounts = {mount["Destination"]: mount["RW"] for mount in shown["Mounts"]}
    code = dict.fromkeys(("/function", "/dependencies", "/compiled"), False)
    names = dict.fromkeys(("/etc/passwd", "/etc/group", "/etc/hosts"), False)
    assert mounts == {"/request.json": False, "/.env.config": False, "/result.json": True, **code, **names}
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    await sandbox.destroy()
    assert await bench.left() == []
