"""Uploaded archives: read as hostile input, and written again in one canonical form.

Nothing here ever unpacks an upload. :func:`rewrite` reads a tar.gz, tar or zip entry by entry and writes the one
tar.gz that equal contents always give; :func:`read_entries` reads that form back on the worker.
"""

from shared.archive.canonical import ArchiveEntry, read_entries, rewrite
from shared.archive.limits import ArchiveLimits
from shared.archive.writer import CanonicalArchive

__all__ = ["ArchiveEntry", "ArchiveLimits", "CanonicalArchive", "read_entries", "rewrite"]
