"""What every sandbox container is created with.

Each line closes something a hostile function would use; ``tests/acceptance/test_docker_hardening.py`` tries them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from aiodocker.types import JSONValue

FILES_A_MEBIBYTE = 64
"""So many files may be in ``/tmp``: each takes memory too, however small it is."""
PIDS = 64
OPEN_FILES = 1024
FILE_BYTES = 32 * 1024**2
"""Of one file on a disk, as a command's result."""
LOCKED_BYTES = 64 * 1024
CPU_SHARES = 102
"""Of a sandbox with a whole CPU, where any other container has 1024. It weighs only while processors are scarce: busy
functions then hold up no platform whose own processes run in containers beside them."""

LABEL_INSTALLATION = "containerpub.installation"
LABEL_WORKER = "containerpub.worker"
LABEL_SANDBOX = "containerpub.sandbox"
LABEL_VERSION = "containerpub.version"
LABEL_FUNCTION = "containerpub.function"

_SECCOMP = Path(__file__).with_name("seccomp.json")


def seccomp_profile() -> str:
    """The profile as the engine takes it: its text, since the engine may run on another machine. Blocking."""
    return _SECCOMP.read_text("utf-8")


def mounts(folders: Mapping[str, Path]) -> dict[str, str]:
    """``folders``, by their names at the root, as :func:`container_config` takes them."""
    return {f"/{name}": str(folder) for name, folder in folders.items()}


def container_config(
    *,
    image: str,
    uid: int,
    argv: Sequence[str],
    working_dir: str,
    env: Mapping[str, str],
    labels: Mapping[str, str],
    binds: Sequence[str],
    memory_mb: int,
    tmp_mb: int,
    cpus: float,
    seccomp: str,
    oci_runtime: str | None,
    folders: Mapping[str, str] | None = None,
    network: str = "none",
    keeps_result: bool = False,
    open_files: int = OPEN_FILES,
) -> dict[str, JSONValue]:
    """Body of ``POST /containers/create``. Entry point, user, environment and labels never come from the image.

    :param uid: of its user, and the id of its group.
    :param binds: read-only files and folders, which the engine makes on its machine if they are not there.
    :param folders: host folders, by where they appear; read-only, and an error if they are not there.
    :param tmp_mb: what fits into ``/tmp``, which is memory. :param keeps_result: whether it writes to a disk.
    :param network: ``none``, a network's id, or ``container:…`` for the network of another container.
    """
    memory_bytes, tmp_bytes = memory_mb * 1024**2, tmp_mb * 1024**2
    host: dict[str, JSONValue] = {
        "Binds": list(binds),
        "NetworkMode": network,
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "Privileged": False,
        "CapDrop": ["ALL"],
        "CapAdd": [],
        "ReadonlyRootfs": True,
        "Init": True,
        "SecurityOpt": ["no-new-privileges:true", f"seccomp={seccomp}"],
        "Memory": memory_bytes,
        "MemorySwap": memory_bytes,
        "NanoCpus": int(cpus * 1e9),
        "CpuShares": max(2, int(cpus * CPU_SHARES)),
        "PidsLimit": PIDS,
        "OomScoreAdj": 1000,
        # uid and gid, because the mode alone gives way to that of the image's own /tmp.
        "Tmpfs": {
            "/tmp": (  # noqa: S108 (inside the sandbox)
                f"rw,noexec,nosuid,nodev,size={tmp_bytes},nr_inodes={tmp_mb * FILES_A_MEBIBYTE},"
                f"uid={uid},gid={uid},mode=0700"
            )
        },
        # Shared memory counts as memory: who takes too much of it is out of memory, not killed by a signal.
        "ShmSize": memory_bytes,
        # No nproc: it counts over all containers of the same uid.
        "Ulimits": [
            {"Name": name, "Soft": limit, "Hard": limit}
            for name, limit in (
                ("nofile", open_files),
                ("fsize", FILE_BYTES if keeps_result else max(FILE_BYTES, memory_bytes)),
                ("core", 0),
                ("memlock", LOCKED_BYTES),
            )
        ],
        # Output comes over sockets of ours: none of it on the host's disk, and no stalled reader can wedge a kill.
        "LogConfig": {"Type": "none"},
        "RestartPolicy": {"Name": "no"},
        # The exit state is asked for after the end.
        "AutoRemove": False,
    }
    if folders:
        host["Mounts"] = [
            {"Type": "bind", "Source": source, "Target": target, "ReadOnly": True} for target, source in folders.items()
        ]
    if oci_runtime is not None:
        host["Runtime"] = oci_runtime
    return {
        "Image": image,
        "Entrypoint": [argv[0]],
        "Cmd": list(argv[1:]),
        "User": f"{uid}:{uid}",
        "WorkingDir": working_dir,
        "Env": [f"{name}={value}" for name, value in env.items()],
        "Labels": dict(labels),
        "Tty": False,
        "OpenStdin": False,
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "NetworkDisabled": network == "none",
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGKILL",
        "HostConfig": host,
    }
