"""What this machine may lack of what a test needs."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def lacks(what: str) -> NoReturn:
    """Leave the test out, saying what there is not; in CI, where nothing may be left out, it fails."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)
