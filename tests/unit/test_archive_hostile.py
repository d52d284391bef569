"""Rows U1 to U17 and U20 of the attack catalogue: what is refused, with which code, leaving nothing behind."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.archive import ArchiveLimits, CanonicalArchive, read_entries, rewrite
from shared.errors import ArchiveRejected, ContainerPubError, TooLarge, Unavailable
from tests.unit import archives
from tests.unit.archives import ZipEntry, tar_file, tar_folder, tar_header, zip_archive

LIMITS = ArchiveLimits()
MAIN = tar_file(b"main.py", b"x = 1\n")
MAIN_ZIP = ZipEntry(name=b"main.py", content=b"x = 1\n")


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A tree around the place where archives are read; what is in it must be the same afterwards."""
    room = tmp_path / "a" / "b" / "room"
    room.mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "a", tmp_path / "a" / "b", room):
        (folder / "canary").write_text("alive")

    def tree() -> dict[str, str]:
        return {
            str(path.relative_to(tmp_path)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "/"
            for path in tmp_path.rglob("*")
            if path.name not in ("upload", "target")
        }

    before = tree()
    yield room
    assert tree() == before


@pytest.fixture
def accept(canary: Path) -> Callable[..., CanonicalArchive]:
    def accept(data: bytes, limits: ArchiveLimits = LIMITS) -> CanonicalArchive:
        (canary / "upload").write_bytes(data)
        return rewrite(canary / "upload", canary / "target", limits)

    return accept


@pytest.fixture
def refuse(accept: Callable[..., CanonicalArchive], canary: Path) -> Callable[..., ContainerPubError]:
    def refuse(data: bytes, code: str, limits: ArchiveLimits = LIMITS) -> ContainerPubError:
        (canary / "target").unlink(missing_ok=True)
        started = time.process_time()
        with pytest.raises(TooLarge if code in ("archive_too_large", "upload_too_large") else ArchiveRejected) as info:
            accept(data, limits)
        assert time.process_time() - started < 2
        assert info.value.code == code
        assert not (canary / "target").exists()
        assert info.value.message.isprintable()
        assert len(info.value.message) < 300
        return info.value

    return refuse


Accept = Callable[..., CanonicalArchive]
Refuse = Callable[..., ContainerPubError]

TRAVERSALS = ["../x", "a/../../x", "a/..", "..", "./../x", "a/../b", "..\\x", "a\\..\\..\\x", "a/．．/x", "‥/x"]
ABSOLUTES = ["/etc/passwd", "//x", ".//etc/passwd", "C:/x", "c:x", "\\\\host\\share", "\\x", "/"]


@pytest.mark.parametrize("name", TRAVERSALS)
def test_u1_no_name_leads_out(refuse: Refuse, name: str) -> None:
    raw = name.encode()
    refuse(archives.tar_gz(MAIN, tar_file(raw, b"!")), "archive_path_traversal")
    refuse(archives.tar(MAIN, archives.pax([(b"path", raw)]), tar_file(b"fine", b"!")), "archive_path_traversal")
    refuse(archives.tar(MAIN, archives.gnu_long_name(raw), tar_file(b"fine", b"!")), "archive_path_traversal")
    refuse(archives.tar(MAIN, tar_folder(raw + b"/")), "archive_path_traversal")
    refuse(zip_archive(MAIN_ZIP, ZipEntry(name=raw, content=b"!")), "archive_path_traversal")


def test_u1_a_prefix_field_cannot_lead_out(refuse: Refuse) -> None:
    refuse(archives.tar(MAIN, tar_file(b"x", b"!", prefix=b"..")), "archive_path_traversal")
    refuse(archives.tar(MAIN, tar_file(b"x", b"!", prefix=b"/etc")), "archive_absolute_path")


@pytest.mark.parametrize("name", ABSOLUTES)
def test_u2_no_name_is_absolute(refuse: Refuse, name: str) -> None:
    raw = name.encode()
    if not name.endswith("/"):
        refuse(archives.tar_gz(MAIN, tar_file(raw, b"!")), "archive_absolute_path")
        refuse(zip_archive(MAIN_ZIP, ZipEntry(name=raw, content=b"!")), "archive_absolute_path")
    refuse(archives.tar_gz(MAIN, tar_folder(raw + b"/")), "archive_absolute_path")


@pytest.mark.parametrize("target", [b"/etc", b"..", b"main.py", b""])
def test_u3_symlink_then_write_through(refuse: Refuse, target: bytes) -> None:
    link = tar_header(b"link", kind=b"2", link=target)
    refuse(archives.tar_gz(MAIN, link, tar_file(b"link/x", b"!")), "archive_link")
    zipped = ZipEntry(name=b"link", content=target, mode=0o120777)
    refuse(zip_archive(MAIN_ZIP, zipped, ZipEntry(name=b"link/x")), "archive_link")
    # A system of origin that knows no links does not make the attribute harmless.
    refuse(zip_archive(MAIN_ZIP, ZipEntry(name=b"link", content=target, mode=0o120777, system=0)), "archive_link")


def test_u4_deep_symlink_chain(refuse: Refuse) -> None:
    pieces = []
    path = b""
    for letter in b"abcdefghijklmnop":
        folder = bytes([letter]) * 100
        pieces.append(archives.pax([(b"path", path + folder)]) + tar_folder(b"folder"))
        pieces.append(
            archives.pax([(b"path", path + bytes([letter])), (b"linkpath", folder)]) + tar_header(b"link", kind=b"2")
        )
        path += bytes([letter]) + b"/"
    refuse(archives.tar_gz(*pieces), "archive_link")


@pytest.mark.parametrize("target", [b"/etc/passwd", b"../canary", b"main.py"])
def test_u5_hardlink(refuse: Refuse, target: bytes) -> None:
    refuse(archives.tar_gz(MAIN, tar_header(b"link", kind=b"1", link=target)), "archive_link")
    refuse(archives.tar_gz(MAIN, tar_file(b"link", b"content", kind=b"1", link=target)), "archive_link")


@pytest.mark.parametrize("kind", [b"3", b"4", b"6", b"7", b"D", b"M", b"V", b"N", b"A", b"X", b"\xff", b"8", b" "])
def test_u6_special_files_in_a_tar(refuse: Refuse, kind: bytes) -> None:
    refuse(archives.tar_gz(MAIN, tar_header(b"special", kind=kind)), "archive_special_file")


@pytest.mark.parametrize("mode", [0o020666, 0o060666, 0o010666, 0o140666])
def test_u6_special_files_in_a_zip(refuse: Refuse, mode: int) -> None:
    refuse(zip_archive(MAIN_ZIP, ZipEntry(name=b"special", mode=mode)), "archive_special_file")


def test_u7_sparse_files(refuse: Refuse) -> None:
    refuse(archives.tar_gz(MAIN, tar_header(b"sparse", kind=b"S", size=0)), "archive_special_file")
    for records in (
        [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.realsize", b"1099511627776")],
        [(b"GNU.sparse.size", b"1099511627776"), (b"GNU.sparse.map", b"0,1")],
        [(b"SCHILY.realsize", b"1099511627776")],
    ):
        refuse(archives.tar_gz(MAIN, archives.pax(records), tar_file(b"sparse", b"!")), "archive_special_file")


def test_u7_a_terabyte_by_declaration(refuse: Refuse) -> None:
    huge = (1 << 40).to_bytes(11, "big")
    refuse(archives.tar_gz(MAIN, tar_header(b"huge", size=b"\x80" + huge)), "archive_too_large")
    refuse(
        archives.tar_gz(MAIN, archives.pax([(b"size", b"%d" % (1 << 40))]), tar_header(b"huge")), "archive_too_large"
    )


def test_u8_the_unpacked_cap_is_exact(refuse: Refuse, accept: Accept) -> None:
    limits = ArchiveLimits(max_unpacked_bytes=1000)

    def both(*sizes: int) -> Iterator[bytes]:
        yield archives.tar_gz(*(tar_file(b"f%d" % size, b"x" * size) for size in sizes))
        yield zip_archive(*(ZipEntry(name=b"f%d" % size, content=b"x" * size) for size in sizes))

    for data in both(400, 600):
        assert accept(data, limits).unpacked_bytes == 1000
    for data in both(401, 600):
        refuse(data, "archive_too_large", limits)


def test_u9_the_entry_cap_is_exact(refuse: Refuse, accept: Accept) -> None:
    limits = ArchiveLimits(max_entries=5)

    def both(count: int) -> Iterator[bytes]:
        yield archives.tar_gz(*(tar_file(b"f%d" % number) for number in range(count)))
        yield zip_archive(*(ZipEntry(name=b"f%d" % number) for number in range(count)))

    for data in both(5):
        assert accept(data, limits).entries == 5
    for data in both(6):
        refuse(data, "archive_too_many_entries", limits)


def test_u9_implied_folders_have_a_cap_too(refuse: Refuse) -> None:
    files = [tar_file(b"/".join(b"%x" % (i * 20 + level) for level in range(20))) for i in range(150)]
    refuse(archives.tar_gz(*files), "archive_too_many_entries")


def test_u9_root_entries_count(refuse: Refuse) -> None:
    refuse(archives.tar_gz(*([tar_folder(b"./")] * 3000)), "archive_too_many_entries")


def test_u9_a_zip_that_hides_its_count(refuse: Refuse) -> None:
    entries = [ZipEntry(name=b"f%d" % i) for i in range(10)]
    refuse(zip_archive(*entries, count=9), "archive_broken")
    refuse(zip_archive(*entries, count=11), "archive_broken")
    refuse(zip_archive(*entries, count=0), "archive_broken")


def test_u10_extension_headers_are_capped(refuse: Refuse, accept: Accept) -> None:
    big = archives.pax([(b"comment", b"x" * 70_000)])
    refuse(archives.tar_gz(big, MAIN), "archive_too_large")
    refuse(archives.tar_gz(archives.pax([(b"comment", b"x" * 70_000)], kind=b"g"), MAIN), "archive_too_large")
    refuse(archives.tar_gz(archives.gnu_long_name(b"x" * 70_000), MAIN), "archive_too_large")
    refuse(archives.tar_gz(tar_header(b"pax", kind=b"x", size=50_000_000)), "archive_too_large")
    many = [archives.pax([(b"comment", b"x" * 60_000)]) + tar_file(b"f%d" % i) for i in range(100)]
    refuse(archives.tar_gz(*many), "archive_too_large")
    refuse(archives.tar_gz(*([archives.pax([(b"comment", b"x")], kind=b"g")] * 100), MAIN), "archive_broken")
    assert accept(archives.tar_gz(archives.pax([(b"comment", b"commit")], kind=b"g"), MAIN)).entries == 1


def test_u10_the_time_of_tiny_pax_records_is_bounded(refuse: Refuse) -> None:
    records = b"".join(b"%d %04x=\n" % (8, n) for n in range(8000))
    many = [archives.pax(raw=records) + tar_file(b"f%d" % i) for i in range(1000)]
    refuse(archives.tar_gz(*many), "archive_too_large")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"x",
        b"5",
        b"0 a=b\n",
        b"-6 a=b\n",
        b"06 a=b\n",
        b"99999999999 a=b\n",
        b"6 a=b",
        b"7 a=b\n",
        b"5 a=b\n",
        b"6 ab=\n\n",
        b"4 a\n",
        b"5 =b\n",
        b"6 a=b\nx",
        b"3 \n",
        b"2 ",
        b"1 ",
        b"10 path=x\n12 path=yy\n",
        b"11 size=-1\n",
        b"11 size=1e\n",
        b"9 size=\n",
        b"10 size= \n",
        "11 size=٣\n".encode(),
    ],
)
def test_malformed_pax_headers(refuse: Refuse, accept: Accept, raw: bytes) -> None:
    data = archives.tar_gz(archives.pax(raw=raw), MAIN)
    if raw:
        refuse(data, "archive_broken")
    else:
        assert accept(data).entries == 1


