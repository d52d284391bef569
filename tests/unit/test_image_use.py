"""When images were last used is remembered, and shared by the workers of a data folder."""

from __future__ import annotations

import os
import time
from pathlib import Path

from worker.engine.image_use import ImageUse

IMAGE, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def test_a_use_is_known_to_all_who_share_the_folder_once_it_is_written_down(tmp_path: Path) -> None:
    mine, yours = ImageUse(tmp_path), ImageUse(tmp_path)
    assert yours.last() == {}
    before = time.time()
    mine.note(IMAGE)
    assert yours.last() == {}
    mine.write([OTHER])
    assert set(yours.last()) == {IMAGE, OTHER}
    assert all(before - 1 <= at <= time.time() for at in yours.last().values())


def test_a_later_use_counts_and_an_earlier_note_does_not_come_back(tmp_path: Path) -> None:
    use = ImageUse(tmp_path)
    use.mark(IMAGE)
    os.utime(tmp_path / "images" / IMAGE.removeprefix("sha256:"), (1, 1))
    use.write([])
    assert use.last() == {IMAGE: 1.0}
    use.mark(IMAGE)
    assert use.last()[IMAGE] > 1


def test_what_is_no_id_leaves_no_file_and_what_is_gone_is_forgotten(tmp_path: Path) -> None:
    use = ImageUse(tmp_path)
    use.note("../escape")
    use.note(IMAGE)
    use.write([])
    assert set(use.last()) == {IMAGE}
    use.forget([IMAGE, OTHER])
    assert use.last() == {}
