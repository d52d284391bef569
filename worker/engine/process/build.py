"""Making a version startable as a folder, where no container engine answers. For development only.

``<data_dir>/versions/<version>/function`` holds the code; beside it the recipe's folder for dependencies leads to the
one of that name in ``<data_dir>/dependencies/<key>``, which all versions that ask for the same share. A folder appears
under its name only when it is complete.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from worker.build.analysis import SOURCES, analyze, judge_check, read_sources
from worker.build.build_log import BuildLog
from worker.build.builds import Builds, content_key
from worker.build.dependency_manifest import DependencyManifest, dependency_key, read_dependency_manifest
from worker.build.index_proxy import EgressProxy
from worker.build.layer import Layer, UnsafeEntry, artifact_layer, in_thread, installed_layer
from worker.build.plan import BuildPlan, BuildRejected, BuiltImage
from worker.build.recipe import Recipe, load_recipe
from worker.config import EngineConfig
from worker.engine.process.program import local_command, program_identity
from worker.engine.process.version_gc import folder_bytes, mark_used, scratch_prefix
from worker.errors import EngineUnavailable
from worker.sandbox.attach import SocketFolders

_MEBIBYTE = 1024 * 1024
_READ = 64 * 1024
_CHECK_MB = 512
_CHECK_S = 20

# Limits itself, then becomes the installation: arguments are memory, CPU seconds, file size, and the command.
_LIMITED = """
import os, resource, sys
for kind, value in (("AS", sys.argv[1]), ("CPU", sys.argv[2]), ("FSIZE", sys.argv[3]), ("CORE", 0), ("NOFILE", 1024)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + kind), (int(value), int(value)))
os.execv(sys.argv[4], sys.argv[4:])
"""


class ProcessBuilder:
    """Builds folders below ``config.data_dir``. Safe for concurrent use; equal dependencies are installed once."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._versions = config.data_dir / "versions"
        self._dependencies = config.data_dir / "dependencies"
        self._prefix = scratch_prefix(config.worker_id)
        self._builds = Builds()

    async def build(self, plan: BuildPlan, log: Callable[[str], None]) -> BuiltImage:
        """See :meth:`worker.engine.contract.Engine.build`; ``ref`` is the version's folder below ``versions``."""
        return await self._builds.run(plan, self._build(plan, BuildLog(log, plan.max_log_bytes)))

    async def close(self) -> None:
        """Cancel the builds that run, and return when nothing of them is left. Idempotent."""
        await self._builds.close()

    def scratch(self, folder: Path) -> Path:
        """A new folder beside ``folder``, so that giving it the final name is one rename. Blocking."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=self._prefix, dir=folder.parent))

    async def _build(self, plan: BuildPlan, log: BuildLog) -> BuiltImage:
        recipe = load_recipe(plan.runtime)
        if recipe.dockerfile:
            raise BuildRejected(
                "build_failed",
                "The process engine has no images: Dockerfiles are built by the engine docker alone.",
            )
        analysis, manifest = await asyncio.gather(
            analyze(plan, recipe), asyncio.to_thread(read_dependency_manifest, plan.artifact, recipe)
        )
        await self._check(plan, recipe)
        dependencies = None
        if manifest is not None and recipe.install is not None:
            dependencies = await self._install(plan, recipe, manifest, log)
        name = str(plan.version_id)
        async with self._builds.single_flight(name):
            size = await asyncio.to_thread(self._place, plan, recipe, self._versions / name, dependencies)
        return BuiltImage(ref=name, size_bytes=size, analysis=analysis)

    async def _check(self, plan: BuildPlan, recipe: Recipe) -> None:
        """Parse source files by the recipe's own program, as :class:`worker.engine.docker.check.Checker` does."""
        if recipe.check is None:
            return
        scratch = await asyncio.to_thread(self.scratch, self._versions / str(plan.version_id))
        try:
            sources = await asyncio.to_thread(read_sources, plan.artifact, recipe)
            await asyncio.to_thread((scratch / SOURCES).write_text, sources, "ascii")
            command = local_command(recipe.check.arguments(SOURCES))
            limits = [(_CHECK_MB + recipe.address_space_extra_mb) * _MEBIBYTE, _CHECK_S, _MEBIBYTE]
            with tempfile.TemporaryFile() as answer:
                code = await _run_limited([*command], scratch, limits, answer, BuildLog(lambda _: None, 0))
                answer.seek(0)
                judge_check(code, answer.read())
        finally:
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

    def _place(self, plan: BuildPlan, recipe: Recipe, folder: Path, dependencies: Path | None) -> int:
        """Put a version's folder in place, if it is not there; its size with its dependencies."""
        if not mark_used(folder):
            scratch = self.scratch(folder)
            try:
                scratch.chmod(0o755)
                _unpack(artifact_layer(plan.artifact, "function"), scratch)
                if dependencies is None:
                    _make_dependencies(recipe, scratch)
                else:
                    (scratch / recipe.dependencies).symlink_to(dependencies, target_is_directory=True)
                scratch.rename(folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        size = folder_bytes(folder / "function") + (folder_bytes(dependencies) if dependencies else 0)
        if size > self._config.max_image_bytes:
            shutil.rmtree(folder)
            raise BuildRejected(
                "build_failed",
                f"The version takes {size >> 20} MB, and {self._config.max_image_bytes >> 20} are allowed.",
            )
        return size

    async def _install(self, plan: BuildPlan, recipe: Recipe, manifest: DependencyManifest, log: BuildLog) -> Path:
        """The folder of the installed dependencies, called as the recipe says."""
        assert recipe.install is not None
        identity = await asyncio.to_thread(program_identity, recipe.install.command)
        key = content_key(identity, recipe.install_fingerprint, recipe.fingerprint, dependency_key(manifest))
        folder = self._dependencies / key
        async with self._builds.single_flight(key):
            if await asyncio.to_thread(mark_used, folder):
                log.line("dependencies are unchanged")
                return folder / recipe.dependencies
            log.line("installing dependencies")
            scratch = await asyncio.to_thread(self.scratch, folder)
            try:
                layer = await self._run(plan, recipe, manifest, scratch, log)
                made = scratch / "made"
                await asyncio.to_thread(_make_dependencies, recipe, made)
                await asyncio.to_thread(_unpack, layer, made)
                await asyncio.to_thread(made.rename, folder)
            except UnsafeEntry as error:
                raise BuildRejected("build_failed", f"The installed dependencies cannot be used: {error}.") from error
            finally:
                await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
            return folder / recipe.dependencies

    async def _run(
        self, plan: BuildPlan, recipe: Recipe, manifest: DependencyManifest, scratch: Path, log: BuildLog
    ) -> Layer:
        """Run the install script with ``scratch/target`` as its target; what it sent, under the recipe's folder."""
        assert recipe.install is not None
        target, egress = scratch / "target", None
        for name, text in manifest.files.items():
            await asyncio.to_thread((scratch / name).write_text, text, "ascii")
        await asyncio.to_thread(target.mkdir)
        if self._config.index_hosts is not None:
            folders = SocketFolders.of("process", self._config)
            await asyncio.to_thread(folders.prepare)
            egress = folders.folder(f"b{secrets.token_hex(7)}")
        first = next(iter(manifest.files))
        command = [*local_command(recipe.install.arguments(first, target.name), "-I")]
        memory_mb = plan.memory_mb + recipe.address_space_extra_mb
        # the last one bounds each file that is written, and so the archive too
        limits = [memory_mb * _MEBIBYTE, max(1, round(plan.timeout_s)), plan.max_unpacked_bytes]
        with tempfile.TemporaryFile() as spool:
            if egress is None:
                code = await _run_limited(command, scratch, limits, spool, log)
            else:
                async with EgressProxy(egress, self._config.index_hosts or (), log.line):
                    code = await _run_limited([*command, str(egress)], scratch, limits, spool, log)
            log.flush()
            if code != 0:
                detail = f": {log.last_line}" if log.last_line else ""
                raise BuildRejected("build_failed", f"Installing the dependencies failed with exit code {code}{detail}")
            spool.seek(0)
            return await in_thread(installed_layer, spool, recipe.dependencies, plan.max_unpacked_bytes, log.line)


async def _run_limited(command: list[str], cwd: Path, limits: list[int], stdout: IO[bytes], log: BuildLog) -> int:
    """Run ``command`` in a session of its own to its end; whatever happens, all of that session is gone afterwards."""
    try:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", _LIMITED, *map(str, limits), *command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stdout,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": os.defpath, "LANG": "C.UTF-8"},
            cwd=cwd,
            start_new_session=True,
        )
    except OSError as error:
        raise EngineUnavailable(f"The worker cannot start a process: {error}") from error
    assert child.stderr is not None
    try:
        while data := await child.stderr.read(_READ):
            log.feed(data)
        return await child.wait()
    finally:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        await child.wait()


def _make_dependencies(recipe: Recipe, target: Path) -> None:
    """The recipe's folder for dependencies in ``target``, with what stands there from the start. Blocking."""
    (target / recipe.dependencies).mkdir(parents=True)
    for file in recipe.files:
        if file.path.startswith(f"{recipe.dependencies}/"):
            path = target / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.content)


def _unpack(layer: Layer, target: Path) -> None:
    """Write out a layer that this process made: plain relative names, no links. Closes it."""
    with layer.file, tarfile.open(fileobj=layer.file, mode="r|") as archive:
        for member in archive:
            path = target / member.name
            if member.isdir():
                path.mkdir(exist_ok=True)
                continue
            content = archive.extractfile(member)
            assert content is not None
            with path.open("xb") as file:
                shutil.copyfileobj(content, file)
            path.chmod(member.mode)
