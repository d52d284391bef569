"""Static analysis of an artifact, in a child process that a hostile source may crash.

Source that only another language's own parser can check is checked inside the base image: see :func:`read_sources`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

from worker.build.plan import BuildPlan, BuildRejected
from worker.build.recipe import Contract, Recipe

_TIMEOUT_S = 30.0  # longer than the CPU time the child allows itself
_MAX_SOURCE_BYTES = 32 * 1024 * 1024
SOURCES = "sources.json"


def _handler(plan: BuildPlan, recipe: Recipe) -> str:
    """The handler to look for: an application has a usual name, a marked function has any."""
    return plan.handler or (recipe.default_handler if recipe.contract is Contract.WEB else "")


async def analyze(plan: BuildPlan, recipe: Recipe) -> Mapping[str, object]:
    """Check ``plan``'s artifact by its runtime's script; the report without its errors.

    :raises BuildRejected: ``analysis_rejected``, with the first error as ``file:line: what``.
    """
    if recipe.analyze is None:
        return {}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-c", recipe.analyze, str(plan.artifact), _handler(plan, recipe)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={"LANG": "C.UTF-8"},
    )
    assert child.stdout is not None
    try:
        async with asyncio.timeout(min(_TIMEOUT_S, plan.timeout_s)):
            output = await child.stdout.read()
            code = await child.wait()
    except TimeoutError:
        raise BuildRejected("analysis_rejected", "The source takes too long to check.") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if code != 0:
        raise _uncheckable()
    report: dict[str, object] = json.loads(output)
    _reject(report.pop("errors"))
    return report


def read_sources(artifact: Path, recipe: Recipe) -> str:
    """The input of a recipe's check script: a JSON object of texts by path, without packages that the archive brings,
    since they may hold anything. Blocking.

    :raises BuildRejected: it is too much.
    """
    texts: dict[str, str] = {}
    room = _MAX_SOURCE_BYTES
    with tarfile.open(artifact, mode="r|gz") as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if not member.isreg() or not name.endswith(recipe.check_files) or recipe.dependencies in name.split("/"):
                continue
            room -= member.size
            if room < 0:
                raise _uncheckable()
            content = archive.extractfile(member)
            texts[name] = content.read().decode("utf-8", "replace") if content else ""
    return json.dumps(texts)


def judge_check(code: int | None, output: bytes) -> None:
    """Whether a check script that ended with ``code``, and printed ``output``, found nothing.

    :raises BuildRejected: ``analysis_rejected``, with the first error as ``file:line: what``.
    """
    if code != 0:
        raise _uncheckable()
    try:
        errors = json.loads(output)
    except ValueError:
        raise _uncheckable() from None
    _reject(errors)


def _reject(errors: object) -> None:
    if isinstance(errors, list) and errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise BuildRejected("analysis_rejected", f"{errors[0]}{more}")


def _uncheckable() -> BuildRejected:
    return BuildRejected("analysis_rejected", "The source cannot be checked: it is too large or too deeply nested.")
