"""What a function may count on: each sentence of ``docs/reference/sandbox-*.md`` is a test here, which runs in each
runtime whose page has the sentence."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import asyncpg
import pytest

from shared.embedded.postgres import EmbeddedPostgres
from shared.embedded.redis import EmbeddedRedis
from tests.client import Answer, Client
from tests.conftest import dsn_of
from tests.deployment import ROOT, Platform
from worker.engine.docker.hardening import FILES_A_MEBIBYTE, OPEN_FILES, PIDS

pytestmark = pytest.mark.docker

PROBES = Path(__file__).parent / "promises"
PYTHON, NODE, WEB, DOCKERFILE = "python", "node", "python-flask", "dockerfile"
STAYING = (PYTHON, NODE, WEB)
ALL = (*STAYING, DOCKERFILE)
_MEMORY_MB, _TIMEOUT_S = 128, 4
_FILES = {
    PYTHON: {"main.py": "handler.py", "probe.py": "probe.py"},
    NODE: {"main.mjs": "handler.mjs"},
    WEB: {"app.py": "web.py", "probe.py": "probe.py"},
    DOCKERFILE: {"main.py": "command.py", "probe.py": "probe.py"},
}
_HANDLERS = {PYTHON: "main:handler", NODE: "main:handler", WEB: "app:app"}
_DOCKERFILE = 'FROM python:3.11-slim\nWORKDIR /app\nCOPY main.py probe.py ./\nCMD ["python3", "main.py"]\n'

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(slots=True, kw_only=True)
class Sentences:
    of: dict[str, list[str]] = field(default_factory=lambda: {runtime: [] for runtime in ALL})

    def __call__(self, sentence: str, *runtimes: str) -> Callable[[T], T]:
        """Run a test in these runtimes, all unless some are named; their pages have ``sentence``."""
        for runtime in runtimes or ALL:
            self.of[runtime].append(sentence)
        return pytest.mark.parametrize("runtime", runtimes or ALL)


promised = Sentences()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Functions of one runtime that try what they are asked to: one with a sandbox for each call, one that keeps it."""

    client: Client
    runtime: str

    async def call(self, do: str, given: Any = None, *, kept: bool = False) -> Answer:
        event: dict[str, Any] = {"body": {"do": do, "with": given}}
        if self.runtime == WEB:
            event |= {"method": "POST", "path": "/"}
        return await self.client.call("POST", f"/api/functions/{self.name(kept=kept)}/invoke", json=event)

    async def __call__(self, do: str, given: Any = None, *, kept: bool = False) -> Any:
        answer = await self.call(do, given, kept=kept)
        assert answer.status == 200, answer
        assert answer.json["success"], answer
        result = answer.json["result"]
        if self.runtime == WEB:
            body = result["body"]
            return (json.loads(body) if isinstance(body, str) else body)["told"]
        return result

    async def reason(self, do: str, given: Any = None) -> str:
        answer = await self.call(do, given)
        assert answer.json["success"] is False, answer
        return str(answer.json["reason"])

    async def lines(self, answer: Answer, *, kept: bool = False) -> list[tuple[str, str]]:
        """Level and text of what the call printed, once it is recorded."""
        job = answer.json["job_id"]
        await self.client.job(job, wait=10)
        async with asyncio.timeout(10):
            while True:
                found = await self.client.call("GET", f"/api/functions/{self.name(kept=kept)}/logs?job_id={job}")
                if found.json["items"]:
                    return [(line["level"], line["message"]) for line in reversed(found.json["items"])]
                await asyncio.sleep(0.05)

    def name(self, *, kept: bool) -> str:
        return f"{self.runtime}-{'warm' if kept else 'fresh'}"


@pytest.fixture(scope="module")
def platform(
    postgres_server: EmbeddedPostgres, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Platform, str]]:
    """A platform with the functions of all runtimes, and their owner's token."""
    redis = EmbeddedRedis(tmp_path_factory.mktemp("redis-promises"))
    name = f"promises_{uuid4().hex[:12]}"

    async def start() -> tuple[Platform, str]:
        connection = await asyncpg.connect(postgres_server.dsn)
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        await connection.close()
        await redis.start()
        platform = Platform(
            database_url=dsn_of(postgres_server, name),
            redis_url=redis.url,
            engine="docker",
            env={"DOCKERFILE_RUNTIME": "true"},
        )
        await platform.__aenter__()
        async with platform.client() as client:
            await client.register()
            for runtime in ALL:
                for kept in (False, True):
                    await _deploy(client, runtime, kept=kept)
            assert client.token is not None
            return platform, client.token

    with ExitStack() as stack:
        stack.callback(lambda: asyncio.run(redis.stop()))
        started, token = asyncio.run(start())
        stack.callback(lambda: asyncio.run(started.stop()))
        yield started, token


