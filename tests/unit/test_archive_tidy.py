"""What tools and systems make of an archive: their own files, backslashes, a folder around everything, gzip members."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.archive import ArchiveLimits, CanonicalArchive, read_entries, rewrite
from shared.errors import ArchiveRejected
from tests.unit import archives
from tests.unit.archives import ZipEntry, tar_file, tar_folder, zip_archive

APPLE_DOUBLE = bytes.fromhex("00051607 00020000") + b"Mac OS X        " + bytes(60)
MAIN = b"def handler(event, context): return 1\n"
LIMITS = ArchiveLimits()

Pack = Callable[[dict[bytes, bytes]], bytes]


def packed_zip(files: dict[bytes, bytes]) -> bytes:
    return zip_archive(*(ZipEntry(name=name, content=content) for name, content in files.items()))


def packed_tar(files: dict[bytes, bytes]) -> bytes:
    return archives.tar_gz(*(tar_file(name, content) for name, content in files.items()))


@pytest.fixture(params=[packed_zip, packed_tar], ids=["zip", "tar.gz"])
def pack(request: pytest.FixtureRequest) -> Pack:
    packs: Pack = request.param
    return packs


class Archives:
    """Writes an upload's canonical archive and reads it back."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def rewritten(
        self, data: bytes, limits: ArchiveLimits = LIMITS, *, own_folder: str | None = None
    ) -> CanonicalArchive:
        (self._folder / "upload").write_bytes(data)
        return rewrite(self._folder / "upload", self._folder / "target", limits, own_folder=own_folder)

    def files(self, data: bytes, *, own_folder: str | None = None) -> dict[str, bytes]:
        self.rewritten(data, own_folder=own_folder)
        return {
            entry.name: entry.reader.read()
            for entry in read_entries(self._folder / "target")
            if entry.reader is not None
        }

    def digest(self, data: bytes) -> str:
        return self.rewritten(data).sha256


@pytest.fixture
def made(tmp_path: Path) -> Archives:
    return Archives(tmp_path)


@pytest.mark.parametrize(
    "name",
    [b"__MACOSX/._main.py", b"__MACOSX/lib/._a.py", b"._main.py", b"lib/._a.py", b".DS_Store", b"lib/.DS_Store"],
)
def test_files_of_macos_are_ignored_wherever_they_lie(made: Archives, pack: Pack, name: bytes) -> None:
    project = {b"main.py": MAIN, b"lib/a.py": b"A = 1\n"}
    before = made.digest(pack(project))
    for files in ({name: APPLE_DOUBLE, **project}, {**project, name: APPLE_DOUBLE}):
        result = made.rewritten(pack(files))
        assert result.sha256 == before, "the same artifact as without them"
        assert result.notes == (f"archive: left out what a tool added to it: {name.decode()}",)


def test_an_own_file_that_begins_like_one_of_macos_is_kept(made: Archives, pack: Pack) -> None:
    assert made.files(pack({b"main.py": MAIN, b"._own": b"text", b"._empty": b""})) == {
        "main.py": MAIN,
        "._own": b"text",
        "._empty": b"",
    }


def test_what_tools_add_takes_no_room_of_the_project(made: Archives, pack: Pack) -> None:
    limits = ArchiveLimits(max_entries=5)
    files = {b"f%d" % n: b"x" for n in range(5)}
    added = {b"__MACOSX/._f%d" % n: APPLE_DOUBLE for n in range(5)}
    assert made.rewritten(pack(files | added), limits).entries == 5
    with pytest.raises(ArchiveRejected) as refused:
        made.rewritten(pack(files | {b"f5": b"x"} | dict(list(added.items())[:4])), limits)
    assert refused.value.code == "archive_too_many_entries"
    with pytest.raises(ArchiveRejected) as refused:
        made.rewritten(pack(files | added | {b"__MACOSX/._more": b""}), limits)
    assert refused.value.code == "archive_too_many_entries", "what is read is bounded too"


@pytest.mark.parametrize("name", [b"__MACOSX/../../x", b"__MACOSX/a\nb"])
def test_names_of_files_that_are_ignored_are_checked_too(made: Archives, pack: Pack, name: bytes) -> None:
    with pytest.raises(ArchiveRejected):
        made.rewritten(pack({b"main.py": MAIN, name: APPLE_DOUBLE}))


def test_an_archive_of_such_files_alone_is_empty(made: Archives, pack: Pack) -> None:
    with pytest.raises(ArchiveRejected) as refused:
        made.rewritten(pack({b"__MACOSX/._main.py": APPLE_DOUBLE}))
    assert refused.value.code == "archive_empty"


def test_backslashes_are_read_as_folders(made: Archives, pack: Pack) -> None:
    files = {b"main.py": MAIN, b"lib\\deep\\a.py": b"A", b"lib/b.py": b"B"}
    assert made.files(pack(files)) == {"main.py": MAIN, "lib/deep/a.py": b"A", "lib/b.py": b"B"}


