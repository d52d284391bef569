"""Whether a container engine can cap what runs in it, by what it says of itself (``GET /info`` of its API)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LIMITS = {"MemoryLimit": "memory", "CpuCfsQuota": "CPU time", "PidsLimit": "processes"}


def is_rootless(info: Mapping[str, Any]) -> bool:
    """Podman says so in a field of its own, Docker among its security options."""
    return info.get("Rootless") is True or "name=rootless" in (info.get("SecurityOptions") or ())


def uncapped(info: Mapping[str, Any]) -> str | None:
    """Why containers would run without their limits, and what to do; ``None`` if they have them.

    Rootless Podman claims every limit on cgroup v1 too, and ignores them there.
    """
    if is_rootless(info) and info.get("CgroupVersion") == "1":
        return (
            "it runs rootless on cgroup v1, where limits of memory, CPU time and processes are ignored: "
            "boot with cgroup v2, or use an engine that runs as root"
        )
    missing = [what for field, what in _LIMITS.items() if info.get(field) is False]
    if missing:
        return (
            f"it cannot limit {', '.join(missing)}: switch these cgroup controllers on, and for a rootless engine "
            "delegate them to its user"
        )
    return None
