"""What a platform holds on this machine at a moment, and whether that is what it held before."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from aiodocker import Docker, DockerError
from aiodocker.containers import DockerContainer
from redis.asyncio import Redis

from bench.figure import WrongAnswer
from bench.platform import Platform
from worker.engine.docker.hardening import LABEL_INSTALLATION, LABEL_SANDBOX

MEBIBYTE = 1024 * 1024
TOLERANCE = 0.05
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """:param containers: of the installation, in whatever state. :param folders: of sandboxes, generic sandboxes and
    exchanges.
    :param scratch: temporary folders of the processes. :param processes: what the platform's processes started.
    :param descriptors: open in API, scheduler and workers together, without their connections to Postgres and Redis:
    those are opened when they are first needed at once, and kept, up to a bound. :param memory_mb: resident in them.
    """

    containers: int
    folders: int
    scratch: int
    processes: int
    descriptors: int
    memory_mb: float

    def beyond(self, before: Footprint) -> dict[str, tuple[float, float]]:
        """What is more than 5 % above ``before``: (before, now) by name."""
        was, now = asdict(before), asdict(self)
        return {name: (was[name], now[name]) for name in was if now[name] > was[name] * (1 + TOLERANCE)}


async def take(platform: Platform, docker: Docker) -> Footprint:
    containers = await sandboxes(platform, docker, LABEL_INSTALLATION)
    kept = await _connections(platform)
    return await asyncio.to_thread(_take, platform, len(containers), kept)


async def sandboxes(platform: Platform, docker: Docker, label: str = LABEL_SANDBOX) -> list[str]:
    """The states of the installation's containers that have ``label``."""
    labels = [f"{LABEL_INSTALLATION}={platform.installation}", label]
    found = await docker.containers.list(all=1, filters=json.dumps({"label": labels}))
    return [container["State"] for container in found]


async def burning(platform: Platform, docker: Docker) -> int:
    """How many of the installation's containers use a fifth of a processor or more, over a second or so."""
    labels = [f"{LABEL_INSTALLATION}={platform.installation}"]
    found = await docker.containers.list(filters=json.dumps({"label": labels}))
    shares = await asyncio.gather(*(_processor_share(container) for container in found))
    return sum(share >= 0.2 for share in shares)


async def _processor_share(container: DockerContainer) -> float:
    try:
        found = await container.stats(stream=False)
    except DockerError as error:
        if error.status in (404, 409):  # gone meanwhile
            return 0.0
        raise
    if not found:  # as well
        return 0.0
    used = [found[0][sample]["cpu_usage"]["total_usage"] for sample in ("precpu_stats", "cpu_stats")]
    return float(used[1] - used[0]) / 1e9


async def resting(platform: Platform, docker: Docker, calm_s: float) -> Footprint:
    """The footprint once all that stands idle is gone: nothing but generic sandboxes has changed for ``calm_s``."""
    last, since = await take(platform, docker), time.monotonic()
    while time.monotonic() - since < calm_s:
        await asyncio.sleep(_LOOK_EVERY_S)
        now = await take(platform, docker)
        if (now.containers, now.folders, now.descriptors) != (last.containers, last.folders, last.descriptors):
            since = time.monotonic()
        last = now
    return last


async def back(platform: Platform, docker: Docker, before: Footprint, within_s: float) -> tuple[Footprint, float]:
    """The footprint once it is what it was ``before``, and the seconds until then.

    Raises :class:`WrongAnswer` if that takes longer than ``within_s``.
    """
    started = time.monotonic()
    while beyond := (now := await take(platform, docker)).beyond(before):
        if time.monotonic() - started > within_s:
            raise WrongAnswer(f"{within_s:g} s later there is still more than before: {beyond}")
        await asyncio.sleep(_LOOK_EVERY_S)
    return now, time.monotonic() - started


async def _connections(platform: Platform) -> int:
    """How many connections to Postgres and Redis the platform's processes hold."""
    postgres = await platform.database.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'containerpub-%'"
    )
    async with Redis.from_url(platform.redis.url) as redis:
        clients = (await redis.info("clients"))["connected_clients"]
    return int(postgres) + int(clients) - 1


def _take(platform: Platform, containers: int, kept: int) -> Footprint:
    processes = list(platform.processes().values())
    return Footprint(
        containers=containers,
        folders=_entries(platform.folder / "s", 2) + _entries(platform.folder / "data" / "generics", 2),
        scratch=_entries(platform.folder / "data" / "scratch", 2),
        processes=sum(len(process.children(recursive=True)) for process in processes),
        descriptors=sum(process.num_fds() for process in processes) - kept,
        memory_mb=sum(process.memory_info().rss for process in processes) / MEBIBYTE,
    )


def _entries(folder: Path, depth: int) -> int:
    """How many folders there are ``depth`` levels below."""
    return sum(path.is_dir() for path in folder.glob("/".join("*" * depth)))
