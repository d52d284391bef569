"""A resolved Dockerfile as the text that the engine's builder gets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from worker.build.dockerfile.instructions import Copy, Dockerfile, Run, Step, Variables, Word, Workdir

CONTEXT = "context"
"""The folder of the build context that holds the artifact: nothing of ours is beside it for ``COPY .`` to find."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """``lines[n]`` is the line of the tenant's file that step ``n + 1`` of the builder does, 0 for one of ours."""

    text: str
    lines: tuple[int, ...]


def render(dockerfile: Dockerfile, images: Mapping[str, str], labels: Sequence[Mapping[str, str]]) -> Text:
    """The text, one instruction a line.

    :param dockerfile: without references, see :func:`resolve`.
    :param images: reference to image id.
    :param labels: of everything that is made in a stage, by the stage's number.
    """
    text: list[str] = []
    lines: list[int] = []
    for number, stage in enumerate(dockerfile.stages):
        base = f"s{stage.stage}" if stage.image is None else images[stage.image]
        text.append(f"FROM {base} AS s{number}")
        lines.append(stage.line)
        if labels[number]:
            pairs = " ".join(f"{_quoted(name)}={_quoted(value)}" for name, value in labels[number].items())
            text.append(f"LABEL {pairs}")
            lines.append(0)
        for step in stage.steps:
            text.append(_written(step))
            lines.append(step.line)
    return Text(text="".join(f"{line}\n" for line in text), lines=tuple(lines))


def _written(step: Step) -> str:
    if isinstance(step, Run):
        return f"RUN {_listed(step.command)}"
    if isinstance(step, Workdir):
        return f"WORKDIR {_quoted(_text(step.path))}"
    if isinstance(step, Variables):
        pairs = " ".join(f"{name}={_quoted(_text(value))}" for name, value in step.values)
        return f"{'ENV' if step.kept else 'ARG'} {pairs}"
    options = f"--chown={step.owner} " if step.owner else ""
    if step.stage is not None:
        options += f"--from=s{step.stage} "
    sources = [_source(step, _text(one)) for one in step.sources]
    return f"COPY {options}{_listed([*sources, _text(step.target)])}"


def _source(step: Copy, path: str) -> str:
    if step.stage is not None:
        return f"/{path}" if path != "." else "/"
    return f"{CONTEXT}/{path}" if path != "." else CONTEXT


def _text(word: Word) -> str:
    return "".join(part for part in word if isinstance(part, str))


def _listed(words: Sequence[str]) -> str:
    # A later builder looks for heredocs even in here.
    return json.dumps(list(words)).replace("<", "\\u003c")


def _quoted(value: str) -> str:
    for character in '\\"$':
        value = value.replace(character, "\\" + character)
    return f'"{value}"'
