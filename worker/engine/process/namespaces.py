"""Which namespaces the kernel lets us put a function into without being root."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass

_PROBE_TIMEOUT_S = 10.0
# The function keeps an unprivileged user of its own, so that nothing it starts has capabilities even in there.
_USER = ("--user", "--map-user=65534", "--map-group=65534")
_PROCESSES = ("--pid", "--fork", "--kill-child", "--mount-proc")
_OFFERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("user, network, process and IPC namespaces", (*_USER, "--net", "--ipc", *_PROCESSES)),
    ("user, network and IPC namespaces", (*_USER, "--net", "--ipc")),
    ("user and network namespaces", ("--user", "--net")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespaces:
    """``wrapper`` goes before a command; ``contains_processes`` says that killing the first kills all."""

    description: str
    wrapper: tuple[str, ...]
    contains_processes: bool


NONE = Namespaces(description="no namespaces", wrapper=(), contains_processes=False)


async def probe() -> Namespaces:
    """The most that works here, found by trying."""
    unshare = await asyncio.to_thread(shutil.which, "unshare")
    if unshare is None:
        return NONE
    for description, options in _OFFERS:
        process = await asyncio.create_subprocess_exec(
            unshare,
            *options,
            "true",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                code = await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
            continue
        if code == 0:
            return Namespaces(
                description=description, wrapper=(unshare, *options), contains_processes="--pid" in options
            )
    return NONE
