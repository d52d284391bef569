"""Layers, written out on a machine: what is a plain file in the folder gets written, nothing else does."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from worker.build.layer import LayerWriter, UnsafeEntry, unpack_layer

LONG = "/".join(["f" * 200, "g" * 200, "ü.py"])


def archive(*entries: tuple[str, bytes | None, dict[str, object]], format: int = tarfile.PAX_FORMAT) -> io.BytesIO:
    spool = io.BytesIO()
    with tarfile.open(fileobj=spool, mode="w", format=format) as tar:
        for name, content, fields in (("function", None, {}), *entries):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            info.size = len(content or b"")
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(content or b""))
    spool.seek(0)
    return spool


def test_files_and_folders_are_written_plainly(tmp_path: Path) -> None:
    stream = archive(
        ("function/main.py", b"code", {"mode": 0o4777, "uid": 0}),
        ("function/pkg", None, {"mode": 0o700}),
        ("function/pkg/data", b"x" * 3000, {"mode": 0o600}),
    )
    assert unpack_layer(stream, "function", tmp_path, 10_000) == 3004
    assert (tmp_path / "main.py").read_bytes() == b"code"
    modes = [(tmp_path / path).stat().st_mode & 0o7777 for path in ("main.py", "pkg", "pkg/data")]
    assert modes == [0o755, 0o755, 0o644]


def test_long_names_are_read(tmp_path: Path) -> None:
    folders = [("function/" + "f" * 200, None, {}), ("function/" + "f" * 200 + "/" + "g" * 200, None, {})]
    unpack_layer(archive(*folders, (f"function/{LONG}", b"1", {})), "function", tmp_path, 100)
    assert (tmp_path / LONG).read_bytes() == b"1"


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("function/../escaped", {}),
        ("/function/x", {}),
        ("function/link", {"type": tarfile.SYMTYPE, "linkname": "/etc"}),
        ("function/hard", {"type": tarfile.LNKTYPE, "linkname": "function/main.py"}),
        ("function/fifo", {"type": tarfile.FIFOTYPE}),
        ("function/device", {"type": tarfile.CHRTYPE}),
        ("function/x", {"pax_headers": {"path": "../" * 60 + "escaped"}}),
        ("function/x", {"pax_headers": {"size": "5"}}),
        ("function/x", {"pax_headers": {"comment": "c" * 100_000}}),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, name: str, fields: dict[str, object]) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises(UnsafeEntry):
        unpack_layer(archive((name, b"", fields)), "function", inside, 100)
    assert [path.name for path in tmp_path.rglob("*")] == ["inside"]


def test_too_much_is_refused_before_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(UnsafeEntry):
        unpack_layer(archive(("function/large", b"x" * 101, {})), "function", tmp_path, 100)
    assert not (tmp_path / "large").exists()


@pytest.mark.parametrize("length", [0, 100, 512, 1030])
def test_a_stream_that_ends_early_is_refused(tmp_path: Path, length: int) -> None:
    stream = archive(("function/main.py", b"x" * 600, {}))
    with pytest.raises(UnsafeEntry):
        unpack_layer(io.BytesIO(stream.getvalue()[:length]), "function", tmp_path, 10_000)


def test_other_kinds_of_archive_are_refused(tmp_path: Path) -> None:
    stream = archive((f"function/{'x' * 150}/{'y' * 150}", b"1", {}), format=tarfile.GNU_FORMAT)
    with pytest.raises(UnsafeEntry):
        unpack_layer(stream, "function", tmp_path, 100)


def test_only_the_asked_folder_is_written(tmp_path: Path) -> None:
    stream = archive(("functions/x", b"1" * 600, {}), ("compiled/y", b"2", {}), ("function/z", b"3", {}))
    assert unpack_layer(stream, "function", tmp_path, 100) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["z"]


def test_what_was_written_as_a_layer_is_read_as_one_and_a_later_one_covers_it(tmp_path: Path) -> None:
    for content in (b"below", b"above"):
        writer = LayerWriter()
        writer.add(f"packages/{LONG}", io.BytesIO(content), 5)
        with writer.finish().file as file:
            assert unpack_layer(file, "packages", tmp_path, 100) == 5
    assert (tmp_path / LONG).read_bytes() == b"above"