def test_a_folder_may_end_with_a_backslash(made: Archives) -> None:
    entries = [ZipEntry(name=b"lib\\", method=0, mode=0), ZipEntry(name=b"lib\\a.py", content=b"A", mode=0)]
    assert made.files(zip_archive(ZipEntry(name=b"main.py", content=MAIN), *entries)) == {
        "main.py": MAIN,
        "lib/a.py": b"A",
    }


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (b"..\\x", "archive_path_traversal"),
        (b"a\\..\\..\\x", "archive_path_traversal"),
        (b"\\x", "archive_absolute_path"),
        (b"\\\\host\\share", "archive_absolute_path"),
        (b"C:\\x", "archive_absolute_path"),
        (b"a\\\\b", "archive_bad_name"),
        (b".\\a\\.\\b", "archive_bad_name"),
        (b"main.py\\x", "archive_path_conflict"),
        (b"lib\\a.py", "archive_duplicate_name"),
        (b"containerpub\\x.py", "archive_reserved_name"),
        (b"\\".join([b"a"] * 33), "archive_path_too_long"),
    ],
)
def test_names_with_backslashes_pass_the_checks_of_all_names(
    made: Archives, pack: Pack, name: bytes, code: str
) -> None:
    with pytest.raises(ArchiveRejected) as refused:
        made.rewritten(pack({b"main.py": MAIN, b"lib/a.py": b"A", name: b"!"}))
    assert refused.value.code == code


def test_one_folder_around_everything_is_taken_away(made: Archives, pack: Pack) -> None:
    project = {b"main.py": MAIN, b"containerpub.toml": b'handler = "main:handler"\n', b"lib/a.py": b"A"}
    result = made.rewritten(pack({b"repo-main/" + name: content for name, content in project.items()}))
    assert result.project_file_name == "containerpub.toml"
    assert result.notes == ("archive: everything is in the folder repo-main; its content was taken as the project",)
    assert result.sha256 == made.digest(pack(project))


def test_such_a_folder_has_an_entry_of_its_own_and_macos_files_beside_it(made: Archives) -> None:
    data = zip_archive(
        ZipEntry(name=b"repo/", mode=0o40755, method=0),
        ZipEntry(name=b"repo/main.py", content=MAIN),
        ZipEntry(name=b"__MACOSX/repo/._main.py", content=APPLE_DOUBLE),
    )
    assert made.files(data) == {"main.py": MAIN}
    data = archives.tar_gz(
        archives.pax([(b"comment", b"commit")], kind=b"g"), tar_folder(b"repo/"), tar_file(b"repo/a")
    )
    assert made.files(data) == {"a": b""}


@pytest.mark.parametrize(
    "files",
    [
        {b"app/main.py": MAIN, b"README.md": b""},
        {b"app/main.py": MAIN, b"lib/a.py": b"A"},
    ],
)
def test_a_folder_beside_something_else_stays(made: Archives, pack: Pack, files: dict[bytes, bytes]) -> None:
    assert sorted(made.files(pack(files))) == sorted(name.decode() for name in files)


def test_the_folder_that_the_handler_is_named_in_stays(made: Archives, pack: Pack) -> None:
    files = pack({b"app/main.py": MAIN})
    assert list(made.files(files, own_folder="app")) == ["app/main.py"]
    assert list(made.files(files, own_folder="other")) == ["main.py"]


def test_what_may_not_stand_at_the_top_may_not_come_there(made: Archives, pack: Pack) -> None:
    with pytest.raises(ArchiveRejected) as refused:
        made.rewritten(pack({b"repo/containerpub.py": b"", b"repo/main.py": MAIN}))
    assert refused.value.code == "archive_reserved_name"
    with pytest.raises(ArchiveRejected) as refused:
        made.rewritten(pack({b"repo/containerpub.toml": b"x" * 70_000, b"repo/main.py": MAIN}))
    assert refused.value.code == "archive_project_file_too_large"


@pytest.mark.parametrize("cut", [1, 100, 600, 1024])
def test_a_gzip_file_of_several_members_is_one_file(made: Archives, cut: int) -> None:
    tar = archives.tar(tar_file(b"main.py", MAIN))
    pieces = [tar[:cut], tar[cut : cut + 7], b"", tar[cut + 7 :]]
    assert made.files(b"".join(gzip.compress(piece) for piece in pieces)) == {"main.py": MAIN}


def test_a_member_that_is_damaged_or_cut_off_is_noticed(made: Archives) -> None:
    tar = archives.tar(tar_file(b"main.py", MAIN))
    first, second = gzip.compress(tar[:600]), gzip.compress(tar[600:])
    damaged = bytearray(second)
    damaged[-6] ^= 1
    for data in (first, first + second[:-1], first + bytes(damaged), first + second + b"\x1f\x8b", first + b"\0"):
        with pytest.raises(ArchiveRejected) as refused:
            made.rewritten(data)
        assert refused.value.code == "archive_broken"


def test_there_may_not_be_any_number_of_members(made: Archives) -> None:
    with pytest.raises(ArchiveRejected) as refused:
        made.rewritten(gzip.compress(archives.tar(tar_file(b"main.py", MAIN))) + gzip.compress(b"") * 100_000)
    assert "too many parts" in refused.value.message