def test_extension_headers_belong_to_one_entry(refuse: Refuse) -> None:
    one = archives.pax([(b"path", b"a")])
    refuse(archives.tar_gz(one, one, MAIN), "archive_broken")
    refuse(archives.tar_gz(one, archives.gnu_long_name(b"b"), MAIN), "archive_broken")
    refuse(archives.tar_gz(MAIN, one), "archive_broken")
    for key in (b"path", b"size", b"linkpath", b"GNU.sparse.name"):
        refuse(archives.tar_gz(archives.pax([(key, b"1")], kind=b"g"), MAIN), "archive_broken")


EQUAL_NAMES = [
    ("a.py", "a.py"),
    ("a.py", "A.PY"),
    ("caf\u00e9.py", "cafe\u0301.py"),
    ("\ufb01le.py", "file.py"),
    ("\u212bngstrom", "\u00c5NGSTROM"),
    ("stra\u00dfe", "STRASSE"),
    ("./a.py", "a.py"),
    ("A/x", "a/y"),
    ("d/caf\u00e9/x", "d/cafe\u0301/y"),
]


@pytest.mark.parametrize(("first", "second"), EQUAL_NAMES)
def test_u11_no_two_names_are_alike(refuse: Refuse, first: str, second: str) -> None:
    one, two = first.encode(), second.encode()
    refuse(archives.tar_gz(tar_file(one, b"1"), tar_file(two, b"2")), "archive_duplicate_name")
    refuse(zip_archive(ZipEntry(name=one, content=b"1"), ZipEntry(name=two, content=b"2")), "archive_duplicate_name")
    refuse(archives.tar_gz(MAIN, tar_folder(one + b"/"), tar_folder(two + b"/")), "archive_duplicate_name")


