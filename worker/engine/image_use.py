"""When the images of an engine were last used, known across restarts and to all workers that share a data folder.

``<data_dir>/images/<id>`` is an empty file whose time of change is the last use. It also says that the image is ours: a
label alone proves nothing, since images inherit labels from what they are built on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

_ID = "sha256:"


class ImageUse:
    """Uses are noted in memory, and written down by the next :meth:`write`."""

    def __init__(self, data_dir: Path) -> None:
        self._root = data_dir.absolute() / "images"
        self._noted: dict[str, float] = {}

    def note(self, image: str) -> None:
        """``image`` is used now; only ids are known here."""
        if image.startswith(_ID):
            self._noted[image] = time.time()

    def mark(self, image: str) -> None:
        """As :meth:`note`, and tell the other workers at once. Blocking."""
        self._write(image, time.time())

    def write(self, in_use: Iterable[str]) -> None:
        """Write down what was noted, and that ``in_use`` is used now. Blocking."""
        noted, self._noted = self._noted, {}
        now = time.time()
        for image, at in (noted | dict.fromkeys(in_use, now)).items():
            self._write(image, at)

    def last(self) -> dict[str, float]:
        """The last use of each image that was ever used, in seconds since the epoch. Blocking."""
        found = {}
        try:
            entries = list(os.scandir(self._root))
        except FileNotFoundError:
            return {}
        for entry in entries:
            try:
                found[_ID + entry.name] = entry.stat().st_mtime
            except FileNotFoundError:
                continue  # forgotten by another worker
        return found

    def forget(self, images: Iterable[str]) -> None:
        """Drop these images, which are gone. Blocking."""
        for image in images:
            self._file(image).unlink(missing_ok=True)

    def _write(self, image: str, at: float) -> None:
        file = self._file(image)
        try:
            os.utime(file, (at, at))
        except FileNotFoundError:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            file.touch()
            os.utime(file, (at, at))

    def _file(self, image: str) -> Path:
        return self._root / image.removeprefix(_ID)
