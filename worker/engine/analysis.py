"""Static analysis of an artifact, in a child process that a hostile source may crash."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping

from worker.engine.contract import BuildPlan, BuildRejected
from worker.engine.recipe import Recipe

_TIMEOUT_S = 30.0  # longer than the CPU time the child allows itself


async def analyze(plan: BuildPlan, recipe: Recipe) -> Mapping[str, object]:
    """Check ``plan``'s artifact by its runtime's script; the report without its errors.

    :raises BuildRejected: ``analysis_rejected``, with the first error as ``file:line: what``.
    """
    if recipe.analyze is None:
        return {}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-c", recipe.analyze, str(plan.artifact), plan.handler),
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
        raise BuildRejected("analysis_rejected", "The source cannot be checked: it is too large or too deeply nested.")
    report: dict[str, object] = json.loads(output)
    errors = report.pop("errors")
    if isinstance(errors, list) and errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise BuildRejected("analysis_rejected", f"{errors[0]}{more}")
    return report
