"""``python -m scheduler``: one scheduler process."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from scheduler.service import serve
from shared.errors import ContainerPubError
from shared.logging import configure
from shared.settings import load

log = logging.getLogger("scheduler")


def main() -> int:
    try:
        settings = load(os.environ, dotenv=Path(".env"))
    except ContainerPubError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    configure(level=settings.log_level, form=settings.log_format)
    import uvloop

    try:
        uvloop.run(serve(settings))
    except (ContainerPubError, OSError) as error:
        log.error("cannot go on", extra={"error": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
