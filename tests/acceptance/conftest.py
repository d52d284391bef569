"""On which engines, and in which ways, a test runs that takes ``bench`` or ``docker_bench``."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import engines
import podman
import pytest

from tests.machine import lacks

_DOCKER = [pytest.param(way, marks=pytest.mark.docker) for way in ("docker", "docker-generic")]
_PODMAN = [pytest.param(way, marks=pytest.mark.on_podman) for way in ("podman", "podman-generic")]
USUAL = ["process", *_DOCKER]
EVERY_WAY = ["process", "process-alone", "process-generic", *_DOCKER]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What a function sees is the same whatever holds it: those tests run on each engine, and once from a generic
    sandbox. How a sandbox starts, ends and is cleared away differs: tests of that are marked ``every_way``. What Podman
    may do in its own way is marked ``podman``."""
    every = metafunc.definition.get_closest_marker("every_way") is not None
    if metafunc.config.getoption("--podman"):
        more = _PODMAN if every else _PODMAN[:1]
    else:
        more = _PODMAN[:1] if metafunc.definition.get_closest_marker("podman") else []
    if _is_ours(metafunc, "bench"):
        metafunc.parametrize("bench", [*(EVERY_WAY if every else USUAL), *more], indirect=True)
    elif _is_ours(metafunc, "docker_bench") and more:
        metafunc.parametrize("docker_bench", [_DOCKER[0], _PODMAN[0]], indirect=True)


def _is_ours(metafunc: pytest.Metafunc, name: str) -> bool:
    return name in metafunc.fixturenames and getattr(metafunc.module, name, None) is getattr(engines, name)


@pytest.fixture(scope="session")
def podman_host() -> Iterator[str]:
    """Where a Podman with the base images listens. In CI, where root has none, that is a failure."""
    if not podman.can_run():
        lacks("Podman cannot be run: it is not installed, or this is not root")
    with podman.serving(images=podman.BASE_IMAGES) as host:
        yield host


@pytest.fixture(scope="session")
def compose() -> tuple[str, ...]:
    """The Compose of this machine: 1.29 or the plugin. In CI it is a failure where there is none."""
    if shutil.which("docker-compose"):
        return ("docker-compose",)
    if not shutil.which("docker") or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        lacks("there is no Compose: install docker-compose")
    return ("docker", "compose")
