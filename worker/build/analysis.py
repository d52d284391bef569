"""Static analysis of an artifact, in a child process that a hostile source may crash.

Source that only another language's own parser can check is checked inside the base image: see :func:`read_sources`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from worker.build.plan import BuildPlan, BuildRejected
from worker.build.recipe import Contract, Recipe

_TIMEOUT_S = 30.0  # longer than the CPU time the child allows itself
_MAX_SOURCE_BYTES = 32 * 1024 * 1024
_MAX_WARNINGS = 40
_UNCHECKED = "the files that the handler does not need are not checked: they are too large or too deeply nested"
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


def read_sources(artifact: Path, recipe: Recipe) -> tuple[str, Sequence[str]]:
    """The input of a recipe's check script: a JSON object of texts by path, without packages that the archive brings,
    since they may hold anything; and warnings of files that are left out because it would be too much. Blocking.
    """
    texts: dict[str, str] = {}
    left_out: list[str] = []
    room = _MAX_SOURCE_BYTES
    with tarfile.open(artifact, mode="r|gz") as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if not member.isreg() or not name.endswith(recipe.check_files) or recipe.dependencies in name.split("/"):
                continue
            if member.size > room:
                left_out.append(
                    f"{name}:1: it is not checked: the sources are larger than {_MAX_SOURCE_BYTES >> 20} MB"
                )
                continue
            room -= member.size
            content = archive.extractfile(member)
            texts[name] = content.read().decode("utf-8-sig", "replace") if content else ""
    return json.dumps(texts), left_out[:_MAX_WARNINGS]


def judge_check(code: int | None, output: bytes) -> Sequence[str]:
    """The warnings of a check script that ended with ``code`` and printed ``output``.

    :raises BuildRejected: ``analysis_rejected``, with the first error as ``file:line: what``.
    """
    errors, whole, rest = output.partition(b"\n")
    try:
        _reject(json.loads(errors) if whole else None)
        # Whatever the second list is about, a function can do without it.
        return [str(one) for one in json.loads(rest)] if code == 0 else [_UNCHECKED]
    except ValueError:
        raise _uncheckable() from None


def concluded(report: Mapping[str, object], more: Sequence[str], log: Callable[[str], None]) -> Mapping[str, object]:
    """The report of an analysis with ``more`` warnings in it; all of them are said in the build's log."""
    known = report.get("warnings")
    warnings = [*(known if isinstance(known, list) else ()), *more][:_MAX_WARNINGS]
    for sentence in warnings:
        log(f"warning: {sentence}")
    return {**report, "warnings": warnings} if warnings else report


def _reject(errors: object) -> None:
    if not isinstance(errors, list):
        raise _uncheckable()
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise BuildRejected("analysis_rejected", f"{errors[0]}{more}")


def _uncheckable() -> BuildRejected:
    return BuildRejected("analysis_rejected", "The source cannot be checked: it is too large or too deeply nested.")
