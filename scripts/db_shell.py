"""psql, or a line for it, on the embedded database of a data folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from shared.embedded.postgres import EmbeddedPostgres


def main() -> int:
    dsn = EmbeddedPostgres(Path(sys.argv[1]).resolve() / "postgres").visit().dsn
    psql = shutil.which("psql")
    if psql is None:
        sys.stderr.write("psql is not installed; the embedded wheel has none for shells. Connect with:\n")
        sys.stdout.write(dsn + "\n")
        return 1
    return subprocess.call([psql, dsn])


if __name__ == "__main__":
    sys.exit(main())
