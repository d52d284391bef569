"""The container engine as baselines use it: by its command, as somebody would by hand."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.figure import WrongAnswer

BASE_IMAGE = "python:3.11-slim"
NODE_IMAGE = "node:18-slim"
_TIMEOUT_S = 120.0
_RUN_ONCE = """
import json, sys
sys.path[:0] = ["/function"]
import main
print(json.dumps(main.handler({event}, None)))
"""


async def docker(*arguments: str) -> str:
    """What ``docker …`` prints. Raises :class:`WrongAnswer` when it fails."""
    process = await asyncio.create_subprocess_exec(
        "docker", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            out, err = await process.communicate()
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    if process.returncode != 0:
        raise WrongAnswer(f"docker {arguments[0]} ended with {process.returncode}: {err.decode()[-500:]}")
    return out.decode()


async def choose() -> str:
    """``docker`` where an engine answers, else ``process``."""
    try:
        await docker("version", "--format", "{{.Server.Version}}")
    except (OSError, TimeoutError, WrongAnswer):
        return "process"
    return "docker"


async def run_once(image: str, event: object) -> str:
    """Run the function in ``image`` once in a fresh container, nothing of ours around it; what it returned, as JSON."""
    code = _RUN_ONCE.replace("{event}", repr(event))
    return (await docker("run", "--rm", "--network", "none", image, "python3", "-c", code)).splitlines()[-1]


async def build(folder: Path, tag: str) -> None:
    """``docker build`` of a folder with a ``main.py``: the image that somebody would write by hand."""
    (folder / "Dockerfile").write_text(f"FROM {BASE_IMAGE}\nCOPY main.py /function/main.py\n")
    await docker("build", "--quiet", "--tag", tag, str(folder))


async def assemble(installation: str, base: str, layers: Sequence[Path]) -> str:
    """One image of all that a version consists of, as its owner would have written it; its id.

    :param layers: tars, from the bottom up.
    """
    with tempfile.TemporaryDirectory(prefix="cp-bench-") as folder:
        lines = [f"FROM {base}"]
        for number, layer in enumerate(layers):
            await asyncio.to_thread(shutil.copyfile, layer, Path(folder, f"{number}.tar"))
            lines.append(f"ADD {number}.tar /")
        Path(folder, "Dockerfile").write_text("\n".join(lines))
        tag = f"containerpub/function:bench-{secrets.token_hex(8)}"
        label = f"containerpub.installation={installation}"
        return (await docker("build", "--quiet", "--label", label, "--tag", tag, folder)).strip()


async def remove(*images: str) -> None:
    if images:
        await docker("rmi", "--force", *images)


async def remove_images(engine_name: str, installation: str) -> None:
    """Remove the images of functions that ``installation`` built."""
    if engine_name != "docker":
        return
    label = f"label=containerpub.installation={installation}"
    await remove(*set((await docker("images", "-q", "--filter", label, "containerpub/function")).split()))
