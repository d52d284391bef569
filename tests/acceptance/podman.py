"""A Podman of the tests' own: storage, containers and socket in one folder, nothing of the machine's touched."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

BASE_IMAGES = ("python:3.11-slim",)
_START_S = 20.0
# Docker calls it docker-init; any program that reaps is as good.
_INITS = ("catatonit", "docker-init", "tini")


def can_run() -> bool:
    """Whether Podman is installed, for root: without, it would need cgroup v2 and ranges of ids."""
    return os.getuid() == 0 and shutil.which("podman") is not None


@contextmanager
def serving(*, user: int | None = None, images: Sequence[str] = ()) -> Iterator[str]:
    """A running service: its address for ``DOCKER_HOST``. With ``user`` a rootless one, of that account alone."""
    folder = Path(mkdtemp(prefix="cpp"))
    try:
        (folder / "containers.conf").write_text(_settings())
        if user is not None:
            os.chown(folder, user, user)
        podman = Podman(folder, user)
        try:
            with podman.service() as host:
                for image in images:
                    podman.load(image)
                yield host
        finally:
            podman.clear()
    finally:
        shutil.rmtree(folder)


class Podman:
    """One Podman, in ``folder``."""

    def __init__(self, folder: Path, user: int | None) -> None:
        self._folder = folder
        self._user = user
        home = {"HOME": str(folder), "XDG_RUNTIME_DIR": str(folder), "CONTAINERS_CONF": str(folder / "containers.conf")}
        self._env = {name: value for name, value in os.environ.items() if name != "DOCKER_HOST"} | home
        self._command = ["podman", *(f"--{name}={folder / name}" for name in ("root", "runroot", "tmpdir"))]
        if user is not None:
            self._command.append("--storage-driver=vfs")

    @contextmanager
    def service(self) -> Iterator[str]:
        path = self._folder / "podman.sock"
        with (self._folder / "log").open("wb") as log:
            running = subprocess.Popen(
                [*self._command, "system", "service", "--time=0", f"unix://{path}"],
                env=self._env,
                cwd=self._folder,
                user=self._user,
                group=self._user,
                extra_groups=None if self._user is None else [],
                stderr=log,
                start_new_session=True,  # a rootless one starts itself once more, in namespaces
            )
        try:
            self._await(path, running)
            yield f"unix://{path}"
        finally:
            os.killpg(running.pid, signal.SIGTERM)
            running.wait(timeout=20)

    def load(self, image: str) -> None:
        """Take an image over from Docker, if that has it: else the engine pulls it when it is asked for."""
        saved = self._folder / "image.tar"
        if subprocess.run(["docker", "save", "--output", saved, image], capture_output=True).returncode == 0:
            self._run("load", "--quiet", "--input", str(saved))
            saved.unlink()

    def clear(self) -> None:
        """Remove its containers and let go of its storage."""
        if self._user is None:
            self._run("rm", "--all", "--force")
        for file in self._folder.rglob("pause.pid"):
            # What holds the namespaces of a rootless one, and would stay for good.
            with suppress(ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGKILL)
        mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for path in sorted(mounted, reverse=True):
            if Path(path).is_relative_to(self._folder):
                subprocess.run(["umount", path], check=True)

    def _run(self, *arguments: str) -> None:
        done = subprocess.run([*self._command, *arguments], env=self._env, cwd=self._folder, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()

    def _await(self, path: Path, running: subprocess.Popen[bytes]) -> None:
        ending = time.monotonic() + _START_S
        while running.poll() is None and time.monotonic() < ending:
            with socket.socket(socket.AF_UNIX) as connection:
                if connection.connect_ex(str(path)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError(f"Podman does not serve: {(self._folder / 'log').read_text()}")


def _settings() -> str:
    """As a machine without systemd needs them; ``runc`` where it is, since ``crun`` refuses hybrid cgroups.

    Limits that are not said would be raised to what only an engine with CAP_SYS_RESOURCE can. Locks are files: in
    shared memory there is one set for every Podman of this account.
    """
    limits = 'default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]'
    lines = [
        "[containers]",
        limits,
        "[engine]",
        'cgroup_manager = "cgroupfs"',
        'events_logger = "file"',
        'lock_type = "file"',
    ]
    if shutil.which("runc") is not None:
        lines.append('runtime = "runc"')
    init = next((path for path in map(shutil.which, _INITS) if path is not None), None)
    if init is not None:
        lines.append(f'init_path = "{init}"')
    return "\n".join(lines) + "\n"
