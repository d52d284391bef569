"""The stack of compose.yaml, really running: every service in a container, under names of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from shared.sealing import new_key
from tests.deployment import free_port, remove_images

ROOT = Path(__file__).parents[2]
READY_S = 120.0
_COMPOSE_S = 300.0
_ENGINE = Path("/var/run/docker.sock")


class ComposeStack:
    """:param compose: the command. :param images: of all services, by their variables in ``.env``.
    :param settings: for our processes, beside what compose.yaml sets.
    """

    def __init__(self, compose: tuple[str, ...], images: Mapping[str, str], settings: Mapping[str, str]) -> None:
        self.installation = f"stack-{secrets.token_hex(4)}"
        self.folder = Path(tempfile.mkdtemp(prefix="cp-stack-"))
        self._command = (*compose, "--project-name", self.installation)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        shutil.copy(ROOT / "compose.yaml", self.folder)
        shutil.copytree(ROOT / "deploy", self.folder / "deploy")
        _write(self.folder / "our.env", settings)
        _write(
            self.folder / ".env",
            {
                **images,
                "SETTINGS_FILE": "./our.env",
                "JWT_SECRET": secrets.token_hex(32),
                "ENCRYPTION_KEYS": new_key(),
                "POSTGRES_PASSWORD": secrets.token_hex(24),
                "REDIS_PASSWORD": secrets.token_hex(24),
                "S3_SECRET_ACCESS_KEY": secrets.token_hex(24),
                "DOCKER_GID": str(_ENGINE.stat().st_gid),
                "PORT": str(port),
                "COMPOSE_PROFILES": "registry",
                "DOCKER_REGISTRY": "http://registry:5000",
                "INSTALLATION_ID": self.installation,
                "SOCKET_DIR": str(self.folder / "s"),
                "DATA_DIR": str(self.folder / "data"),
            },
        )

    def __enter__(self) -> Self:
        try:
            self.scale(workers=2)
            self._ready()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()

    def scale(self, *, workers: int) -> None:
        """Start what does not run yet, with so many workers; those too many drain."""
        self._compose("up", "-d", "--no-build", "--scale", f"worker={workers}")

    def remove(self) -> None:
        """Stop everything, workers first so that they take their sandboxes along, and leave nothing behind."""
        try:
            self._compose("stop", "worker")
            # The other services only save what is removed here anyway.
            self._compose("down", "--volumes", "--remove-orphans", "--timeout", "3")
        finally:
            label = f"label=containerpub.installation={self.installation}"
            left = _docker("ps", "--all", "--quiet", "--filter", label).split()
            if left:
                _docker("rm", "--force", *left)
            remove_images(self.installation)
            shutil.rmtree(self.folder)
        assert left == [], "workers left sandboxes behind"

    def run(self, service: str, script: str) -> str:
        """What ``script``, run in the container of ``service``, prints."""
        done = self._run("exec", "-T", service, "sh", "-c", script)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def logs(self) -> str:
        """What all services logged last, for a failing test."""
        done = self._run("logs", "--no-color", "--tail", "60")
        return done.stdout + done.stderr

    def _ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/api/ready", timeout=5):
                    return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise AssertionError(f"not ready within {READY_S:g} s\n{self.logs()}") from error
            time.sleep(0.2)

    def _compose(self, *arguments: str) -> None:
        done = self._run(*arguments)
        assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout}\n{done.stderr}\n{self.logs()}"

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        # HOME, for the engine's own settings; nothing else of this machine's reaches compose.yaml.
        env = {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_HOST") if name in os.environ}
        return subprocess.run(
            [*self._command, *arguments], env=env, cwd=self.folder, capture_output=True, text=True, timeout=_COMPOSE_S
        )


def _write(path: Path, values: Mapping[str, str]) -> None:
    path.write_text("".join(f"{name}={value}\n" for name, value in values.items()), "utf-8")


def _docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=120, check=True).stdout
