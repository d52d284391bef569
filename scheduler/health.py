"""``python -m scheduler.health``: exit status 0 if a scheduler leads, else 1 and the reason.

Of several schedulers one leads and the others stand by, so this is a property of all of them together: while it
fails, no scheduler keeps the queue whole.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping

import asyncpg

from shared.errors import ContainerPubError
from shared.postgres.pool import postgres_errors
from shared.postgres.queries import queries
from shared.settings import load

_SQL = queries("health")
_TIMEOUT_S = 4.0


async def problem(database_url: str) -> str | None:
    """Why no scheduler leads; ``None`` if one does. Raises :class:`Unavailable`."""
    with postgres_errors():
        connection = await asyncpg.connect(database_url, timeout=_TIMEOUT_S, command_timeout=_TIMEOUT_S)
        try:
            led = bool(await connection.fetchval(_SQL["is_led"], "scheduler"))
        finally:
            await connection.close()
    return None if led else "no scheduler leads"


def main(environment: Mapping[str, str]) -> int:
    try:
        found = asyncio.run(problem(load(environment).database_url.get_secret_value()))
    except ContainerPubError as error:
        found = error.message
    if found is not None:
        sys.stderr.write(f"{found}\n")
    return 0 if found is None else 1


if __name__ == "__main__":
    sys.exit(main(os.environ))
