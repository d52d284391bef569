"""What goes into an upload, and what stops it before it is sent."""

from __future__ import annotations

import os
import socket
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from cli.archive import Archive, listing, pack
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


NEVER = [
    *(".git/config", ".hg/x", ".svn/x", "__pycache__/main.cpython-311.pyc", "lib/__pycache__/a.pyc", "old.pyc"),
    *(".venv/bin/python", "venv/bin/python", "env/bin/python", "lib/venv/x", "node_modules/x/index.js"),
    *("lib/node_modules/y/index.js", ".mypy_cache/x", ".pytest_cache/x", ".tox/x"),
    *(".env", "lib/.env", ".env.local", ".env.production", ".npmrc", "lib/.npmrc", ".pypirc", ".netrc"),
    *("id_rsa", "id_rsa.pub", "keys/id_ed25519", "server.pem", "tls/server.key", "tls/server.p12", ".aws/credentials"),
    *(".DS_Store", "lib/.DS_Store", "._main.py", "lib/._a.py", "__MACOSX/x", "Thumbs.db", ".idea/x.xml", ".vscode/x"),
]


@pytest.mark.parametrize("name", NEVER)
def test_what_never_belongs_to_a_function_is_left_out(project: Path, name: str) -> None:
    write(project, {name: "SECRET=1"})
    assert names(pack(project)) == ["lib/a.py", "main.py"]
    ((left_out, rule),) = listing(project).left_out
    assert name.startswith(left_out)
    assert "by default" in rule


def test_a_virtual_environment_is_left_out_whatever_it_is_called(project: Path) -> None:
    write(project, {"my-python/pyvenv.cfg": "home = /usr/bin", "my-python/bin/activate": ""})
    assert names(pack(project)) == ["lib/a.py", "main.py"]
    assert listing(project).left_out == [("my-python/", "a virtual environment, by default")]


def test_the_ignore_file_leaves_more_out(project: Path) -> None:
    write(
        project,
        {
            ".containerpubignore": "# notes\n\n*.md\ndata/\nlib/*.txt\n/top.txt\nlogs/**/old\n",
            "README.md": "",
            "lib/README.md": "",
            "data/big.bin": "",
            "lib/data": "a file of that name",
            "lib/x.txt": "",
            "lib/deep/x.txt": "",
            "x.txt": "",
            "top.txt": "",
            "logs/a/b/old": "",
        },
    )
    assert names(pack(project)) == ["lib/a.py", "lib/data", "lib/deep/x.txt", "main.py", "x.txt"]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfsecrets.json\r\n*.log\r\n",
        "\ufeffsecrets.json\r\n*.log\r\n".encode("utf-16-le"),
        b"secrets.json   \r\n*.log\t\r\n".replace(b"\t", b""),
        b"secrets.json\r*.log",
    ],
    ids=["mark and CRLF", "UTF-16", "blanks at the end", "CR"],
)
@pytest.mark.parametrize("file", [".containerpubignore", ".gitignore"])
def test_patterns_hold_whatever_an_editor_adds(project: Path, file: str, content: bytes) -> None:
    write(project, {"secrets.json": "{}", "a.log": "", "lib/b.log": ""})
    (project / file).write_bytes(content)
    assert [name for name in names(pack(project)) if name != ".gitignore"] == ["lib/a.py", "main.py"]


def test_an_ignore_file_in_another_encoding_is_refused_with_what_to_do(project: Path) -> None:
    (project / ".containerpubignore").write_bytes("geheim-größe.json".encode("latin-1"))
    with pytest.raises(UsageError, match=r"\.containerpubignore cannot be read: it is not UTF-8.*Latin-1.*Save it"):
        pack(project)


def test_gitignore_is_honoured_in_every_folder_as_git_does(project: Path) -> None:
    write(
        project,
        {
            ".gitignore": "*.secret\n!public.secret\nbuild/\n",
            "a.secret": "",
            "public.secret": "",
            "lib/b.secret": "",
            "build/x.js": "",
            "lib/.gitignore": "/only-here\n!kept.secret\n",
            "lib/only-here": "",
            "only-here": "",
            "lib/kept.secret": "",
        },
    )
    assert [name for name in names(pack(project)) if not name.endswith(".gitignore")] == [
        "lib/a.py",
        "lib/kept.secret",
        "main.py",
        "only-here",
        "public.secret",
    ]
    assert ("build/", "build/, .gitignore") in listing(project).left_out


def test_gitignore_of_the_repository_above_counts(project: Path) -> None:
    repository = project.parent
    write(repository, {".gitignore": "*.dump\n/project/local/\n/other/\n", ".git/HEAD": ""})
    write(project, {"x.dump": "", "local/x": "", "other/x": ""})
    assert names(pack(project)) == ["lib/a.py", "main.py", "other/x"]


def test_a_folder_that_its_repository_ignores_can_be_deployed(project: Path) -> None:
    write(project.parent, {".gitignore": "project/\n*.py\n", ".git/HEAD": ""})
    assert names(pack(project)) == ["lib/a.py", "main.py"]


def test_gitignore_above_counts_only_in_a_repository(project: Path) -> None:
    write(project.parent, {".gitignore": "*.py\n"})
    assert names(pack(project)) == ["lib/a.py", "main.py"]


def test_the_ignore_file_includes_again(project: Path) -> None:
    write(
        project,
        {
            ".gitignore": "dist/\n",
            ".containerpubignore": "!dist/\n!ca.pem\n!env/\n*.map\n",
            "dist/main.js": "",
            "dist/main.js.map": "",
            "ca.pem": "",
            "other.pem": "",
            "env/config.py": "",
        },
    )
    assert [name for name in names(pack(project)) if name != ".gitignore"] == [
        "ca.pem",
        "dist/main.js",
        "env/config.py",
        "lib/a.py",
        "main.py",
    ]


@pytest.mark.parametrize(
    ("pattern", "name", "left_out"),
    [
        ("*.pyc", "x/a.pyc", True),
        ("y/", "x/y/z", True),
        ("y/", "x/y", False),
        ("x/y", "x/y", True),
        ("x/y", "z/x/y", False),
        ("/y", "y", True),
        ("/y", "x/y", False),
        ("*.TXT", "a.txt", False),
        ("a*c", "a/c", False),
        ("\\#x", "#x", True),
        ("\\!x", "!x", True),
        ("**/y", "a/b/y", True),
    ],
)
def test_a_pattern_matches_as_in_git(project: Path, pattern: str, name: str, left_out: bool) -> None:
    write(project, {".containerpubignore": f"{pattern}\n", name: ""})
    assert (name in names(pack(project))) is not left_out


def test_an_ignore_pattern_that_is_none_is_refused(project: Path) -> None:
    write(project, {".containerpubignore": "!\n"})
    with pytest.raises(UsageError, match=r"\.containerpubignore has a pattern that is none"):
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
