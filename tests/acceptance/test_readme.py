"""The README's commands do what it says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from shared.embedded.folder import FolderLock
from tests.deployment import ROOT, free_port

README = (ROOT / "README.md").read_text("utf-8")
START_S = 60
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```sh {kind}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_every_make_target_that_the_readme_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in set(re.findall(r"`?make ([a-z-]+)`?", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_file_that_the_readme_links_to_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def bare(home: Path) -> dict[str, str]:
    """The environment of a new account's shell: neither our command nor a setting is in it."""
    home.mkdir()
    engine = {name: os.environ[name] for name in ("DOCKER_HOST",) if name in os.environ}
    return {"PATH": SYSTEM_PATH, "HOME": str(home), **engine}


def test_the_first_block_ends_with_the_command_at_hand(tmp_path: Path) -> None:
    (first,) = blocks("first")
    clone, demo, *rest = first.splitlines()
    assert clone.endswith("&& cd containerpub")
    assert demo == "make demo"  # which leaves .venv behind, as the tests have it
    script = "\n".join(["set -eu", *rest, "command -v containerpub", "containerpub --version"])
    done = subprocess.run(
        ["bash", "-c", script], env=bare(tmp_path / "home"), cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{ROOT}/.venv/bin/containerpub", version("containerpub")]


def test_the_tour_runs_as_it_stands(tmp_path: Path) -> None:
    port = str(free_port())
    environment = bare(tmp_path / "home")
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])
    *_, at_hand = blocks("first")[0].splitlines()
    (server,) = blocks("server")
    with (tmp_path / "up.log").open("wb") as log:
        up = subprocess.Popen(
            ["bash", "-c", f"{at_hand}\nexec {server.strip()} --port {port}"],
            env=environment,
            cwd=tmp_path,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + START_S
        while not (tmp_path / "data" / "api.url").exists():
            assert up.poll() is None, (tmp_path / "up.log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "up.log").read_text()
            time.sleep(0.1)
        script = "set -euo pipefail\n" + "\n".join(blocks("tour")).replace(":8080", f":{port}")
        done = subprocess.run(
            ["bash", "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "up.log").read_text()
        assert "greeter version 1 is live" in done.stdout
        assert done.stdout.count('"success":true') == 1
        assert done.stdout.rstrip().endswith("}")
        assert '{"job_id":' in done.stdout
    finally:
        up.send_signal(signal.SIGTERM)
        assert up.wait(40) == 0


def test_clean_all_is_refused_while_a_platform_runs_on_the_folder(tmp_path: Path) -> None:
    """In a copy of what it takes, so that nothing of this clone can go."""
    clone, data = tmp_path / "a clone", tmp_path / "a clone" / "my data"
    (clone / "scripts").mkdir(parents=True)
    for name in ("Makefile", "scripts/unused.py"):
        (clone / name).write_bytes((ROOT / name).read_bytes())
    data.mkdir()
    kept = data / "kept"
    kept.touch()
    command = ["make", "clean-all", f"DATA={data}", f"PYTHON={sys.executable}"]

    lock = FolderLock(data)
    lock.acquire()
    try:
        refused = subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=60)
    finally:
        lock.release()
    assert refused.returncode != 0
    assert f"in use by the process {os.getpid()}" in refused.stderr
    assert kept.exists()

    subprocess.run(command, cwd=clone, check=True, capture_output=True, timeout=60)
    assert not data.exists()
