"""Chooses the engine that runs the functions: a server of the Docker Engine API on this machine, or child processes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import aiodocker
from aiohttp import ClientError

from shared.capping import uncapped
from shared.errors import Misconfigured

ANSWER_TIMEOUT_S = 5.0
"""Podman runs other programs before it says what it is, which takes it seconds on a busy machine."""
PYTHON_BASE_IMAGE = "python:3.11-slim"


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """``docker_host`` is set for ``docker`` only. ``notes`` are sentences for the person who starts it."""

    name: str
    docker_host: str | None = None
    notes: tuple[str, ...] = ()


async def choose_engine(wanted: str, environment: Mapping[str, str]) -> Engine:
    """Resolve ``auto``, ``docker`` or ``process``. Raises :class:`Misconfigured` when ``docker`` does not answer."""
    if wanted == "process":
        return _process()
    complaints = []
    for host in _hosts(environment):
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S), aiodocker.Docker(url=host) as docker:
                await docker.version()
                if (reason := uncapped(await docker.system.info())) is not None:
                    complaints.append(f"{host} would not cap functions: {reason}")
                    continue
                return Engine(name="docker", docker_host=host, notes=await _image_notes(docker, environment))
        except TimeoutError:
            complaints.append(f"{host} did not answer within {ANSWER_TIMEOUT_S:g} s")
        except (aiodocker.DockerError, ClientError, OSError, ValueError) as error:
            complaints.append(f"{host}: {error}")
    told = "; ".join(complaints) or "no Docker or Podman socket was found"
    if wanted == "docker":
        raise Misconfigured(
            f"No container engine can be used ({told}). Start one, set DOCKER_HOST, or use --engine process."
        )
    return _process(f"No container engine can be used ({told}).")


def _process(*notes: str) -> Engine:
    return Engine(
        name="process",
        notes=(
            *notes,
            "Functions run as child processes of this machine: for development only, and one user may register.",
        ),
    )


def _hosts(environment: Mapping[str, str]) -> list[str]:
    """The one that the user named, else the usual sockets that exist."""
    if named := environment.get("DOCKER_HOST"):
        return [named]
    runtime, home = environment.get("XDG_RUNTIME_DIR"), environment.get("HOME")
    sockets = [Path("/var/run/docker.sock")]
    if runtime:
        sockets += [Path(runtime, "docker.sock"), Path(runtime, "podman/podman.sock")]
    if home:
        sockets += [Path(home, ".docker/run/docker.sock")]
    sockets.append(Path("/run/podman/podman.sock"))
    return [f"unix://{path}" for path in sockets if _is_socket(path)]


def _is_socket(path: Path) -> bool:
    try:
        return path.is_socket()
    except PermissionError:
        return False


async def _image_notes(docker: aiodocker.Docker, environment: Mapping[str, str]) -> tuple[str, ...]:
    overrides = dict(part.split("=", 1) for part in environment.get("DOCKER_BASE_IMAGE", "").split(",") if "=" in part)
    image = overrides.get("python", PYTHON_BASE_IMAGE)
    try:
        await docker.images.inspect(image)
    except aiodocker.DockerError as error:
        if error.status != 404:
            raise
        return (
            f"The base image {image} is not on this machine yet: the first deploy pulls it, or `docker pull` it now.",
        )
    return ()