def test_u12_a_file_has_no_children(refuse: Refuse) -> None:
    for names in (["f", "f/child"], ["f/child", "f"], ["f", "F/child"], ["d/f", "d/f/a/b/c"], ["f/a/b/c", "f/a"]):
        raw = [name.encode() for name in names]
        refuse(archives.tar_gz(*(tar_file(name, b"!") for name in raw)), "archive_path_conflict")
        refuse(zip_archive(*(ZipEntry(name=name, content=b"!") for name in raw)), "archive_path_conflict")
    refuse(archives.tar_gz(tar_file(b"f", b"!"), tar_folder(b"f/")), "archive_path_conflict")
    refuse(archives.tar_gz(tar_folder(b"f/"), tar_file(b"f", b"!")), "archive_path_conflict")


BAD_NAMES = [
    b"a\0b",
    b"a\rb",
    b"a\nb",
    b"a\r\nSet-Cookie: x",
    b"a\x1b[31mb",
    b"a\x7f",
    b"a\t",
    "a\u0085".encode(),
    "a\u202ecod.exe".encode(),
    "a\u200b".encode(),
    "\ufeffa".encode(),
    "a\u2028b".encode(),
    "a\U000e0041".encode(),
    b"a\xff",
    b"\xed\xa0\x80",
    b"\xc0\xae\xc0\xae/x",
    b"a//b",
    b"a/./b",
    b"a/.",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_u13_names_are_plain_text(refuse: Refuse, name: bytes) -> None:
    refuse(archives.tar_gz(MAIN, tar_file(name, b"!")), "archive_bad_name")
    refuse(archives.tar_gz(MAIN, archives.pax([(b"path", name)]), tar_file(b"fine", b"!")), "archive_bad_name")
    refuse(archives.tar_gz(MAIN, archives.gnu_long_name(name), tar_file(b"fine", b"!")), "archive_bad_name")
    refuse(zip_archive(MAIN_ZIP, ZipEntry(name=name, content=b"!")), "archive_bad_name")
    refuse(zip_archive(MAIN_ZIP, ZipEntry(name=name, content=b"!", flags=1 << 11)), "archive_bad_name")


def test_u13_a_file_is_not_named_like_a_folder(refuse: Refuse) -> None:
    refuse(archives.tar_gz(MAIN, tar_file(b"name/", b"!")), "archive_bad_name")
    refuse(archives.tar_gz(MAIN, tar_file(b"name/", b"!", kind=b"\0")), "archive_bad_name")
    refuse(archives.tar_gz(MAIN, tar_file(b"", b"!")), "archive_bad_name")
    refuse(archives.tar_gz(MAIN, tar_file(b".", b"!")), "archive_bad_name")
    refuse(zip_archive(MAIN_ZIP, ZipEntry(name=b"", content=b"!")), "archive_bad_name")


def test_u13_errors_are_safe_to_print(refuse: Refuse) -> None:
    error = refuse(archives.tar_gz(tar_file(b"evil\x1b]0;title\x07\r\n" + b"x" * 60, b"!")), "archive_bad_name")
    assert "evil\\x1b]0;title\\x07\\r\\n" in error.message
    assert str(error.extra["entry"]) in error.message
    assert error.field == "archive"
    error = refuse(archives.tar_gz(archives.pax([(b"path", b"y" * 9000)]), MAIN), "archive_path_too_long")
    assert "…" in error.message


def test_u13_names_that_people_use_are_fine(accept: Accept, canary: Path) -> None:
    names = [
        "ü.py",
        "日本語/ファイル.txt",
        "a b.txt",
        "Shot 1.00\u202fPM.png",
        "...",
        "..a",
        "a..",
        "-rf",
        "~",
        "😀",
        "ab:c",
    ]
    for data in (
        archives.tar_gz(*(tar_file(name.encode(), b"!") for name in names)),
        zip_archive(*(ZipEntry(name=name.encode(), content=b"!") for name in names)),
    ):
        accept(data)
        found = {entry.name for entry in read_entries(canary / "target")}
        assert found == {*names, "日本語"}


def test_u14_modes_and_owners_are_normalised(accept: Accept, canary: Path) -> None:
    for mode in (0, 0o644, 0o600, 0o4644, 0o6666, 0o1000):
        accept(archives.tar_gz(tar_file(b"f", b"!", mode=mode)))
        assert [entry.mode for entry in read_entries(canary / "target")] == [0o644]
    for mode in (0o100, 0o4755, 0o7777, 0o001):
        accept(archives.tar_gz(tar_file(b"f", b"!", mode=mode)))
        assert [entry.mode for entry in read_entries(canary / "target")] == [0o755]
        accept(zip_archive(ZipEntry(name=b"f", mode=0o100000 | mode)))
        assert [entry.mode for entry in read_entries(canary / "target")] == [0o755]
    with tarfile.open(canary / "target") as tar:
        for info in tar:
            assert (info.uid, info.gid, info.uname, info.gname, info.mtime) == (0, 0, "", "", 0)


@pytest.mark.parametrize(
    "size",
    [
        b"\xff" * 12,
        b"\xff" * 11 + b"\x00",
        b"-0000000001\0",
        b"         -1\0",
        b"0x10\0",
        b"1_0\0",
        b"9\0",
        b"+7\0",
        b"\x80" + b"\xff" * 11,
        b"\x81" + bytes(11),
        b"1 1\0",
        "٣".encode(),
    ],
)
@pytest.mark.parametrize("kind", [b"0", b"x", b"g", b"L", b"5"])
def test_u15_sizes_are_plain_numbers(refuse: Refuse, size: bytes, kind: bytes) -> None:
    refuse(archives.tar_gz(MAIN, tar_header(b"bad", size=size, kind=kind)), "archive_broken")
    refuse(archives.tar(MAIN, tar_header(b"bad", size=size, kind=kind)), "archive_broken")


def test_u15_modes_are_plain_numbers(refuse: Refuse) -> None:
    refuse(archives.tar_gz(MAIN, tar_file(b"bad", b"!", mode=b"\xff" * 8)), "archive_broken")
    refuse(archives.tar_gz(MAIN, tar_file(b"bad", b"!", mode=b"rwxr-xr-")), "archive_broken")


def test_u16_every_truncation_is_noticed(accept: Accept) -> None:
    tar = archives.tar(MAIN, tar_folder(b"d/"), tar_file(b"d/f", b"content" * 100))
    zipped = zip_archive(MAIN_ZIP, ZipEntry(name=b"d/f", content=b"content" * 100))
    for whole in (tar, gzip.compress(tar), zipped):
        accept(whole)
        step = max(1, len(whole) // 150)
        for end in range(512 if whole is tar else 18, len(whole), step):
            assert error_code(accept, whole[:end]) == "archive_broken"
    assert error_code(accept, tar[:-1]) == "archive_broken"
    assert error_code(accept, tar[:-512]) == "archive_broken"
    assert error_code(accept, b"") == "archive_empty"


def error_code(accept: Accept, data: bytes) -> str:
    with pytest.raises(ArchiveRejected) as info:
        accept(data)
    return info.value.code


def test_u16_checksums_are_checked_to_the_last_byte(refuse: Refuse) -> None:
    packed = bytearray(archives.tar_gz(MAIN))
    for position in range(len(packed) - 8, len(packed)):
        damaged = bytearray(packed)
        damaged[position] ^= 0x01
        refuse(bytes(damaged), "archive_broken")
    refuse(zip_archive(ZipEntry(name=b"f", content=b"content", crc=1)), "archive_broken")
    refuse(zip_archive(ZipEntry(name=b"f", content=b"content", crc=1, method=0)), "archive_broken")
    refuse(archives.tar(MAIN, tar_file(b"f", b"!", checksum=b"000000\0 ")), "archive_broken")


@pytest.mark.parametrize("tail", [b"\0", b"garbage", b"PK\5\6", b"\x1f\x8b", bytes(512)])
def test_u16_nothing_follows_the_end(refuse: Refuse, tail: bytes) -> None:
    refuse(archives.tar_gz(MAIN) + tail, "archive_broken")
    refuse(archives.tar_gz(MAIN) + archives.tar_gz(tar_file(b"more", b"!")), "archive_broken")
    refuse(archives.tar_gz(MAIN) + gzip.compress(b"x"), "archive_broken")
    refuse(zip_archive(MAIN_ZIP) + tail, "archive_broken")
    if tail.strip(b"\0"):
        refuse(archives.tar(MAIN) + tail, "archive_broken")
        refuse(gzip.compress(archives.tar(MAIN) + tail), "archive_broken")
        refuse(gzip.compress(archives.tar(MAIN) + archives.tar(tar_file(b"more", b"!"))), "archive_broken")
    refuse(zip_archive(MAIN_ZIP) + zip_archive(ZipEntry(name=b"more", content=b"!")), "archive_broken")


def test_u16_padding_to_a_record_is_no_garbage(accept: Accept) -> None:
    assert accept(archives.tar(MAIN) + bytes(10240)).entries == 1
    assert accept(gzip.compress(archives.tar(MAIN) + bytes(100_000))).entries == 1


def test_u17_long_and_deep_names(refuse: Refuse, accept: Accept) -> None:
    def both(name: str) -> Iterator[bytes]:
        yield archives.tar_gz(archives.pax([(b"path", name.encode())]), tar_file(b"x", b"!"))
        yield archives.tar_gz(archives.gnu_long_name(name.encode()), tar_file(b"x", b"!"))
        yield zip_archive(ZipEntry(name=name.encode(), content=b"!"))

    deepest = "/".join("d" * 32)
    longest = "x" * 119 + "/" + "é" * 120
    for name in (deepest, longest, "./" + longest):
        for data in both(name):
            accept(data)
    for name in (deepest + "/d", "/".join("d" * 200), longest + "x", "x" * 300, "日" * 86, "x" * 60_000):
        for data in both(name):
            refuse(data, "archive_path_too_long")


@pytest.mark.parametrize(
    "name",
    [
        ".containerpub",
        ".containerpub/x",
        ".containerpub-shim.py",
        ".ContainerPub/x",
        "containerpub.py",
        "containerpub/__init__.py",
        "ContainerPub.py",
        "containerpub",
        "containerpub.so",
        "containerpub.pyc",
        "containerpub.cpython-311-x86_64-linux-gnu.so",
        "ｃontainerpub.py",
        "./containerpub.py",
        "containerpub/a/b",
    ],
)
def test_u20_the_runtimes_own_names_are_reserved(refuse: Refuse, name: str) -> None:
    raw = name.encode()
    refuse(archives.tar_gz(MAIN, tar_file(raw, b"!")), "archive_reserved_name")
    refuse(zip_archive(MAIN_ZIP, ZipEntry(name=raw, content=b"!")), "archive_reserved_name")


@pytest.mark.parametrize(
    "name", ["containerpub.toml", "Dockerfile", "lib/containerpub.py", "lib/.containerpub", "containerpubs.py"]
)
def test_u20_other_names_are_free(accept: Accept, name: str) -> None:
    accept(archives.tar_gz(MAIN, tar_file(name.encode(), b"!")))


def test_folders_have_no_content(refuse: Refuse) -> None:
    refuse(archives.tar_gz(MAIN, tar_file(b"d/", b"x" * 512, kind=b"5")), "archive_broken")
    refuse(zip_archive(MAIN_ZIP, ZipEntry(name=b"d/", content=b"x", mode=0o040755)), "archive_broken")
    refuse(zip_archive(MAIN_ZIP, ZipEntry(name=b"d", mode=0o040755)), "archive_broken")
    refuse(zip_archive(MAIN_ZIP, ZipEntry(name=b"d/", mode=0o100644)), "archive_broken")


def test_zip_encryption_is_refused(refuse: Refuse) -> None:
    for flag in (1, 1 | 1 << 6, 1 << 13):
        refuse(zip_archive(MAIN_ZIP, ZipEntry(name=b"f", content=b"!", flags=flag)), "archive_encrypted")
        refuse(zip_archive(MAIN_ZIP, ZipEntry(name=b"f", content=b"!", local_flags=flag)), "archive_encrypted")


@pytest.mark.parametrize("method", [1, 6, 9, 12, 14, 93, 95, 97, 98, 99, 0xFFFF])
def test_zip_compression_is_stored_or_deflated(refuse: Refuse, method: int) -> None:
    refuse(zip_archive(MAIN_ZIP, ZipEntry(name=b"f", content=b"!", method=method)), "archive_unknown_compression")


def test_zip_directory_and_headers_agree(refuse: Refuse) -> None:
    for entry in (
        ZipEntry(name=b"f", content=b"!", local_name=b"g"),
        ZipEntry(name=b"f", content=b"!", local_name=b"ff"),
        ZipEntry(name=b"f", content=b"!", local_method=0),
        ZipEntry(name=b"f", content=b"!", local_size=2),
        ZipEntry(name=b"f", content=b"!", local_packed_size=2),
        ZipEntry(name=b"f", content=b"!", disk=1),
        ZipEntry(name=b"f", content=b"!", offset=1),
        ZipEntry(name=b"f", content=b"!", offset=1 << 30),
    ):
        refuse(zip_archive(MAIN_ZIP, entry), "archive_broken")


def test_zip_sizes_do_not_lie(refuse: Refuse) -> None:
    content = b"x" * 1_000_000
    for size in (0, 1, 999_999, 1_000_001):
        refuse(zip_archive(ZipEntry(name=b"f", content=content, size=size)), "archive_broken")
        refuse(zip_archive(ZipEntry(name=b"f", content=content, size=size, method=0)), "archive_broken")
    refuse(zip_archive(ZipEntry(name=b"f", content=content, size=1 << 31)), "archive_too_large")
    packed = archives.deflated(content)
    refuse(zip_archive(ZipEntry(name=b"f", content=content, packed=packed + b"x")), "archive_broken")
    refuse(zip_archive(ZipEntry(name=b"f", content=content, packed=packed[:-1])), "archive_broken")
    refuse(zip_archive(ZipEntry(name=b"f", content=content, packed_size=0xFFFFFFF0)), "archive_broken")


def test_zip_entries_do_not_overlap(refuse: Refuse) -> None:
    """The shape of the "better zip bomb": many directory records, one kernel of data."""
    kernel = ZipEntry(name=b"f", content=bytes(1_000_000))
    again = ZipEntry(name=b"f", content=bytes(1_000_000), offset=0)
    refuse(zip_archive(kernel, again), "archive_broken")
    # A stored entry whose content is the next entry, header and all.
    inner = zip_archive(ZipEntry(name=b"g", content=b"inner"))
    quoted = inner[: inner.index(b"PK\1\2")]
    outer = ZipEntry(name=b"f", content=quoted, method=0)
    refuse(zip_archive(outer, ZipEntry(name=b"g", content=b"inner", offset=30 + len(b"f"))), "archive_broken")


def test_zip_end_records_are_clear(refuse: Refuse, accept: Accept) -> None:
    assert accept(zip_archive(MAIN_ZIP, comment=b"0123456789abcdef" * 3)).entries == 1
    other = zip_archive(ZipEntry(name=b"other.py", content=b"!"))
    refuse(zip_archive(MAIN_ZIP, comment=other), "archive_broken")
    refuse(zip_archive(MAIN_ZIP, directory_offset=0), "archive_broken")
    refuse(zip_archive(MAIN_ZIP, directory_size=0), "archive_broken")
    refuse(zip_archive(MAIN_ZIP, before_end=b"x"), "archive_broken")
    refuse(zip_archive(MAIN_ZIP, directory_size=0xFFFFFFFF), "archive_broken")
    refuse(zip_archive(MAIN_ZIP, directory_offset=0xFFFFFFFF), "archive_broken")
    refuse(b"#!/bin/sh\n" + zip_archive(MAIN_ZIP), "archive_unknown_format")
    refuse(zip_archive(), "archive_empty")


def test_zip64_is_read_and_checked(refuse: Refuse, accept: Accept) -> None:
    content = b"x = 1\n"
    packed = archives.deflated(content)
    wide = len(content).to_bytes(8, "little") + len(packed).to_bytes(8, "little")
    field = b"\1\0\x10\0" + wide
    entry = ZipEntry(
        name=b"main.py",
        content=content,
        size=0xFFFFFFFF,
        packed=packed,
        packed_size=0xFFFFFFFF,
        extra=field,
        local_extra=field,
    )
    plain = zip_archive(MAIN_ZIP)
    assert accept(zip_archive(entry)).sha256 == accept(plain).sha256
    start = plain.index(b"PK\1\2")
    size = plain.index(b"PK\5\6") - start
    end64 = archives.zip64_end(start + size, 1, size, start)

    def saturated(before_end: bytes) -> bytes:
        return zip_archive(
            MAIN_ZIP, before_end=before_end, count=0xFFFF, directory_size=0xFFFFFFFF, directory_offset=0xFFFFFFFF
        )

    assert accept(saturated(end64)).sha256 == accept(plain).sha256
    assert accept(zip_archive(MAIN_ZIP, before_end=end64)).sha256 == accept(plain).sha256
    codes = set()
    for wrong in (
        archives.zip64_end(start + size, 2, size, start),
        archives.zip64_end(start + size, 1 << 60, size, start),
        archives.zip64_end(start + size, 1, size + 1, start),
        archives.zip64_end(start + size, 1, size, 1 << 63),
        archives.zip64_end(0, 1, size, start),
        archives.zip64_end(1 << 63, 1, size, start),
    ):
        with pytest.raises(ArchiveRejected) as info:
            accept(saturated(wrong))
        codes.add(info.value.code)
    assert codes == {"archive_broken", "archive_too_many_entries"}
    short = ZipEntry(name=b"main.py", content=content, size=0xFFFFFFFF, extra=b"\1\0\4\0abcd")
    refuse(zip_archive(short), "archive_broken")
    refuse(zip_archive(ZipEntry(name=b"main.py", content=content, offset=0xFFFFFFFF)), "archive_broken")


def test_zip_data_descriptors_are_read(accept: Accept) -> None:
    content = b"x = 1\n"
    packed = archives.deflated(content)
    descriptor = b"PK\7\x08" + b"".join(
        n.to_bytes(4, "little") for n in (zlib.crc32(content), len(packed), len(content))
    )
    streamed = ZipEntry(name=b"main.py", content=content, flags=1 << 3, descriptor=descriptor)
    assert accept(zip_archive(streamed, ZipEntry(name=b"z"))).entries == 2


@pytest.mark.parametrize(
    "data",
    [
        b"hello world" * 100,
        b"BZh91AY&SY" + bytes(600),
        b"\xfd7zXZ\0" + bytes(600),
        b"\x28\xb5\x2f\xfd" + bytes(600),
        b"P",
        b"PK",
        b"Rar!\x1a\x07",
        b"7z\xbc\xaf\x27\x1c",
        b"#!/usr/bin/python\n",
    ],
)
def test_other_formats_are_named_as_such(refuse: Refuse, data: bytes) -> None:
    refuse(data, "archive_unknown_format")


def test_archives_within_gzip_are_tars(refuse: Refuse) -> None:
    refuse(gzip.compress(b"hello" * 1000), "archive_broken")
    refuse(gzip.compress(zip_archive(MAIN_ZIP)), "archive_broken")
    refuse(gzip.compress(archives.tar_gz(MAIN) + bytes(1000)), "archive_broken")
    refuse(gzip.compress(b""), "archive_broken")


def test_an_archive_without_files_is_empty(refuse: Refuse) -> None:
    refuse(archives.tar_gz(), "archive_empty")
    refuse(archives.tar(), "archive_empty")
    refuse(archives.tar_gz(tar_folder(b"./"), tar_folder(b"d/")), "archive_empty")
    refuse(zip_archive(ZipEntry(name=b"d/", mode=0o040755)), "archive_empty")


def test_an_upload_over_its_cap_is_not_read(refuse: Refuse) -> None:
    data = archives.tar(MAIN)
    refuse(data, "upload_too_large", ArchiveLimits(max_upload_bytes=len(data) - 1))


def test_a_project_file_is_small(refuse: Refuse, accept: Accept) -> None:
    accept(archives.tar_gz(tar_file(b"function.json", b" " * 65536)))
    refuse(archives.tar_gz(tar_file(b"function.json", b" " * 65537)), "archive_project_file_too_large")


def test_a_failing_disk_is_not_the_archives_fault(canary: Path) -> None:
    (canary / "upload").write_bytes(archives.tar_gz(MAIN))
    with pytest.raises(Unavailable) as info:
        rewrite(canary / "upload", canary / "absent" / "target", LIMITS)
    assert isinstance(info.value.__cause__, OSError)


def test_a_failure_leaves_an_older_target_alone(accept: Accept, canary: Path) -> None:
    accept(archives.tar_gz(MAIN))
    before = (canary / "target").read_bytes()
    with pytest.raises(ArchiveRejected):
        accept(archives.tar_gz(tar_file(b"../x")))
    assert (canary / "target").read_bytes() == before


def test_the_standard_reader_is_given_nothing(monkeypatch: pytest.MonkeyPatch, accept: Accept) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("tarfile was used")

    monkeypatch.setattr(tarfile.TarFile, "__init__", never)
    accept(archives.tar_gz(MAIN))
