"""The settings of a deploy, of a project file and the request."""

from __future__ import annotations

import pytest

from shared.functions import project_settings
from shared.runtimes import known_runtimes
from shared.settings import Settings


@pytest.mark.parametrize("runtime", known_runtimes())
def test_a_project_that_names_no_handler_has_its_runtimes_default(runtime: str) -> None:
    """Which the runtime knows: no other one stands in its place."""
    file = f'runtime = "{runtime}"\n'.encode()
    found, _ = project_settings(Settings(), file_name="containerpub.toml", file=file, overrides=None)
    assert (found.runtime, found.handler) == (runtime, "")
