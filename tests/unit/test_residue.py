"""A call that fills the folders which a function may write to is the last one of its sandbox."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.machine import lacks

RUNTIME = Path(__file__).parents[2] / "runtimes" / "python"
_FILL = """
import json, os, sys
sys.path[0:0] = [sys.argv[1]]
from containerpub_runtime.folders import Folder
folder, calls, found = Folder(sys.argv[2]), json.loads(sys.argv[3]), []
for number, (size, files, stay) in enumerate(calls):
    for file in range(files):
        with open(f"{sys.argv[2]}/{number}-{file}", "wb") as out:
            out.write(b"x" * size)
        if not stay:
            os.unlink(out.name)
    found.append(folder.is_short())
print(json.dumps(found))
"""
MB = 1024**2


def short_after(tmp_path: Path, calls: list[tuple[int, int, int]]) -> str:
    """Whether a tmpfs of 16 MB and 400 files is short of room after each of ``calls``: bytes a file, files, and
    whether they stay."""
    script = 'mount -t tmpfs -o size=16m,nr_inodes=400 none "$1" && exec "$2" -c "$3" "$4" "$1" "$5"'
    own = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    command = [
        "sh",
        "-c",
        script,
        "sh",
        str(tmp_path),
        sys.executable,
        _FILL,
        str(RUNTIME),
        str([list(c) for c in calls]),
    ]
    if subprocess.run([*own, "true"], check=False, capture_output=True).returncode:
        lacks("this kernel grants no mount namespace")
    done = subprocess.run([*own, *command], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("calls", "short"),
    [
        ([(5 * MB, 1, 1)] * 2, "[false, true]"),
        ([(7 * MB, 1, 1)] * 2, "[false, true]"),
        ([(9 * MB, 1, 1)], "[true]"),
        ([(0, 150, 1)] * 2, "[false, true]"),
        ([(14 * MB, 1, 0)] * 3, "[false, false, false]"),
        ([(7 * MB, 1, 1), (4 * MB, 1, 0), (1, 1, 1)], "[false, false, false]"),
    ],
)
def test_a_folder_is_short_before_a_call_like_the_others_finds_no_room(
    tmp_path: Path, calls: list[tuple[int, int, int]], short: str
) -> None:
    assert short_after(tmp_path, calls) == short
