"""Clears away what workers that are gone left on this engine."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence

from aiodocker import Docker, DockerError
from aiodocker.containers import DockerContainer

from worker.config import EngineConfig
from worker.engine.docker.container import engine_call, remove_container
from worker.engine.docker.hardening import LABEL_INSTALLATION, LABEL_SANDBOX, LABEL_WORKER
from worker.errors import EngineUnavailable
from worker.sandbox.attach import SocketFolders, remove_folder

log = logging.getLogger(__name__)

_AGAIN_S = (0.05, 0.2, 1.0)


async def sweep(
    docker: Docker,
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
    for container in await _labelled(docker, config, f"{LABEL_INSTALLATION}={config.installation}"):
        labels = container["Labels"]
        worker, sandbox = labels.get(LABEL_WORKER), labels.get(LABEL_SANDBOX)
        if worker == config.worker_id:
            stale = sandbox is not None and sandbox not in own_sandboxes
        else:
            # Images carry the label of their installation: what somebody runs of one by hand names no worker.
            stale = worker is not None and worker not in live_workers
        if stale:
            try:
                await remove_container(docker, container.id, config.engine_call_timeout_s)
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


async def remove_own(docker: Docker, config: EngineConfig) -> None:
    """Remove every container of this worker, whatever it was for. Raises :class:`EngineUnavailable`."""
    labels = (f"{LABEL_INSTALLATION}={config.installation}", f"{LABEL_WORKER}={config.worker_id}")
    own = await _labelled(docker, config, *labels)
    removals = (remove_container(docker, container.id, config.engine_call_timeout_s) for container in own)
    failed = [one for one in await asyncio.gather(*removals, return_exceptions=True) if one is not None]
    if failed:
        raise failed[0]


async def _labelled(docker: Docker, config: EngineConfig, *labels: str) -> list[DockerContainer]:
    """The containers that have these labels. An engine may stumble over one that goes meanwhile: it is asked again."""
    filters = json.dumps({"label": labels})
    async with engine_call("listing containers", config.engine_call_timeout_s):
        for wait_s in _AGAIN_S:
            try:
                return await docker.containers.list(all=1, filters=filters)
            except DockerError as error:
                if error.status != 500:
                    raise
            await asyncio.sleep(wait_s)
        return await docker.containers.list(all=1, filters=filters)
