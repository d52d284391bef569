"""How large an upload may be, and in how many ways."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveLimits:
    """Caps on one upload.

    :param max_upload_bytes: of the file as it was sent.
    :param max_unpacked_bytes: of all file contents together.
    :param max_entries: of files and folders in the upload, without what tools add to it; folders that are only implied
        by a path have the same cap once more, because each of them is made when the archive is unpacked.
    :param max_path_chars: of one path, in characters, without a leading ``./``.
    :param max_path_depth: of one path, in components.
    """

    max_upload_bytes: int = 50 * 1024 * 1024
    max_unpacked_bytes: int = 250 * 1024 * 1024
    max_entries: int = 2_000
    max_path_chars: int = 240
    max_path_depth: int = 32

    @property
    def max_read_entries(self) -> int:
        """What a reader reads at most: a tool may add a file to each one of the project's, which is not counted."""
        return 2 * self.max_entries
