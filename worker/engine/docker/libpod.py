"""Translates container settings for engines that pass Docker's requests on to libpod, as Podman does.

All code describes containers as Docker does (:mod:`worker.engine.docker.hardening`). This module rewrites the settings
that libpod would refuse or misread, at the one place through which every container is created.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from aiodocker.types import JSONObject, JSONValue

_PROCESSES = 32768


def in_libpods_words(config: Mapping[str, JSONValue], seccomp: Path, *, rootless: bool) -> dict[str, JSONValue]:
    """What ``config`` says to Docker, for libpod.

    :param seccomp: the profile of every container, a file under the same path for the engine.
    """
    host = dict(cast(JSONObject, config.get("HostConfig") or {}))
    if "SecurityOpt" in host:
        # A profile is the name of a file there, never its text.
        host["SecurityOpt"] = [
            f"seccomp={seccomp}" if option.startswith("seccomp={") else option
            for option in cast(list[str], host["SecurityOpt"])
        ]
    if "Tmpfs" in host:
        host["Tmpfs"] = {path: _tmpfs(options) for path, options in cast(dict[str, str], host["Tmpfs"]).items()}
    if "Ulimits" in host and not rootless:
        # Unsaid, it would be raised to 1,048,576, which an engine without CAP_SYS_RESOURCE may not do. It counts over
        # all sandboxes: high enough that each meets its own PidsLimit first.
        limit = {"Name": "nproc", "Soft": _PROCESSES, "Hard": _PROCESSES}
        host["Ulimits"] = [*cast(list[JSONValue], host["Ulimits"]), cast(JSONValue, limit)]
    # "No check" is taken for a check that is called so, with a timer of the system's that asks for it.
    return {key: value for key, value in config.items() if key != "Healthcheck"} | {"HostConfig": host}


def _tmpfs(options: str) -> str:
    """``U`` gives it to the container's user. How many files it may hold cannot be said: they count as memory."""
    unknown = ("uid=", "gid=", "nr_inodes=")
    kept = [option for option in options.split(",") if not option.startswith(unknown)]
    return ",".join([*kept, "notmpcopyup", "U"])
