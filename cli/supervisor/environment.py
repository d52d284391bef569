"""The environment that the parts of an installation are started with."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path

from cli.supervisor.engine import Engine
from cli.supervisor.installation import Installation
from shared.sealing import new_key
from shared.settings import load

PACKAGES = Path(__file__).resolve().parents[2]
"""The folder that holds the packages ``api``, ``worker``, … : a checkout, or where they were installed."""
DRAIN_SECONDS = 15
"""Less than the supervisor waits, so that a worker has time to hand back its unfinished attempts."""
PASSED_ON = (
    *("PATH", "HOME", "LANG", "TMPDIR", "DOCKER_HOST", "DOCKER_BASE_IMAGE"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "PIP_CERT"),
)


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
    """The environment of a part: the user's variables, the installation's own, and defaults for what the user did not
    set.

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


def check_settings(user: Mapping[str, str], installation: Installation) -> None:
    """Raise :class:`Misconfigured` with every mistake that any part would end with. The parts read a ``.env`` file in
    this working folder, too."""
    environment = part_environment(
        user,
        installation,
        host="127.0.0.1",
        port=0,
        engine=Engine(name="process"),
        database_url=user.get("DATABASE_URL"),
        redis_url=user.get("REDIS_URL"),
    )
    load(environment, dotenv=Path(".env"), needs_jwt=True)


def passing_environment(
    user: Mapping[str, str],
    folder: Path,
    *,
    installation_id: str,
    port: int,
    engine: str,
    database_url: str,
    redis_url: str,
) -> dict[str, str]:
    """For an installation in ``folder`` of which nothing is kept: its secrets are drawn here, and of ``user``'s
    variables it sees no more than it needs to find programs, the engine and certificates."""
    return {
        **{name: value for name, value in user.items() if name in PASSED_ON},
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "JWT_SECRET": secrets.token_hex(32),
        "ENCRYPTION_KEYS": new_key(),
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "ENGINE": engine,
        "INSTALLATION_ID": installation_id,
        "DATA_DIR": str(folder / "data"),
        "FUNCTIONS_DIR": str(folder / "artifacts"),
        "SOCKET_DIR": str(folder / "s"),
        "PYTHONPATH": str(PACKAGES),
    }
