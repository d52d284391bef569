"""A tenant's Dockerfile, read by a grammar of our own that accepts only instructions which can be built safely.

The engine's builder does not get the tenant's text. It gets a text that is written anew from the parsed instructions,
with base images by id, stages by number, no variables and simple quoting, so that both read it in the same way.
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
