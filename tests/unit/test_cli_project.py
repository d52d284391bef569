"""Which project a folder holds."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from cli.commands.init import with_name
from cli.errors import UsageError
from cli.project import read_project


def test_settings_come_from_the_project_file_and_the_name_from_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "greeter"
    folder.mkdir()
    (folder / "containerpub.toml").write_text('runtime = "python"\nhandler = "main:handler"\ntimeout_s = 3\n')
    project = read_project(folder)
    assert project.name == "greeter"
    assert project.settings == {"runtime": "python", "handler": "main:handler", "timeout_s": 3}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("containerpub.toml", 'name = "own"\nruntime = "node"\n'),
        ("function.json", '{"name": "own", "runtime": "node"}'),
    ],
)
def test_both_kinds_of_project_file_say_the_same(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).write_text(text)
    assert read_project(tmp_path).name == "own"
    assert read_project(tmp_path).settings == {"runtime": "node"}
    assert read_project(tmp_path, name="given").name == "given"


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({}, "no containerpub.toml"),
        ({"containerpub.toml": "", "function.json": "{}"}, "both"),
        ({"containerpub.toml": "runtime ="}, "cannot be read"),
        ({"containerpub.toml": "since = 2024-01-01"}, "since"),
        ({"containerpub.toml": "timeout_s = nan"}, "timeout_s"),
        ({"containerpub.toml": "name = 5"}, "name"),
        ({"function.json": "[]"}, "object"),
        ({"function.json": "{"}, "cannot be read"),
        ({"function.json": "\udcff"}, "cannot be read"),
    ],
)
def test_a_folder_that_is_no_project_is_refused_with_the_reason(
    tmp_path: Path, files: dict[str, str], complaint: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UsageError, match=complaint):
        read_project(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a folder"):
        read_project(tmp_path / "nowhere")


@pytest.mark.parametrize("before", ['runtime = "python"\n', 'name = "template"\nruntime = "python"\n'])
@pytest.mark.parametrize("name", ["hello", 'with "quotes" and \\1'])
def test_a_new_project_carries_its_name(before: str, name: str) -> None:
    assert tomllib.loads(with_name(before, name)) == {"name": name, "runtime": "python"}