async def _deploy(client: Client, runtime: str, *, kept: bool) -> None:
    files: dict[str, str | bytes] = {name: (PROBES / probe).read_text() for name, probe in _FILES[runtime].items()}
    settings: dict[str, Any] = {"runtime": runtime, "memory_mb": _MEMORY_MB, "timeout_s": _TIMEOUT_S, "cpus": 1}
    if runtime == DOCKERFILE:
        files["Dockerfile"] = _DOCKERFILE
    else:
        settings |= {"handler": _HANDLERS[runtime], "isolation": "warm" if kept else "fresh"}
    name = f"{runtime}-{'warm' if kept else 'fresh'}"
    answer = await client.deploy(name, files, settings=settings, prefer="wait=120")
    assert answer.status == 201, answer


@pytest.fixture
async def asked(platform: tuple[Platform, str], runtime: str) -> Any:
    started, token = platform
    async with started.client() as client:
        client.token = token
        yield Asked(client=client, runtime=runtime)


@pytest.mark.parametrize("runtime", ALL)
def test_the_page_of_a_runtime_promises_what_is_tried_and_nothing_else(runtime: str) -> None:
    page = (ROOT / "docs" / "reference" / f"sandbox-{runtime}.md").read_text("utf-8")
    said = [line.removeprefix("- ") for line in page.splitlines() if line.startswith("- ")]
    assert said == promised.of[runtime]


# Files


@promised("The code is in `/function`, where a call begins, and cannot be written to.", *STAYING)
async def test_the_code_is_there_and_read_only(asked: Asked) -> None:
    assert await asked("folder") == "/function"
    assert await asked("write", "/function/new") == "EROFS"


@promised("A program begins in the image's `WORKDIR`; what is in the image cannot be written to.", DOCKERFILE)
async def test_the_image_is_there_and_read_only(asked: Asked) -> None:
    assert await asked("folder") == "/app"
    assert await asked("write", "/app/new") == "EROFS"


@promised("Files can be written in `/tmp` and `/dev/shm`, which are memory, and nowhere else on a disk.")
async def test_files_can_be_written_in_two_folders(asked: Asked) -> None:
    for folder in ("/tmp", "/dev/shm"):
        assert await asked("write", f"{folder}/new") == "written"
    for folder in ("", "/root", "/home", "/var", "/var/tmp", "/usr/lib", "/etc", "/run"):
        assert await asked("write", f"{folder}/new") in ("EROFS", "EACCES", "ENOENT"), folder


