"""Making a version's layers where no container engine answers. For development only."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import IO

from shared.in_thread import temporary_folder
from shared.layers import LayerKind, LayerRef, VersionLayers
from worker.build.analysis import SOURCES, analyze, concluded, judge_check, read_sources
from worker.build.build_log import BuildLog
from worker.build.builds import Builds, content_key
from worker.build.code_cache import CodeCache
from worker.build.dependency_manifest import DependencyManifest, dependency_key, read_dependency_manifest
from worker.build.index_proxy import EgressProxy
from worker.build.layer import Layer, UnsafeEntry, artifact_layer, in_thread, installed_layer, runtime_layer
from worker.build.layer_store import LayerStore
from worker.build.plan import BuildPlan, BuildRejected, BuiltVersion
from worker.build.recipe import FUNCTION, Recipe, load_recipe
from worker.build.version_code import VersionCode
from worker.config import EngineConfig
from worker.engine.process.program import base_identity, local_argv, program_identity
from worker.errors import EngineUnavailable
from worker.sandbox.attach import SocketFolders

_MEBIBYTE = 1024 * 1024
_READ = 64 * 1024
_CHECK_MB = 512
_CHECK_S = 20

# Sets its own limits, then becomes the installer. Arguments: memory, CPU seconds, file size, and the installer's argv.
_LIMITED = """
import os, resource, sys
for kind, value in (("AS", sys.argv[1]), ("CPU", sys.argv[2]), ("FSIZE", sys.argv[3]), ("CORE", 0), ("NOFILE", 1024)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + kind), (int(value), int(value)))
os.execv(sys.argv[4], sys.argv[4:])
"""


class ProcessBuilder:
    """Builds versions with this machine's own programs. Safe for concurrent use; equal dependencies are installed
    once."""

    def __init__(self, config: EngineConfig, layers: LayerStore, cache: CodeCache, code: VersionCode) -> None:
        self._config = config
        self._layers = layers
        self._cache = cache
        self._code = code
        self._builds = Builds()

    async def build(self, plan: BuildPlan, log: Callable[[str], None]) -> BuiltVersion:
        """See :meth:`worker.engine.contract.Engine.build`."""
        return await self._builds.run(plan, self._build(plan, BuildLog(log, plan.max_log_bytes)))

    async def close(self) -> None:
        """Cancel the builds that run, and return when nothing of them is left. Idempotent."""
        await self._builds.close()

    async def _build(self, plan: BuildPlan, log: BuildLog) -> BuiltVersion:
        recipe = await asyncio.to_thread(load_recipe, plan.runtime)
        if recipe.dockerfile:
            raise BuildRejected(
                "build_failed",
                "The process engine has no images: Dockerfiles are built by the engine docker alone.",
            )
        analysis, manifest = await asyncio.gather(
            analyze(plan, recipe), asyncio.to_thread(read_dependency_manifest, plan.artifact, recipe)
        )
        told = await self._check(plan, recipe, str(analysis.get("file")))
        analysis = concluded(analysis, [*(manifest.notes if manifest is not None else ()), *told], log.line)
        files: dict[str, IO[bytes]] = {}
        async with AsyncExitStack() as opened:

            async def keep(kind: LayerKind, layer: Layer) -> LayerRef:
                opened.push_async_callback(asyncio.to_thread, layer.file.close)
                if layer.size_bytes > self._config.max_image_bytes and kind is not LayerKind.RUNTIME:
                    raise BuildRejected(
                        "build_failed",
                        f"The version takes {layer.size_bytes >> 20} MB, "
                        f"and {self._config.max_image_bytes >> 20} are allowed.",
                    )
                files[layer.digest] = layer.file
                return await self._layers.keep(kind, layer)

            found = [await keep(LayerKind.RUNTIME, await in_thread(runtime_layer, recipe))]
            if manifest is not None and recipe.install is not None:
                found.append(await self._dependencies(plan, recipe, manifest, log, keep))
            found.append(await keep(LayerKind.CODE, await in_thread(artifact_layer, plan.artifact, FUNCTION)))
            base = await asyncio.to_thread(base_identity, recipe)
            layers = VersionLayers(base=base, layers=tuple(found))
            await self._code.add(plan.user_id, recipe, layers, files)
        return BuiltVersion(layers=layers, analysis=analysis)

    async def _check(self, plan: BuildPlan, recipe: Recipe, entry: str) -> Sequence[str]:
        """Parse source files by the recipe's own program, as :class:`worker.engine.docker.check.Checker` does."""
        if recipe.check is None:
            return ()
        async with temporary_folder(self._cache.scratch) as scratch:
            sources, left_out = await asyncio.to_thread(read_sources, plan.artifact, recipe)
            await asyncio.to_thread((scratch / SOURCES).write_text, sources, "ascii")
            argv = await asyncio.to_thread(local_argv, recipe.check.arguments(SOURCES, entry))
            limits = [(_CHECK_MB + recipe.address_space_extra_mb) * _MEBIBYTE, _CHECK_S, _MEBIBYTE]
            with tempfile.TemporaryFile() as answer:
                code = await _run_limited([*argv], scratch, limits, answer, BuildLog(lambda _: None, 0))
                await asyncio.to_thread(answer.seek, 0)
                return [*judge_check(code, await asyncio.to_thread(answer.read)), *left_out]

    async def _dependencies(
        self,
        plan: BuildPlan,
        recipe: Recipe,
        manifest: DependencyManifest,
        log: BuildLog,
        keep: Callable[[LayerKind, Layer], Awaitable[LayerRef]],
    ) -> LayerRef:
        """What the manifest asks for, as it was resolved first."""
        assert recipe.install is not None
        identity = await asyncio.to_thread(program_identity, recipe.install.argv)
        key = content_key(identity, recipe.dependencies, recipe.install_fingerprint, dependency_key(manifest))

        async def install() -> LayerRef:
            log.line("installing dependencies")
            try:
                async with temporary_folder(self._cache.scratch) as scratch:
                    return await keep(LayerKind.DEPENDENCIES, await self._run(plan, recipe, manifest, scratch, log))
            except UnsafeEntry as error:
                raise BuildRejected("build_failed", f"The installed dependencies cannot be used: {error}.") from error

        async with self._builds.single_flight(key):
            ref, known = await self._layers.single_flight(f"dependencies {key}", install)
        if known:
            log.line(f"dependencies are unchanged: layer {ref.digest[:12]}")
        return ref

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
        argv = [*await asyncio.to_thread(local_argv, recipe.install.arguments(first, target.name), "-I")]
        memory_mb = plan.memory_mb + recipe.address_space_extra_mb
        # the last one bounds each file that is written, and so the archive too
        limits = [memory_mb * _MEBIBYTE, max(1, round(plan.timeout_s)), plan.max_unpacked_bytes]
        with tempfile.TemporaryFile() as spool:
            if egress is None:
                code = await _run_limited(argv, scratch, limits, spool, log)
            else:
                async with EgressProxy(egress, self._config.index_hosts or (), log.line):
                    code = await _run_limited([*argv, str(egress)], scratch, limits, spool, log)
            log.flush()
            if code != 0:
                detail = f": {log.last_line}" if log.last_line else ""
                raise BuildRejected("build_failed", f"Installing the dependencies failed with exit code {code}{detail}")
            spool.seek(0)
            return await in_thread(installed_layer, spool, recipe.dependencies, plan.max_unpacked_bytes, log.line)


async def _run_limited(argv: list[str], cwd: Path, limits: list[int], stdout: IO[bytes], log: BuildLog) -> int:
    """Run ``argv`` in a session of its own to its end; whatever happens, all of that session is gone afterwards."""
    try:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", _LIMITED, *map(str, limits), *argv),
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
