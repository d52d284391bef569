"""Images that tests run: our own, and those of the services beside it. Made once for all processes of a test run.

Both stay on the engine, under tags that say what they were made of, for the next run; our own goes after a day.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
STAND_INS = Path(__file__).with_name("stand_ins")
BASE_IMAGE = "python:3.11-slim"
BUILD_S = 900
_LABEL = "containerpub-test=platform"
_SERVICE_IMAGE = re.compile(r"\$\{((?:POSTGRES|REDIS|S3|REGISTRY)_IMAGE):-([^}]+)\}")


def platform_image() -> str:
    """The tag of our image, built as a user of the classic builder would, if it is not there."""
    tag = f"containerpub-test/platform:{_digest_of_context()}"
    with _one_at_a_time():
        if not _is_there(tag):
            _run(
                *("docker", "build", "--label", _LABEL, "--build-arg", f"PYTHON_IMAGE={BASE_IMAGE}", "--tag", tag, "."),
                env={**os.environ, "DOCKER_BUILDKIT": "0"},
            )
            _run("docker", "image", "prune", "--all", "--force", "--filter", f"label={_LABEL}", "--filter", "until=24h")
    return tag


def service_images() -> dict[str, str]:
    """An image for each variable of compose.yaml that names a service's: the default, pulled if need be, else our
    stand-in."""
    images = dict(_SERVICE_IMAGE.findall((ROOT / "compose.yaml").read_text("utf-8")))
    with _one_at_a_time():
        return {name: image if _is_there(image) or _can_pull(image) else _stand_in() for name, image in images.items()}


def _stand_in() -> str:
    _run("images/build.sh", str(STAND_INS))
    return re.search(r"^IMAGE=(.+)$", (STAND_INS / "image.conf").read_text("utf-8"), re.MULTILINE)[1]  # type: ignore[index]


def _digest_of_context() -> str:
    """Of everything that goes to the builder, and of what our image is built on."""
    rules = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    digest = hashlib.sha256(_run("docker", "image", "inspect", "--format", "{{.Id}}", BASE_IMAGE).encode())
    for name in sorted(["Dockerfile", ".dockerignore", *(rule[1:] for rule in rules if rule.startswith("!"))]):
        path = ROOT / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and file.suffix != ".pyc":
                digest.update(f"{file.relative_to(ROOT)}\0{file.stat().st_mode & 0o777}\0".encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    with Path(tempfile.gettempdir(), "containerpub-test-images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_there(image: str) -> bool:
    return subprocess.run(["docker", "image", "inspect", image], capture_output=True, timeout=60).returncode == 0


def _can_pull(image: str) -> bool:
    return subprocess.run(["docker", "pull", "--quiet", image], capture_output=True, timeout=BUILD_S).returncode == 0


def _run(*command: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=BUILD_S)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout
