"""A bound on the processes of a build: the engine's builder has none of its own, but takes a parent cgroup.

Where the worker may write the engine's cgroups (as root on the same machine, with the ``cgroupfs`` driver), every build
gets a cgroup of its own. Elsewhere the operator makes one and names it; builds at the same time then share its bound.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from worker.build.builds import content_key
from worker.build.plan import BuildRejected
from worker.config import DockerfileConfig, EngineConfig
from worker.engine.docker.client import EngineClient

_ROOT = Path("/sys/fs/cgroup")
_OWN_PARENT = "/containerpub-build"
_EMPTY_WAIT_S = 5.0
"""How long after its last container went a cgroup may still be in use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The engine's machine, as the engine describes it."""

    driver: str  # of cgroups
    is_v2: bool
    is_here: bool  # on this machine, and not only reached from it
    root: Path  # its data
    oci_runtime: str

    @property
    def processes(self) -> Path:
        """The hierarchy of cgroups that counts processes."""
        return _ROOT if self.is_v2 else _ROOT / "pids"


class BuildCaps:
    """The cgroups of one worker's builds."""

    def __init__(self, client: EngineClient, config: EngineConfig) -> None:
        self._client = client
        self._config = config
        self._prefix = self._prefix_of(config.worker_id)

    async def machine(self) -> Machine:
        """:raises BuildRejected: the engine cannot bound builds at all, or would run them by another OCI runtime."""
        info, version = await self._client.info(), await self._client.version()
        names = [str(part.get("Name")) for part in version.get("Components") or ()]
        if "Engine" not in names:
            raise _impossible(f"{names[0] if names else 'this engine'} has not Docker's builder")
        if info["CgroupDriver"] not in ("cgroupfs", "systemd"):
            raise _impossible("the engine has no cgroups to bound a build with")
        wanted = self._config.oci_runtime
        if wanted not in (None, info["DefaultRuntime"]):
            raise _impossible(
                f"the engine builds with its default OCI runtime, which is {info['DefaultRuntime']} and not {wanted}"
            )
        root = Path(info["DockerRootDir"])
        here = info["Name"] == socket.gethostname() and info["KernelVersion"] == os.uname().release
        return Machine(
            driver=info["CgroupDriver"],
            is_v2=str(info.get("CgroupVersion", "1")) == "2",
            is_here=here and await asyncio.to_thread(root.is_dir),
            root=root,
            oci_runtime=info["DefaultRuntime"],
        )

    @asynccontextmanager
    async def hold(self, machine: Machine, settings: DockerfileConfig, name: str) -> AsyncIterator[str]:
        """The parent cgroup for the containers of the build ``name``, which may leave none behind.

        :raises BuildRejected: there is none that bounds their processes.
        """
        given = settings.cgroup_parent
        if machine.driver == "systemd":
            if not given.endswith(".slice"):
                raise _impossible(
                    "with the cgroup driver systemd the operator has to make a slice with TasksMax and name it in "
                    "DOCKERFILE_CGROUP_PARENT"
                )
            await asyncio.to_thread(_check_bound, machine, _slice_path(given), given)
            yield given
            return
        path = f"{given or _OWN_PARENT}/{self._prefix}{name}"
        if machine.is_here and await asyncio.to_thread(_make, machine, path, settings.max_processes):
            try:
                yield path
            finally:
                await asyncio.shield(asyncio.ensure_future(_remove(machine, path)))
            return
        if not given:
            raise _impossible(
                "the worker cannot make cgroups for the engine; the operator has to make one with pids.max and name it "
                "in DOCKERFILE_CGROUP_PARENT"
            )
        await asyncio.to_thread(_check_bound, machine, given, given)
        yield given

    def sweep(self, live_workers: frozenset[str]) -> int:
        """Remove those that workers which are gone have left; how many. Blocking."""
        parent = self._config.dockerfile.cgroup_parent if self._config.dockerfile else ""
        live = tuple({self._prefix_of(worker) for worker in live_workers} | {self._prefix})
        names = {
            folder.name
            for hierarchy in _hierarchies()
            for folder in (hierarchy / (parent or _OWN_PARENT).strip("/")).glob(f"{self._prefix_of()}*")
            if not folder.name.startswith(live)
        }
        for name in names:
            _clear(f"{parent or _OWN_PARENT}/{name}")
        return len(names)

    def _prefix_of(self, *worker: str) -> str:
        """How names of a worker's cgroups begin, or those of the whole installation. A sweep that removed another
        installation's empty cgroup would have the engine make it again without its bound: so it looks at its own
        only."""
        return "".join(f"{content_key(part)[:12]}-" for part in (self._config.installation, *worker))


def _impossible(why: str) -> BuildRejected:
    return BuildRejected("build_failed", f"Dockerfiles cannot be built here: {why}.")


def _make(machine: Machine, path: str, processes: int) -> bool:
    """Whether a cgroup that bounds processes could be made at ``path``. Blocking."""
    folder = machine.processes / path.strip("/")
    try:
        folder.mkdir(parents=True)
        if machine.is_v2:
            for above in list(folder.relative_to(_ROOT).parents)[::-1]:
                (_ROOT / above / "cgroup.subtree_control").write_text("+pids")
        (folder / "pids.max").write_text(str(processes))
        return (folder / "pids.max").read_text().strip() == str(processes)
    except OSError:
        _clear(path)
        return False


def _check_bound(machine: Machine, path: str, name: str) -> None:
    """As far as it can be seen from here, a cgroup that an operator named has a bound. Blocking."""
    if not machine.is_here:
        return
    try:
        bound = (machine.processes / path.strip("/") / "pids.max").read_text().strip()
    except OSError:
        bound = "max"
    if bound == "max":
        raise _impossible(f"DOCKERFILE_CGROUP_PARENT names {name}, which does not bound the number of processes")


def _slice_path(name: str) -> str:
    """Where systemd puts a slice: ``a-b.slice`` is in ``a.slice``."""
    parts = name.removesuffix(".slice").split("-")
    return posixpath.join(*("-".join(parts[: end + 1]) + ".slice" for end in range(len(parts))))


async def _remove(machine: Machine, path: str) -> None:
    """Remove a cgroup once it is empty; if it is not within a few seconds, the sweep removes it."""
    deadline = asyncio.get_running_loop().time() + _EMPTY_WAIT_S
    while True:
        await asyncio.to_thread(_clear, path)
        left = await asyncio.to_thread((machine.processes / path.strip("/")).exists)
        if not left or asyncio.get_running_loop().time() > deadline:
            return
        await asyncio.sleep(0.05)


def _hierarchies() -> list[Path]:
    """Every hierarchy there is: with version 1, the engine makes a parent in all of them and removes it in none."""
    try:
        return [_ROOT, *(path for path in _ROOT.iterdir() if path.is_dir() and not path.is_symlink())]
    except OSError:
        return []


def _clear(path: str) -> None:
    for hierarchy in _hierarchies():
        with suppress(OSError):
            (hierarchy / path.strip("/")).rmdir()
