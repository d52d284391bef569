"""What goes into an upload, and what stops it before it is sent."""

from __future__ import annotations

import os
import socket
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from cli.archive import Archive, ignored, pack
from cli.errors import UsageError


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "main.py").write_text("def handler(event, context): return 1\n")
    (folder / "lib").mkdir()
    (folder / "lib" / "a.py").write_text("A = 1\n")
    return folder


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def names(archive: Archive) -> list[str]:
    with archive.content, archive.reader() as file, tarfile.open(fileobj=file) as tar:
        return tar.getnames()


def test_the_same_content_packs_to_the_same_bytes(project: Path, tmp_path: Path) -> None:
    def packed() -> bytes:
        archive = pack(project)
        with archive.content, archive.reader() as file:
            return file.read()

    first = packed()
    os.utime(project / "main.py", (1, 1))
    (project / "main.py").chmod(0o600)
    (project / "lib" / "a.py").unlink()
    write(project, {"lib/a.py": "A = 1\n"})
    assert packed() == first


def test_entries_are_sorted_files_with_nothing_of_their_machine(project: Path) -> None:
    (project / "run.sh").write_text("#!/bin/sh\n")
    (project / "run.sh").chmod(0o4711)
    archive = pack(project)
    with archive.content, archive.reader() as file, tarfile.open(fileobj=file) as tar:
        entries = tar.getmembers()
    assert [entry.name for entry in entries] == ["lib/a.py", "main.py", "run.sh"]
    assert all(entry.isreg() and (entry.mtime, entry.uid, entry.gid) == (0, 0, 0) for entry in entries)
    assert all((entry.uname, entry.gname) == ("", "") for entry in entries)
    assert [entry.mode for entry in entries] == [0o644, 0o644, 0o755]
    assert archive.files == 3


def test_what_never_belongs_to_a_function_is_left_out(project: Path) -> None:
    write(
        project,
        {
            ".git/config": "",
            "__pycache__/main.cpython-311.pyc": "",
            "lib/__pycache__/a.pyc": "",
            ".venv/bin/python": "",
            "node_modules/x/index.js": "",
            "lib/node_modules/y/index.js": "",
            "old.pyc": "",
            ".env": "SECRET=1",
            "lib/.env": "SECRET=1",
            ".DS_Store": "",
        },
    )
    assert names(pack(project)) == ["lib/a.py", "main.py"]


def test_the_ignore_file_leaves_more_out(project: Path) -> None:
    write(
        project,
        {
            ".containerpubignore": "# notes\n\n*.md\ndata/\nlib/*.txt\n/top.txt\n",
            "README.md": "",
            "lib/README.md": "",
            "data/big.bin": "",
            "lib/data": "a file of that name",
            "lib/x.txt": "",
            "x.txt": "",
            "top.txt": "",
        },
    )
    assert names(pack(project)) == ["lib/a.py", "lib/data", "main.py", "x.txt"]


@pytest.mark.parametrize(
    ("name", "is_folder", "pattern", "expected"),
    [
        ("a.pyc", False, "*.pyc", True),
        ("x/a.pyc", False, "*.pyc", True),
        ("x/y", True, "y/", True),
        ("x/y", False, "y/", False),
        ("x/y", False, "x/y", True),
        ("z/x/y", False, "x/y", False),
        ("y", False, "/y", True),
        ("x/y", False, "/y", False),
        ("A.PYC", False, "*.pyc", False),
    ],
)
def test_a_pattern_matches_what_is_documented(name: str, is_folder: bool, pattern: str, expected: bool) -> None:
    assert ignored(name, is_folder=is_folder, patterns=(pattern,)) is expected


def test_an_ignore_pattern_that_includes_again_is_refused(project: Path) -> None:
    write(project, {".containerpubignore": "!keep.txt\n"})
    with pytest.raises(UsageError, match=r"!keep\.txt"):
        pack(project)


@pytest.mark.parametrize("target", ["main.py", "lib", "/etc/passwd", "nowhere"])
def test_u3_a_symbolic_link_is_refused_by_name(project: Path, target: str) -> None:
    (project / "lib" / "link").symlink_to(target)
    with pytest.raises(UsageError, match="lib/link is a symbolic link"):
        pack(project)


def test_an_ignored_link_does_not_matter(project: Path) -> None:
    (project / ".venv").symlink_to("/")
    assert names(pack(project)) == ["lib/a.py", "main.py"]


@pytest.fixture
def unix_socket(project: Path) -> Iterator[str]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(project / "listening"))
        yield "listening"


def test_u6_a_pipe_is_refused_and_never_opened(project: Path) -> None:
    os.mkfifo(project / "pipe")
    with pytest.raises(UsageError, match="pipe is neither a file nor a folder"):
        pack(project)


def test_u6_a_socket_is_refused(project: Path, unix_socket: str) -> None:
    with pytest.raises(UsageError, match=unix_socket):
        pack(project)


def test_a_name_that_is_not_unicode_is_refused(project: Path) -> None:
    (Path(os.fsdecode(os.fsencode(project) + b"/bad\xff.txt"))).write_text("")
    with pytest.raises(UsageError, match="not Unicode"):
        pack(project)


def test_a_folder_too_large_to_upload_is_found_out_before_it_is_all_packed(project: Path) -> None:
    (project / "random.bin").write_bytes(os.urandom(300_000))
    with pytest.raises(UsageError, match="larger than"):
        pack(project, max_bytes=100_000)
    archive = pack(project, max_bytes=400_000)
    assert archive.content.seek(0, os.SEEK_END) == archive.size
    assert "random.bin" in names(archive)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file"):
        pack(tmp_path)
