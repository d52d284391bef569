"""The configuration of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from worker.network.outside import EgressPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerfileConfig:
    """Bounds on builds of tenants' own Dockerfiles.

    :param base_images: what ``FROM`` may name; empty means the base images of the other runtimes.
    :param cgroup_parent: a cgroup of the operator's that bounds processes; empty where the worker can make its own.
    :param max_processes: of one build, in a cgroup that the worker makes.
    :param min_free_bytes: of the engine's disk; a build is ended below it.
    """

    base_images: tuple[str, ...] = ()
    cgroup_parent: str = ""
    max_processes: int = 256
    min_free_bytes: int = 2 * 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Built once from the worker's settings.

    :param installation: names the installation in labels; two installations on one engine never sweep each other.
    :param worker_id: this worker process, in labels, so that a later sweep knows whose a sandbox was.
    :param socket_dir: short absolute path (Unix socket names end at 107 bytes), the same on host and worker.
    :param data_dir: where the code of versions is kept, and linked into folders of sandboxes; the same absolute path on
        host and worker.
    :param docker_host: ``unix://…`` or ``tcp://…``; ``None`` means the usual local sockets.
    :param base_images: runtime name to image reference, overriding the recipe's.
    :param oci_runtime: name of the engine's OCI runtime (``runsc``), ``None`` for its default.
    :param index_hosts: ``host`` names a dependency install may reach on port 443; ``None`` asks the base image's own
        package manager; empty forbids all.
    :param max_container_changes: containers that are created, started and removed at a time; 0 for as many as the
        engine's machine has processors. More at once would slow down running calls.
    :param max_image_bytes: bound on what one version has of its own, and on a Dockerfile's image.
    :param sandbox_users: user ids of containers that run what tenants wrote, one each.
    :param open_files: that each process of a function may have.
    :param egress: where functions with a network may go.
    :param dockerfile: ``None`` while tenants' Dockerfiles are not built.
    :param code_cache_bytes: bound on the code of versions that is kept on this machine.
    :param image_disk_bytes: what images may take on this machine, unless they are in use; 0 for no bound.
    :param image_in_use_s: so long after its last use an image counts as in use, since other workers may share the
        machine: they write down what they use with every sweep.
    """

    installation: str
    worker_id: str
    socket_dir: Path
    data_dir: Path
    docker_host: str | None = None
    base_images: Mapping[str, str] = field(default_factory=dict)
    oci_runtime: str | None = None
    index_hosts: tuple[str, ...] | None = None
    max_image_bytes: int = 2 * 1024**3
    code_cache_bytes: int = 2 * 1024**3
    image_disk_bytes: int = 20 * 1000**3
    image_in_use_s: float = 90.0
    sandbox_users: range = range(61184, 65520)
    open_files: int = 1024
    egress: EgressPolicy = field(default_factory=EgressPolicy)
    dockerfile: DockerfileConfig | None = None
    start_timeout_s: float = 30.0
    engine_call_timeout_s: float = 60.0
    max_container_changes: int = 0
