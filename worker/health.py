"""``python -m worker.health``: exit status 0 if a worker process of this machine lives, else 1 and the reason.

In a container that is the one worker of that container. It lives if it has signed on and its event loop still writes
arq's health key, which expires a second after the next write is due.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Mapping

from arq.constants import health_check_key_suffix
from redis.asyncio import Redis

from shared.errors import ContainerPubError
from shared.queue.connection import connect, redis_errors
from shared.queue.queue import Queue
from shared.settings import load

_TIMEOUT_S = 4.0


async def problem(redis: Redis, host: str) -> str | None:
    """Why no worker on ``host`` counts as alive; ``None`` if one does. Raises :class:`Unavailable`."""
    names = [name for name in await Queue(redis).beats() if name.startswith(f"{host[:32]}-")]
    if not names:
        return f"no worker of {host} has signed on"
    with redis_errors():
        records = await redis.exists(*(f"cp:arq:{name}{health_check_key_suffix}" for name in names))
    return None if records else f"the worker of {host} is silent"


async def check(redis_url: str, host: str) -> str | None:
    redis = connect(redis_url, timeout_s=_TIMEOUT_S)
    try:
        return await problem(redis, host)
    finally:
        await redis.aclose()


def main(environment: Mapping[str, str]) -> int:
    try:
        found = asyncio.run(check(load(environment).redis_url.get_secret_value(), socket.gethostname()))
    except ContainerPubError as error:
        found = error.message
    if found is not None:
        sys.stderr.write(f"{found}\n")
    return 0 if found is None else 1


if __name__ == "__main__":
    sys.exit(main(os.environ))
