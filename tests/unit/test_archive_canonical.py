"""Equal contents make an equal file, whatever they came in; and that file can be read again."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from shared.archive import ArchiveLimits, CanonicalArchive, read_entries, rewrite
from shared.errors import ArchiveRejected, TooLarge
from tests.unit import archives
from tests.unit.archives import ZipEntry, tar_file, tar_folder, zip_archive

LIMITS = ArchiveLimits()
FILES = {
    "main.py": b"def handler(event, context):\n    return 1\n",
    "containerpub.toml": b'runtime = "python"\n',
    "bin/run": b"#!/bin/sh\n",
    "lib/deep/er/" + "n" * 120 + ".py": b"x",
    "lib/日本語.txt": "日本語".encode() * 1000,
    "lib-a": b"",
    "large.bin": random.Random(1).randbytes(700_000),
}
EXECUTABLE = "bin/run"


def tar_of(order: list[str], *, mode: str, format: int, dot: bool, folders: bool, mtime: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=format) as tar:  # type: ignore[call-overload]
        made = set()
        if dot and folders:
            root = tarfile.TarInfo("./")
            root.type = tarfile.DIRTYPE
            tar.addfile(root)
        for name in order:
            for parent in reversed(Path(name).parents):
                if folders and str(parent) != "." and parent not in made:
                    made.add(parent)
                    folder = tarfile.TarInfo(("./" if dot else "") + str(parent))
                    folder.type, folder.mode, folder.mtime = tarfile.DIRTYPE, 0o700, mtime
                    tar.addfile(folder)
            info = tarfile.TarInfo(("./" if dot else "") + name)
            info.size, info.mtime, info.uid, info.uname = len(FILES[name]), mtime, mtime % 1000, "me"
            info.mode = 0o711 if name == EXECUTABLE else 0o600
            tar.addfile(info, io.BytesIO(FILES[name]))
    return out.getvalue()


def zip_of(order: list[str], *, method: int, streamed: bool) -> bytes:
    class Unseekable(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: int) -> int:
            raise OSError

    out = Unseekable() if streamed else io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as packed:
        for name in order:
            info = zipfile.ZipInfo(name, (2020 + len(name) % 5, 1, 1, 1, 1, 1))
            info.compress_type = method
            info.external_attr = (0o100755 if name == EXECUTABLE else 0o100640) << 16
            packed.writestr(info, FILES[name])
    return out.getvalue()


def rewritten(tmp_path: Path, data: bytes, limits: ArchiveLimits = LIMITS) -> CanonicalArchive:
    # A name that says the wrong format: only content counts.
    (tmp_path / "upload.rar").write_bytes(data)
    return rewrite(tmp_path / "upload.rar", tmp_path / "target", limits)


def test_equal_contents_have_an_equal_digest(tmp_path: Path) -> None:
    uploads = []
    for seed in range(12):
        order = sorted(FILES)
        random.Random(seed).shuffle(order)
        format = [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT][seed % 2]
        kind = {"mode": ["w:gz", "w"][seed // 2 % 2], "format": format}
        uploads.append(tar_of(order, **kind, dot=bool(seed % 3), folders=seed % 4 > 1, mtime=10**9 + seed))  # type: ignore[arg-type]
        method = [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED][seed % 2]
        uploads.append(zip_of(order, method=method, streamed=bool(seed // 2 % 2)))
    assert len(set(uploads)) == len(uploads)
    results = {rewritten(tmp_path, upload) for upload in uploads}
    assert len(results) == 1


def test_the_written_file_is_what_is_told(tmp_path: Path) -> None:
    result = rewritten(tmp_path, zip_of(list(FILES), method=zipfile.ZIP_DEFLATED, streamed=False))
    content = (tmp_path / "target").read_bytes()
    assert result.sha256 == hashlib.sha256(content).hexdigest()
    assert result.size_bytes == len(content)
    assert result.unpacked_bytes == sum(len(content) for content in FILES.values())
    assert result.entries == len(FILES) + len({"bin", "lib", "lib/deep", "lib/deep/er"})
    assert (result.project_file_name, result.project_file) == ("containerpub.toml", FILES["containerpub.toml"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["target", "upload.rar"]


def test_the_form_is_fixed(tmp_path: Path) -> None:
    """A change of this digest orphans every stored artifact's identity: it must be on purpose."""
    rewritten(tmp_path, zip_of(list(FILES), method=zipfile.ZIP_DEFLATED, streamed=False))
    tar = gzip.decompress((tmp_path / "target").read_bytes())
    assert hashlib.sha256(tar).hexdigest() == "f8f6e33522511760d82e3461c8f8bd27db9959d68b858552c52b6faea9600cf5"


def test_it_is_a_fixed_point(tmp_path: Path) -> None:
    result = rewritten(tmp_path, zip_of(list(FILES), method=zipfile.ZIP_DEFLATED, streamed=False))
    assert rewritten(tmp_path, (tmp_path / "target").read_bytes()) == result


