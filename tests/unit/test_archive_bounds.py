"""Bombs, measured: each in a fresh process, which must stay within 2 s, 64 MB and its disk budget."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit import archives
from tests.unit.archives import ZipEntry, tar_header, zip_archive

pytestmark = pytest.mark.alone

MB = 1024 * 1024

CHILD = """
import json, os, pathlib, sys, threading, time

from shared.archive import ArchiveLimits, rewrite
from shared.errors import ContainerPubError

def peak():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

folder = pathlib.Path(sys.argv[1])
before, started = peak(), time.process_time()  # others may keep the machine busy
try:
    code = rewrite(folder / "upload", folder / "target", ArchiveLimits()).entries
except ContainerPubError as error:
    code = error.code
seconds = time.process_time() - started
written = int(pathlib.Path("/proc/self/io").read_text().partition("wchar: ")[2].split()[0])
print(json.dumps({"code": code, "seconds": seconds, "rss": peak() - before, "written": written}))
"""


def measured(tmp_path: Path, data: bytes) -> dict[str, float | str]:
    (tmp_path / "upload").write_bytes(data)
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=True,
        text=True,
    )
    result: dict[str, float | str] = json.loads(child.stdout)
    assert sorted(path.name for path in tmp_path.iterdir()) == (
        ["target", "upload"] if isinstance(result["code"], int) else ["upload"]
    )
    return result


def headers(count: int) -> Iterator[bytes]:
    for number in range(count):
        yield tar_header(b"f%d" % number)
    yield bytes(1024)


def one_file(size: int, declared: int | None = None) -> Iterator[bytes]:
    yield tar_header(b"zeros", size=size if declared is None else declared)
    yield from archives.zeros(size)
    yield bytes(-size % 512 + 1024)


def honest_files(size: int, count: int) -> Iterator[bytes]:
    for number in range(count):
        yield tar_header(b"zeros%d" % number, size=size)
        yield from archives.zeros(size)
        yield bytes(-size % 512)


def pax_bomb() -> Iterator[bytes]:
    yield tar_header(b"pax", kind=b"x", size=50 * MB)
    yield b"%d comment=" % (50 * MB)
    yield from archives.zeros(50 * MB)


def nested_pax_flood() -> Iterator[bytes]:
    for number in range(1990):
        yield archives.pax([(b"comment", b"x" * 2000)])
        yield tar_header(b"f%d" % number)
    yield bytes(1024)


def zip_bomb_by_overlap() -> bytes:
    """Every directory record names the same kernel: 2,000 times 4 MB out of one."""
    kernel = archives.deflated(bytes(4 * MB))
    first = ZipEntry(name=b"f0", content=bytes(4 * MB), packed=kernel, size=100_000)
    return zip_archive(
        first, *(ZipEntry(name=b"f0", packed=b"", packed_size=len(kernel), size=1, offset=0) for _ in range(1999))
    )


def zip_with_long_names() -> bytes:
    record = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 65535, 65535, 65535, 0, 0, 0, 0)
    directory = (record + b"n" * 65535 + b"e" * 65535 + b"c" * 65535) * 200
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, 0, 0, 1, 0) + b"n"
    return local + directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 200, 200, len(directory), len(local), 0)


def gzip_with_long_header() -> bytes:
    """40 MB of file name in the gzip header, before any content."""
    return b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * (40 * MB) + b"\0" + archives.tar_gz()[10:]


BOMBS: dict[str, tuple[Callable[[], bytes], str | int]] = {
    "u8_one_file_of_10_gb": (lambda: archives.gzip_stream(one_file(300 * MB, 8**11 - 1)), "archive_too_large"),
    "u8_one_file_over_the_cap": (lambda: archives.gzip_stream(one_file(251 * MB)), "archive_too_large"),
    "u8_files_that_add_up": (lambda: archives.gzip_stream(honest_files(60 * MB, 5)), "archive_too_large"),
    "u8_nothing_but_zeros": (lambda: archives.gzip_stream(archives.zeros(400 * MB)), "archive_too_large"),
    "u8_zeros_after_the_end": (
        lambda: archives.gzip_stream([archives.tar(tar_header(b"f")), *archives.zeros(400 * MB)]),
        "archive_too_large",
    ),
    "u9_200k_entries": (lambda: archives.gzip_stream(headers(200_000)), "archive_too_many_entries"),
    "u9_200k_entries_in_a_zip": (
        lambda: zip_archive(*(ZipEntry(name=b"f%d" % n) for n in range(5_000)), count=200_000),
        "archive_too_many_entries",
    ),
    "u10_pax_header": (lambda: archives.gzip_stream(pax_bomb()), "archive_too_large"),
    "u10_pax_headers_all_small": (lambda: archives.gzip_stream(nested_pax_flood()), 1990),
    "u16_gzip_header": (gzip_with_long_header, "archive_empty"),
    "zip_overlap": (zip_bomb_by_overlap, "archive_broken"),
    "zip_lying_size": (
        lambda: zip_archive(ZipEntry(name=b"f", packed=archives.deflated(bytes(100 * MB)), size=10)),
        "archive_broken",
    ),
    "zip_declared_too_large": (
        lambda: zip_archive(*(ZipEntry(name=b"f%d" % n, packed=b"\3\0", size=100 * MB) for n in range(3))),
        "archive_too_large",
    ),
    "zip_long_names": (zip_with_long_names, "archive_path_too_long"),
    "zip_of_a_large_stored_file": (
        lambda: zip_archive(ZipEntry(name=b"f", content=zlib.compress(bytes(1)) * 100_000, method=0)),
        1,
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_cost_little(tmp_path: Path, name: str) -> None:
    make, code = BOMBS[name]
    result = measured(tmp_path, make())
    assert result["code"] == code
    assert float(result["seconds"]) < 2
    assert float(result["rss"]) < 64 * MB
    assert float(result["written"]) < 251 * MB


def test_the_largest_archive_is_written_in_little_memory(tmp_path: Path) -> None:
    result = measured(tmp_path, archives.gzip_stream(one_file(249 * MB)))
    assert result["code"] == 1
    assert float(result["rss"]) < 64 * MB
