"""Temporary folders go with their process, also when it is killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from shared.scratch import Scratch

OWNER = """
import asyncio, sys
from pathlib import Path
from shared.scratch import Scratch

async def main():
    scratch = Scratch(Path(sys.argv[1]))
    await scratch.open()
    async with scratch.folder() as folder:
        (folder / "file").write_text("x")
        print(folder, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_folder_goes_at_the_end_and_the_process_folder_at_close(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    await scratch.open()
    async with scratch.folder() as folder:
        (folder / "file").write_text("x")
    assert not folder.exists()
    await scratch.close()
    assert list((tmp_path / "scratch").iterdir()) == []


async def test_sweep_takes_the_folders_of_the_dead_and_spares_those_of_the_living(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    folder = Path(owner.stdout.readline().strip())
    scratch = Scratch(tmp_path)
    await scratch.open()
    assert (folder / "file").exists()
    assert await scratch.sweep() == 0
    owner.kill()
    owner.communicate()
    assert await scratch.sweep() == 1
    assert not folder.exists()
    await scratch.close()
