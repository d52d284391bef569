"""The instructions of an accepted Dockerfile."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

from worker.build.plan import BuildRejected


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """``$NAME`` or ``${NAME}`` in a word."""

    name: str


Word = tuple[str | Reference, ...]
"""A word with its quoting taken off; texts without references once it is resolved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """``RUN``; the shell's form is a list that names the shell."""

    line: int = field(compare=False)
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """``COPY``, from the artifact or from an earlier stage."""

    line: int = field(compare=False)
    sources: tuple[Word, ...]
    target: Word
    stage: int | None
    owner: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Variables:
    """``ENV``, or ``ARG``, whose variables last for the build alone. Builds get no arguments: an ``ARG`` needs a
    value."""

    line: int = field(compare=False)
    kept: bool
    values: tuple[tuple[str, Word], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workdir:
    line: int = field(compare=False)
    path: Word


Step = Run | Copy | Variables | Workdir


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """``FROM`` and what follows. Either ``image`` is set, as the allow-list has it, or ``stage``, the earlier one."""

    line: int = field(compare=False)
    image: str | None
    stage: int | None
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dockerfile:
    """``entrypoint`` and ``command`` are the last stage's own or inherited ones, ``None`` if no stage sets them."""

    stages: tuple[Stage, ...]
    entrypoint: tuple[str, ...] | None
    command: tuple[str, ...] | None
    ignored: tuple[str, ...] = field(default=(), compare=False)
    """Sentences about instructions that have no effect."""

    def start(self, handler: str) -> tuple[str, ...]:
        """The argv of a sandbox. ``handler``, split as a shell splits words, replaces ``CMD`` if it is not empty.

        :raises BuildRejected: nothing is said, or the handler has an open quote.
        """
        arguments = self.command or ()
        if handler.strip():
            try:
                arguments = tuple(shlex.split(handler))
            except ValueError:
                raise BuildRejected(
                    "analysis_rejected", f"The handler {handler[:100]!r} has a quote that is not closed."
                ) from None
        if not self.entrypoint and not arguments:
            raise BuildRejected("analysis_rejected", "Dockerfile: it does not say what to run: add a CMD.")
        return (*(self.entrypoint or ()), *arguments)


def rejected(line: int, what: str) -> BuildRejected:
    """``analysis_rejected``, with the place."""
    return BuildRejected("analysis_rejected", f"Dockerfile:{line}: {what}")
