"""The environment that the parts of an installation are started with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cli.supervisor.engine import Engine
from cli.supervisor.installation import Installation

PACKAGES = Path(__file__).resolve().parents[2]
"""The folder that holds the packages ``api``, ``worker``, … : a checkout, or where they were installed."""
DRAIN_SECONDS = 15
"""Less than what the supervisor waits, so that a worker gets to hand back what it could not finish."""


def is_given(name: str, user: Mapping[str, str]) -> bool:
    """Whether the user set ``name``, directly or as the name of a file that holds it."""
    return bool(user.get(name) or user.get(f"{name}_FILE"))


def part_environment(
    user: Mapping[str, str],
    installation: Installation,
    *,
    host: str,
    port: int,
    engine: Engine,
    database_url: str | None,
    redis_url: str | None,
) -> dict[str, str]:
    """Everything of ``user``'s, what this installation is, and a default for whatever the user did not set.

    ``database_url`` and ``redis_url`` are those of the embedded servers, ``None`` where the user named others.
    """
    defaults = {
        "FUNCTIONS_DIR": str(installation.artifacts),
        "DATA_DIR": str(installation.folder),
        "INSTALLATION_ID": installation.id,
        "SOCKET_DIR": str(installation.socket_dir),
        "LOG_FORMAT": "text",
        "DRAIN_SECONDS": str(DRAIN_SECONDS),
        "LEAVE_SECONDS": "0",  # there is no other API process, and all parts stop together
    }
    if engine.name == "process":
        defaults["MAX_USERS"] = "1"
    if engine.docker_host:
        defaults["DOCKER_HOST"] = engine.docker_host
    environment = {name: value for name, value in defaults.items() if not is_given(name, user)}
    environment |= user
    if not is_given("JWT_SECRET", user):
        environment["JWT_SECRET_FILE"] = str(installation.jwt_secret_file)
    if not is_given("ENCRYPTION_KEYS", user):
        environment["ENCRYPTION_KEYS_FILE"] = str(installation.encryption_keys_file)
    if database_url is not None:
        environment["DATABASE_URL"] = database_url
    if redis_url is not None:
        environment["REDIS_URL"] = redis_url
    path = user.get("PYTHONPATH")
    return environment | {
        "HOST": host,
        "PORT": str(port),
        "ENGINE": engine.name,
        "PYTHONPATH": f"{PACKAGES}:{path}" if path else str(PACKAGES),
        "PYTHONUNBUFFERED": "1",
    }