@promised(
    f"`/tmp` holds a quarter of the memory, or `tmp_mb`, and {FILES_A_MEBIBYTE} files for each of its megabytes; then "
    "writing fails with `ENOSPC`."
)
async def test_tmp_is_a_part_of_the_memory(asked: Asked) -> None:
    assert await asked("fill", ["/tmp/new", _MEMORY_MB // 4 - 1]) == "written"
    assert await asked("fill", ["/tmp/new", _MEMORY_MB // 4 + 1]) in ("ENOSPC", "EFBIG")
    most = _MEMORY_MB // 4 * FILES_A_MEBIBYTE
    made, error = await asked("files", ["/tmp/new", 2 * most])
    assert error == "ENOSPC"
    assert most - 20 < made < most


@promised("A program that is written to `/tmp` cannot be started.")
async def test_programs_cannot_be_started_from_tmp(asked: Asked) -> None:
    assert await asked("run_file", "/tmp/new") == "EACCES"


# Memory


@promised(
    "More than `memory_mb` ends the call as `out_of_memory`. What is in `/tmp` and `/dev/shm` counts, and so does what "
    "child processes have."
)
async def test_memory_is_capped(asked: Asked) -> None:
    assert await asked.reason("allocate", 2 * _MEMORY_MB) == "out_of_memory"
    assert await asked.reason("fill_folder", ["/dev/shm", 2 * _MEMORY_MB]) == "out_of_memory"


# Network


@promised('Without `network = "egress"` no address can be reached and no name is known but `localhost`.')
async def test_there_is_no_network(asked: Asked) -> None:
    assert await asked("connect", ["192.0.2.1", 443]) == "ENETUNREACH"
    assert await asked("resolve", "example.com") == "unknown"


@promised("`localhost` is the sandbox itself, by 127.0.0.1 and by ::1, and a call can listen there.")
async def test_a_sandbox_can_talk_to_itself(asked: Asked) -> None:
    assert await asked("resolve", "localhost") == ["127.0.0.1", "::1"]
    assert await asked("listen") == "x"


# Names, users, environment


@promised("The user has an id that no other sandbox has meanwhile, the name `sandbox` and the home `/tmp`.")
async def test_the_user_has_a_name_and_an_id_of_its_own(asked: Asked) -> None:
    seen = await asyncio.gather(*(asked("identity") for _ in range(2)))
    for one in seen:
        assert (one["name"], one["home"], one["gid"]) == ("sandbox", "/tmp", one["uid"])
    assert seen[0]["uid"] != seen[1]["uid"]


@promised(
    "`HOME` and `TMPDIR` are `/tmp`, `LANG` is `C.UTF-8`; `FUNCTION_TIMEOUT_MS` and `FUNCTION_MAX_MEMORY_MB` say the "
    "limits, and `CONTAINERPUB_RESTRICTED` is `true`."
)
async def test_the_environment_says_what_there_is(asked: Asked) -> None:
    found = await asked("environment")
    expected = {
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
        "LANG": "C.UTF-8",
        "FUNCTION_TIMEOUT_MS": str(1000 * _TIMEOUT_S),
        "FUNCTION_MAX_MEMORY_MB": str(_MEMORY_MB),
        "CONTAINERPUB_RESTRICTED": "true",
    }
    assert found.items() >= expected.items()
    assert [name for name in found if "ATTACH" in name] == []


@promised("The time zone is UTC.")
async def test_the_time_zone_is_utc(asked: Asked) -> None:
    zone, seconds = await asked("time")
    assert zone == "UTC"
    assert abs(seconds - time.time()) < 60


@promised("Standard input is empty.")
async def test_standard_input_is_empty(asked: Asked) -> None:
    assert await asked("stdin") == ""


# Processes, descriptors, signals


@promised(f"There are {PIDS} processes and threads at most; one more fails with `EAGAIN`.")
async def test_processes_are_capped(asked: Asked) -> None:
    started, error = await asked("processes")
    assert error == "EAGAIN"
    assert PIDS - 25 < started < PIDS


@promised(f"A process has {OPEN_FILES:,} open files at most; one more fails with `EMFILE`.")
async def test_open_files_are_capped(asked: Asked) -> None:
    opened, error = await asked("descriptors")
    assert error == "EMFILE"
    assert OPEN_FILES - 60 < opened < OPEN_FILES


@promised("No processes are seen but the sandbox's own.")
async def test_no_other_processes_are_seen(asked: Asked) -> None:
    seen = await asked("seen_processes")
    assert seen[0] == 1
    assert len(seen) < 6


@promised("A call that takes longer than `timeout_s` is killed with all that it started; no signal comes before.")
async def test_a_call_that_takes_too_long_is_killed_without_a_warning(asked: Asked) -> None:
    began = time.monotonic()
    answer = await asked.call("sleep_deaf", 60)
    assert answer.json["reason"] == "timeout", answer
    assert time.monotonic() - began < _TIMEOUT_S + 5
    printed = "".join(text for _, text in await asked.lines(answer))
    assert "sleeping" in printed
    assert "warned" not in printed


# Output, start-up, what survives


@promised("What is written to standard output is in the log of the call as `info`, and to standard error as `error`.")
async def test_output_is_in_the_log(asked: Asked) -> None:
    lines = await asked.lines(await asked.call("print"))
    assert "to stdout" in "".join(text for level, text in lines if level == "info")
    assert "to stderr" in "".join(text for level, text in lines if level == "error")


@promised("The module is imported once a sandbox, before its first call, whose log has what it printed.", *STAYING)
async def test_the_module_is_imported_once(asked: Asked) -> None:
    first = await asked.call("remember")
    assert [text for _, text in await asked.lines(first)] == ["imported\n"]
    calls = [await asked.call("print", kept=True) for _ in range(3)]
    printed = ["".join(text for _, text in await asked.lines(call, kept=True)) for call in calls[1:]]
    assert not any("imported" in text for text in printed)


@promised("The program is started anew for each call, and what it leaves is gone.", DOCKERFILE)
async def test_nothing_survives_a_call(asked: Asked) -> None:
    assert await asked("write", "/tmp/left", kept=True) == "written"
    assert await asked("exists", "/tmp/left", kept=True) is False
    assert [await asked("remember", kept=True) for _ in range(2)] == [1, 1]


@promised(
    "A sandbox serves one call after the other: what a call leaves in variables of modules, in `/tmp` and in the "
    'current folder is there at the next one, unless the project file says `isolation = "fresh"`.',
    *STAYING,
)
async def test_what_a_call_leaves_is_there_at_the_next(asked: Asked) -> None:
    before = await asked("remember", kept=True)
    assert await asked("remember", kept=True) == before + 1
    assert await asked("write", "/tmp/left", kept=True) == "written"
    assert await asked("exists", "/tmp/left", kept=True) is True
    assert [await asked("remember") for _ in range(2)] == [1, 1]
    assert await asked("exists", "/tmp/left") is False
