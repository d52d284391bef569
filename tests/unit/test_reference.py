"""Pages that are made from the code are as the code has them; the schema judges project files as the API does."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from shared.errors import Invalid
from shared.functions import FunctionSettings, project_settings
from shared.reference.pages import PAGES
from shared.reference.project_file import project_file_schema
from shared.settings import load

ROOT = Path(__file__).parents[2]
FILES = sorted((*ROOT.glob("examples/*/containerpub.toml"), *ROOT.glob("runtimes/*/template/containerpub.toml")))
VALIDATOR = jsonschema.Draft202012Validator(project_file_schema())


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_as_the_code_has_it(name: str) -> None:
    page = (ROOT / "docs" / "reference" / name).read_text("utf-8")
    assert page == PAGES[name](), "write them again: python -m shared.reference"


def test_every_key_has_a_row_and_a_sentence() -> None:
    page = (ROOT / "docs" / "reference" / "project-file.md").read_text("utf-8")
    for key in ("name", *FunctionSettings.model_fields):
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{key}` |"))
        assert row.rstrip(" |").endswith(".")


def test_the_schema_is_one() -> None:
    VALIDATOR.check_schema(project_file_schema())
    assert len(FILES) > 10


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_project_files_of_examples_and_templates_are_valid(path: Path) -> None:
    VALIDATOR.validate(tomllib.loads(path.read_text("utf-8")))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"name": "a", "runtime": "node", "handler": ""},
        {"memory_mb": 15},
        {"memry_mb": 128},
        {"timeout_s": 0},
        {"timeout_s": 0.5},
        {"tmp_mb": 64, "memory_mb": 64},
        {"tmp_mb": 0},
        {"isolation": "Fresh"},
        {"retry_on": ["timeout"], "max_attempts": 3},
        {"retry_on": ["never"]},
        {"on_success": "Not A Name"},
        {"name": 3},
    ],
    ids=json.dumps,
)
def test_the_schema_and_a_deploy_agree(values: dict[str, Any]) -> None:
    try:
        project_settings(load({}), file_name="function.json", file=json.dumps(values).encode(), overrides=None)
    except Invalid:
        accepted = False
    else:
        accepted = True
    assert VALIDATOR.is_valid(values) is accepted


def test_tmp_grows_with_the_memory_unless_it_is_set() -> None:
    def size(file: str) -> int:
        found, _ = project_settings(load({}), file_name="containerpub.toml", file=file.encode(), overrides=None)
        return found.tmp_size_mb

    assert [size(f"memory_mb = {memory}") for memory in (16, 64, 128, 1024)] == [16, 16, 32, 256]
    assert size("memory_mb = 128\ntmp_mb = 100") == 100
    with pytest.raises(Invalid, match="tmp_mb may be at most memory_mb, which is 128"):
        size("memory_mb = 128\ntmp_mb = 129")
