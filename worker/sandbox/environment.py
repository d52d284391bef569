"""The environment that function code starts with, the same in both engines."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase

from worker.build.recipe import Recipe
from worker.sandbox.contract import GenericSpec, SandboxSpec

_DEFAULTS = {
    "PATH": "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/tmp",  # noqa: S108 (inside the sandbox)
    "TMPDIR": "/tmp",  # noqa: S108
    "LANG": "C.UTF-8",
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    # Threads would otherwise reserve an arena each, of which every one counts against the memory cap.
    "MALLOC_ARENA_MAX": "2",
}


def generic_environment(spec: GenericSpec, **attachment: str) -> dict[str, str]:
    """What a generic sandbox starts with: nothing that functions of its runtime and size do not have in common."""
    return {
        **_DEFAULTS,
        "FUNCTION_MAX_MEMORY_MB": str(spec.memory_mb),
        "CONTAINERPUB_ATTACH_GENERIC": "1",
        **_named(attachment),
    }


def generic_can_become(spec: SandboxSpec, recipe: Recipe) -> bool:
    """Whether ``spec`` sets nothing that its runtime reads only when it starts."""
    return not any(
        fnmatchcase(name, pattern) and _DEFAULTS.get(name) != value
        for name, value in spec.env
        for pattern in recipe.start_variables
    )


def environment(spec: SandboxSpec, **attachment: str) -> dict[str, str]:
    """What ``spec`` sets, over our defaults, and under the names that the platform keeps for itself.

    ``attachment`` tells the runtime's side how to connect; it takes these names away before function code runs.
    """
    return {
        **_DEFAULTS,
        # Libraries that compute in threads start one for every core of the machine, which wait for each other by
        # spinning: that uses up what CPU time the sandbox has, and on large machines more threads than it may have.
        "OMP_NUM_THREADS": str(max(1, math.ceil(spec.cpus))),
        **dict(spec.env),
        "FUNCTION_TIMEOUT_MS": str(spec.timeout_ms),
        "FUNCTION_MAX_MEMORY_MB": str(spec.memory_mb),
        "CONTAINERPUB_RESTRICTED": "true",
        "DART_CLOUD_RESTRICTED": "true",
        "CONTAINERPUB_ATTACH_HANDLER": spec.handler,
        "CONTAINERPUB_ATTACH_FUNCTION": spec.function_name,
        "CONTAINERPUB_ATTACH_VERSION": str(spec.version),
        **_named(attachment),
    }


def _named(attachment: dict[str, str]) -> dict[str, str]:
    return {f"CONTAINERPUB_ATTACH_{name.upper()}": value for name, value in attachment.items()}