def test_other_readers_see_the_same(tmp_path: Path) -> None:
    rewritten(tmp_path, zip_of(list(FILES), method=zipfile.ZIP_DEFLATED, streamed=False))
    with tarfile.open(tmp_path / "target", "r:gz") as tar:
        members = tar.getmembers()
        names = [member.name for member in members]
        assert names == sorted(names, key=str.encode)
        for member in members:
            assert (member.uid, member.gid, member.mtime, member.uname, member.gname) == (0, 0, 0, "", "")
            executable = member.isdir() or member.name == EXECUTABLE
            assert member.mode == (0o755 if executable else 0o644)
            if member.isreg():
                file = tar.extractfile(member)
                assert file is not None
                assert file.read() == FILES[member.name]
    gnu_tar = shutil.which("tar")
    assert gnu_tar is not None
    listed = subprocess.run([gnu_tar, "tzf", "target"], cwd=tmp_path, capture_output=True, check=True, text=True)
    assert len(listed.stdout.splitlines()) == len(members)
    assert listed.stderr == ""


def test_entries_are_read_again(tmp_path: Path) -> None:
    rewritten(tmp_path, tar_of(list(FILES), mode="w:gz", format=tarfile.GNU_FORMAT, dot=True, folders=True, mtime=7))
    contents, folders = {}, []
    for name, mode, size, reader in read_entries(tmp_path / "target"):
        if reader is None:
            assert mode == 0o755
            folders.append(name)
        else:
            assert mode == (0o755 if name == EXECUTABLE else 0o644)
            contents[name] = reader.read(10) + reader.read()
            assert len(contents[name]) == size
    assert contents == FILES
    assert folders == ["bin", "lib", "lib/deep", "lib/deep/er"]


def test_entries_may_be_skipped(tmp_path: Path) -> None:
    rewritten(tmp_path, zip_of(list(FILES), method=zipfile.ZIP_DEFLATED, streamed=False))
    assert {entry.name for entry in read_entries(tmp_path / "target") if entry.reader} == set(FILES)


@pytest.mark.parametrize(
    "data",
    [
        archives.tar_gz(tar_file(b"b"), tar_file(b"a")),
        archives.tar_gz(tar_file(b"a"), tar_file(b"a")),
        archives.tar_gz(tar_file(b"d/a")),
        archives.tar_gz(tar_file(b"d"), tar_file(b"d/a")),
        archives.tar_gz(tar_file(b"./a")),
        archives.tar_gz(tar_folder(b"./"), tar_file(b"a")),
        archives.tar_gz(tar_file(b"../a")),
        archives.tar_gz(archives.tar_header(b"a", kind=b"2")),
        archives.tar_gz(tar_file(b"a")) + b"x",
        archives.tar(tar_file(b"a")),
        zip_archive(ZipEntry(name=b"a")),
        b"",
    ],
    ids=[
        "unsorted",
        "twice",
        "no folder entry",
        "file as folder",
        "dot",
        "root folder",
        "outside",
        "link",
        "trailing byte",
        "not packed",
        "zip",
        "empty",
    ],
)
def test_what_is_not_canonical_is_not_read(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "target").write_bytes(data)
    with pytest.raises(ArchiveRejected):
        list(read_entries(tmp_path / "target"))


def test_an_archive_stays_readable_when_limits_become_narrower(tmp_path: Path) -> None:
    rewritten(tmp_path, archives.tar_gz(tar_file(b"a", b"x" * 1000), tar_file(b"b", b"x")))
    assert len(list(read_entries(tmp_path / "target"))) == 2
    with pytest.raises(TooLarge):
        list(read_entries(tmp_path / "target", ArchiveLimits(max_unpacked_bytes=1000)))
    with pytest.raises(ArchiveRejected):
        list(read_entries(tmp_path / "target", ArchiveLimits(max_entries=1)))


def test_empty_folders_count_as_content(tmp_path: Path) -> None:
    without = rewritten(tmp_path, archives.tar_gz(tar_file(b"a")))
    with_one = rewritten(tmp_path, archives.tar_gz(tar_file(b"a"), tar_folder(b"empty/")))
    assert without.sha256 != with_one.sha256


@pytest.mark.parametrize(
    ("names", "found"),
    [(["function.json"], "function.json"), (["function.json", "containerpub.toml"], "containerpub.toml"), ([], None)],
)
def test_the_project_file_is_found(tmp_path: Path, names: list[str], found: str | None) -> None:
    pieces = [tar_file(name.encode(), name.encode()) for name in ["main.py", "sub/containerpub.toml", *names]]
    result = rewritten(tmp_path, archives.tar_gz(*pieces))
    assert result.project_file_name == found
    assert result.project_file == (found.encode() if found else None)


def test_what_the_usual_tools_make_is_accepted(tmp_path: Path) -> None:
    """GNU tar's own formats, and git's, which begins with a global header."""
    project = tmp_path / "project"
    for name, content in FILES.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_bytes(content)
    (project / EXECUTABLE).chmod(0o755)
    digests = set()
    for format in ("gnu", "pax"):
        for compress in ((), ("-z",)):
            out = tmp_path / "out"
            subprocess.run(["tar", "-c", *compress, f"--format={format}", "-f", out, "."], cwd=project, check=True)
            digests.add(rewritten(tmp_path, out.read_bytes()).sha256)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "m"]):
        subprocess.run(["git", *command], cwd=project, check=True, env=environment)
    for format in ("tar", "tar.gz", "zip"):
        made = subprocess.run(
            ["git", "archive", f"--format={format}", "HEAD"],
            cwd=project,
            check=True,
            capture_output=True,
            env=environment,
        )
        digests.add(rewritten(tmp_path, made.stdout).sha256)
    digests.add(rewritten(tmp_path, zip_of(list(FILES), method=zipfile.ZIP_DEFLATED, streamed=False)).sha256)
    assert len(digests) == 1
