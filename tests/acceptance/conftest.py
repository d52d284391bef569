"""In which ways the engines run for a test that takes ``bench``."""

from __future__ import annotations

import engines
import pytest

_DOCKER = [pytest.param(way, marks=pytest.mark.docker) for way in ("docker", "docker-blank")]
USUAL = ["process", *_DOCKER]
EVERY_WAY = ["process", "process-alone", "process-blank", *_DOCKER]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What a function sees is the same whatever holds it: those tests run on each engine, and once from a blank. How a
    sandbox starts, ends and is cleared away differs: tests of that are marked ``every_way``."""
    ours = getattr(metafunc.module, "bench", None) is engines.bench
    if ours and "bench" in metafunc.fixturenames:
        every = metafunc.definition.get_closest_marker("every_way") is not None
        metafunc.parametrize("bench", EVERY_WAY if every else USUAL, indirect=True)
