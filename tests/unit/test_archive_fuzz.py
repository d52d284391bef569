"""Promise 9: whatever the bytes, an archive is written, or a rule is named; nothing else happens."""

from __future__ import annotations

import gzip
import os
import random
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from shared.archive import ArchiveLimits, read_entries, rewrite
from shared.errors import ArchiveRejected, TooLarge
from tests.unit import archives
from tests.unit.archives import ZipEntry, tar_file, tar_folder, zip_archive

ROUNDS = int(os.environ.get("CONTAINERPUB_FUZZ_ROUNDS", "4000"))
LIMITS = ArchiveLimits(max_upload_bytes=1 << 20, max_unpacked_bytes=1 << 20, max_entries=50)
INTERESTING = [
    b"\0",
    b"\xff",
    b"../",
    b"/",
    b"\\",
    b"7777777",
    b"\x80",
    b"PK\1\2",
    b"PK\5\6",
    b"\xff\xff\xff\xff",
    b" 11 ",
]


def seeds() -> list[tuple[bytes, Callable[[bytes], bytes]]]:
    """Archives, each with what is done to it after the mutation so that damage reaches the inner layers."""
    tar = archives.tar(
        archives.pax([(b"comment", b"c")], kind=b"g"),
        tar_folder(b"./"),
        tar_file(b"./main.py", b"x = 1\n" * 20, mode=0o755),
        archives.pax([(b"path", "d/é".encode() * 30), (b"mtime", b"1.5")]) + tar_file(b"short", b"content"),
        archives.gnu_long_name(b"l" * 120) + tar_file(b"short", b"content"),
        tar_file(b"n", b"!", prefix=b"p/q"),
    )
    wide = zlib.crc32(b"z")
    descriptor = b"PK\7\x08" + b"".join(n.to_bytes(4, "little") for n in (wide, 3, 1))
    zipped = zip_archive(
        ZipEntry(name=b"main.py", content=b"x = 1\n" * 20),
        ZipEntry(name=b"d/", mode=0o040755),
        ZipEntry(name=b"d/stored", content=b"stored", method=0),
        ZipEntry(name="d/é".encode(), content=b"z", flags=1 << 11 | 1 << 3, descriptor=descriptor),
        comment=b"a comment",
    )
    start = zipped.index(b"PK\1\2")
    size = zipped.index(b"PK\5\6") - start
    zip64 = zipped[: start + size] + archives.zip64_end(start + size, 4, size, start) + zipped[start + size :]
    return [
        (tar, bytes),
        (tar, checksummed),
        (tar, gzip.compress),
        (gzip.compress(tar), bytes),
        (zipped, bytes),
        (zip64, bytes),
    ]


def checksummed(tar: bytes) -> bytes:
    """Every block that looks like a header gets the checksum it needs to be believed."""
    blocks = [tar[at : at + 512] for at in range(0, len(tar), 512)]
    for number, block in enumerate(blocks):
        if len(block) == 512 and block[257:262] == b"ustar":
            total = sum(block) - sum(block[148:156]) + 8 * 0x20
            blocks[number] = block[:148] + b"%06o\0 " % total + block[156:]
    return b"".join(blocks)


def mutated(data: bytes, random_: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(random_.choice([1, 1, 1, 2, 3, 8])):
        at = random_.randrange(len(out)) if out else 0
        match random_.randrange(7):
            case 0:
                out[at : at + 1] = bytes([random_.randrange(256)])
            case 1:
                out[at : at + 1] = bytes([out[at] ^ 1 << random_.randrange(8)]) if out else b""
            case 2:
                piece = random_.choice(INTERESTING)
                out[at : at + len(piece)] = piece
            case 3:
                del out[at : at + random_.choice([1, 4, 512])]
            case 4:
                out[at:at] = random_.choice([b"\0", bytes(512), random_.choice(INTERESTING)])
            case 5:
                other = random_.randrange(len(out)) if out else 0
                length = random_.choice([1, 4, 46, 512, 1024])
                out[at : at + length] = out[other : other + length]
            case 6:
                del out[at:]
    return bytes(out)


def test_p9_mutated_archives_end_in_an_archive_or_a_named_rule(tmp_path: Path) -> None:
    seed = 20_240_607
    upload, target = tmp_path / "in" / "upload", tmp_path / "in" / "target"
    upload.parent.mkdir()
    prepared = seeds()
    for data, finish in prepared:
        upload.write_bytes(finish(data))
        rewrite(upload, target, LIMITS)
    outcomes: Counter[str] = Counter()
    for number in range(ROUNDS):
        random_ = random.Random(seed + number)
        data, finish = prepared[number % len(prepared)]
        upload.write_bytes(finish(mutated(data, random_)))
        target.unlink(missing_ok=True)
        started = time.process_time()
        try:
            result = rewrite(upload, target, LIMITS)
        except (ArchiveRejected, TooLarge) as error:
            outcomes[error.code] += 1
            assert not target.exists(), number
        else:
            outcomes["accepted"] += 1
            entries = list(read_entries(target))
            assert len(entries) == result.entries, number
            assert all(".." not in entry.name.split("/") for entry in entries), number
        assert time.process_time() - started < 2, number
        left = {path.name for path in upload.parent.iterdir()}
        assert left <= {"upload", "target"}, number
    assert list(tmp_path.iterdir()) == [upload.parent]
    # Mutations that never get past the first check would prove nothing.
    assert len(outcomes) >= 8, outcomes
    assert outcomes["accepted"] > ROUNDS // 50, outcomes
