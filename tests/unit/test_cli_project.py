"""Which project a folder holds."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from cli.commands.init import with_name
from cli.errors import UsageError
from cli.names import checked, legal
from cli.project import read_project
from shared.functions import NAME_PATTERN


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
        ({"containerpub.toml": "# gr\udcf6\udcdfe"}, "it is not UTF-8.*0xF6 in line 1.*Save it as UTF-8"),
        ({"containerpub.toml": 'name = "My Other"'}, "name in containerpub.toml is no name for a function"),
    ],
)
def test_a_folder_that_is_no_project_is_refused_with_the_reason(
    tmp_path: Path, files: dict[str, str], complaint: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UsageError, match=complaint):
        read_project(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("file", "text"), [("containerpub.toml", 'name = "own"\r\n'), ("function.json", '{"name": "own"}\r\n')]
)
def test_a_project_file_is_read_whatever_an_editor_adds(tmp_path: Path, file: str, text: str, encoding: str) -> None:
    (tmp_path / file).write_bytes(text.encode(encoding))
    assert read_project(tmp_path).name == "own"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("My Other", "my-other"),
        ("Größe", "grosse"),
        ("a" * 80, "a" * 63),
        ("-x-", "x"),
        ("my_function", "my_function"),
        ("café.v2", "cafe-v2"),
        ("函数", "my-function"),
        ("", "my-function"),
        ("a" * 62 + "-b", "a" * 62),
    ],
)
def test_a_legal_name_is_proposed(text: str, name: str) -> None:
    assert legal(text) == name
    assert re.fullmatch(NAME_PATTERN, name)
    assert checked(name, whose="The name") == name
    if text != name:
        with pytest.raises(UsageError) as refused:
            checked(text, whose="The name")
        assert refused.value.hint == f"Give another one: --name {name}"


def test_a_folder_whose_name_no_function_may_have_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    folder = tmp_path / "My Other"
    folder.mkdir()
    (folder / "containerpub.toml").write_text('runtime = "python"\n')
    with pytest.raises(UsageError, match="The folder's name is no name for a function") as refused:
        read_project(folder)
    assert refused.value.hint == "Give another one: --name my-other"
    assert read_project(folder, name="other").name == "other"
    with pytest.raises(UsageError, match="--name is no name"):
        read_project(folder, name="Other")


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a folder"):
        read_project(tmp_path / "nowhere")


@pytest.mark.parametrize("before", ['runtime = "python"\n', 'name = "template"\nruntime = "python"\n'])
@pytest.mark.parametrize("name", ["hello", 'with "quotes" and \\1'])
def test_a_new_project_carries_its_name(before: str, name: str) -> None:
    assert tomllib.loads(with_name(before, name)) == {"name": name, "runtime": "python"}
