"""``pip install .`` brings all that runs, and nothing that only builds or tests."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.deployment import ROOT


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The files of the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    source = folder / "source"
    for name in filter(None, tracked):
        path = Path(name.decode())
        if (ROOT / path).is_file():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_bytes((ROOT / path).read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_every_module_script_query_and_runtime_file_is_in_the_wheel(names: set[str]) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    rooms = ("api/", "worker/", "scheduler/", "shared/", "cli/", "sql/", "runtimes/")
    expected = {name for name in tracked if name.startswith(rooms) and (ROOT / name).is_file()}
    assert expected - names == set()


def test_nothing_else_is(names: set[str]) -> None:
    assert {name.split("/")[0] for name in names} == {"api", "worker", "scheduler", "shared", "cli", "sql", "runtimes"}
    assert not [name for name in names if "__pycache__" in name]
