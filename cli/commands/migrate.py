"""``containerpub migrate``: bring the database up to this release."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from shared.errors import ContainerPubError
from shared.postgres.migrate import migrate
from shared.settings import load


def run_migrate() -> int:
    """Apply what is missing to ``DATABASE_URL``; 0 when the database is up to date."""
    try:
        settings = load(os.environ, dotenv=Path(".env"))
        applied = asyncio.run(migrate(settings.database_url.get_secret_value()))
    except ContainerPubError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    for name in applied:
        sys.stdout.write(f"applied {name}\n")
    if not applied:
        sys.stdout.write("up to date\n")
    return 0
