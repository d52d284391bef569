"""Where tokens are kept, and to whom they are sent."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cli.config import DEFAULT_API_URL, Config, ConfigFile, clean_url, data_folder, resolve
from cli.errors import UsageError

STORED = Config(api_url="https://one.example", access_token="access", refresh_token="refresh", email="a@example.org")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_folder_and_the_file_are_for_their_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        file = ConfigFile({"XDG_CONFIG_HOME": str(tmp_path)})
        file.save(STORED)
    finally:
        os.umask(before)
    assert file.path == tmp_path / "containerpub" / "config.json"
    assert (mode(file.folder), mode(file.path)) == (0o700, 0o600)
    assert file.load() == STORED


def test_an_open_file_is_closed_again_by_the_next_save(tmp_path: Path) -> None:
    file = ConfigFile({"XDG_CONFIG_HOME": str(tmp_path)})
    file.save(STORED)
    file.path.chmod(0o644)
    file.folder.chmod(0o755)
    file.save(STORED)
    assert (mode(file.folder), mode(file.path)) == (0o700, 0o600)


def test_a_folder_that_the_user_chose_is_made_private_but_an_existing_one_keeps_its_mode(tmp_path: Path) -> None:
    ConfigFile({"CONTAINERPUB_CONFIG_DIR": str(tmp_path / "new")}).save(STORED)
    assert mode(tmp_path / "new") == 0o700
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o755)
    ConfigFile({"CONTAINERPUB_CONFIG_DIR": str(tmp_path / "shared")}).save(STORED)
    assert mode(tmp_path / "shared") == 0o755


def test_a_save_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    file = ConfigFile({"CONTAINERPUB_CONFIG_DIR": str(tmp_path / "c")})
    file.save(Config())
    with file.path.open() as reader:
        file.save(STORED)
        assert '"access"' not in reader.read()  # whoever opened the old file reads all of the old content
    assert os.listdir(file.folder) == ["config.json"]


def test_the_folder_falls_back_to_the_home_folder(tmp_path: Path) -> None:
    assert ConfigFile({"HOME": str(tmp_path)}).folder == tmp_path / ".config" / "containerpub"
    relative = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": "not/absolute"}
    assert ConfigFile(relative).folder == tmp_path / ".config" / "containerpub"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"access_token": 5}', "\udcff"])
def test_a_broken_file_is_reported_and_not_overwritten(tmp_path: Path, content: str) -> None:
    file = ConfigFile({"CONTAINERPUB_CONFIG_DIR": str(tmp_path)})
    file.path.write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UsageError, match=r"config\.json"):
        file.load()


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        ConfigFile({"CONTAINERPUB_CONFIG_DIR": str(tmp_path / "file" / "below")}).save(STORED)


def test_the_environment_goes_before_the_file_and_the_file_before_the_default() -> None:
    assert resolve(Config(), {}).api_url == DEFAULT_API_URL
    assert resolve(STORED, {}).api_url == "https://one.example"
    assert resolve(STORED, {"API_URL": "https://two.example/"}).api_url == "https://two.example"
    target = resolve(STORED, {"AUTH_TOKEN": "mine"})
    assert (target.access_token, target.refresh_token, target.from_environment) == ("mine", None, True)


def test_tokens_are_never_sent_to_another_server_than_their_own() -> None:
    same = resolve(STORED, {"API_URL": "https://one.example/"})
    other = resolve(STORED, {"API_URL": "https://two.example"})
    assert (same.access_token, same.refresh_token) == ("access", "refresh")
    assert (other.access_token, other.refresh_token) == (None, None)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "one.example",
        "ftp://one.example",
        "http://",
        "http://u:p@one.example",
        "http://x:99999",
        "http://[",
        "http://x?a",
    ],
)
def test_what_is_no_server_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        clean_url(url)


def test_data_goes_to_the_users_data_folder(tmp_path: Path) -> None:
    assert data_folder({"HOME": str(tmp_path)}).is_relative_to(tmp_path)
    assert data_folder({"HOME": str(tmp_path)}).name == "containerpub"
