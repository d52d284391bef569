"""Removes containers and folders that dead workers left on this engine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from aiodocker import DockerError

from worker.config import EngineConfig
from worker.engine.docker.containers import Containers
from worker.engine.docker.hardening import LABEL_INSTALLATION, LABEL_SANDBOX, LABEL_WORKER
from worker.errors import EngineUnavailable
from worker.sandbox.attach import SocketFolders, remove_folder

log = logging.getLogger(__name__)


async def sweep(
    containers: Containers,
    config: EngineConfig,
    folders: Sequence[SocketFolders],
    live_workers: frozenset[str],
    own_sandboxes: frozenset[str],
) -> int:
    """Remove containers, in whatever state, and socket folders of this installation whose worker is not live.

    Of our own worker's, sandboxes that are not in ``own_sandboxes`` go too: a start that was cancelled while the
    engine was still at it can leave one. Returns how many containers and folders of workers went. One that the engine
    cannot remove keeps nothing else. Raises :class:`EngineUnavailable` for an engine that does not answer.
    """
    count = 0
    for container in await containers.listed(f"{LABEL_INSTALLATION}={config.installation}"):
        worker, sandbox = container.labels.get(LABEL_WORKER), container.labels.get(LABEL_SANDBOX)
        if worker == config.worker_id:
            stale = sandbox is not None and sandbox not in own_sandboxes
        else:
            # Images carry the label of their installation. A container that a person runs of one by hand names no
            # worker.
            stale = worker is not None and worker not in live_workers
        if stale:
            try:
                await containers.remove(container.id)
            except EngineUnavailable as error:
                if not isinstance(error.__cause__, DockerError):
                    raise
                log.warning("a container stays", extra={"container": container.id, "error": error.message})
                continue
            count += 1
    # Folders last: until here a container may still have one mounted.
    for kind in folders:
        for folder in await asyncio.to_thread(kind.stale, live_workers):
            await asyncio.to_thread(remove_folder, folder)
            count += 1
    return count


async def remove_own(containers: Containers, config: EngineConfig) -> None:
    """Remove every container of this worker, whatever it was for. Raises :class:`EngineUnavailable`."""
    labels = (f"{LABEL_INSTALLATION}={config.installation}", f"{LABEL_WORKER}={config.worker_id}")
    removals = (containers.remove(container.id) for container in await containers.listed(*labels))
    failed = [one for one in await asyncio.gather(*removals, return_exceptions=True) if one is not None]
    if failed:
        raise failed[0]
