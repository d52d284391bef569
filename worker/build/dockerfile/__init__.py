"""A tenant's Dockerfile: read by a grammar of our own, which allows what can be built safely and nothing else.

What the engine's builder gets is not the tenant's text but one that is written anew from what was understood here, so
the two cannot read it differently: base images by id, stages by number, no variables, no quoting that needs thought.
"""

from __future__ import annotations

from worker.build.dockerfile.instructions import Copy, Dockerfile, Run, Stage, Variables, Workdir
from worker.build.dockerfile.lines import MAX_BYTES
from worker.build.dockerfile.parse import parse
from worker.build.dockerfile.render import CONTEXT, Text, render
from worker.build.dockerfile.resolve import resolve

__all__ = [
    "CONTEXT",
    "MAX_BYTES",
    "Copy",
    "Dockerfile",
    "Run",
    "Stage",
    "Text",
    "Variables",
    "Workdir",
    "parse",
    "render",
    "resolve",
]
